"""One sequence while the engine works on it."""

from dataclasses import dataclass, field

from model.detokenizer import Detokenizer
from model.sampling import SamplingParams


@dataclass(slots=True, eq=False)
class Request:
    """A prompt, what was generated so far, and where its keys and values lie.

    `token_ids` is prompt then output. Positions [0, num_computed) have their K/V in the cache,
    at the slots that `block_table` names. Times are monotonic seconds.
    """

    id: str
    token_ids: list[int]
    params: SamplingParams
    detokenizer: Detokenizer
    arrived: float
    num_prompt: int = field(init=False)
    num_computed: int = 0
    block_table: list[int] = field(default_factory=list)
    started: bool = False

    def __post_init__(self) -> None:
        self.num_prompt = len(self.token_ids)

    @property
    def num_output(self) -> int:
        return len(self.token_ids) - self.num_prompt

    @property
    def output_ids(self) -> list[int]:
        return self.token_ids[self.num_prompt :]

    @property
    def num_pending(self) -> int:
        """Tokens whose K/V must be computed before the next one can be sampled."""
        return len(self.token_ids) - self.num_computed
