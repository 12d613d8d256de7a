"""One sequence while the engine works on it."""

from dataclasses import dataclass, field

from model.detokenizer import Detokenizer
from model.guide import Guide
from model.sampling import SamplingParams
from model.tally import Tally


@dataclass(slots=True, eq=False)
class Request:
    """A prompt, what was generated so far, and where its keys and values lie.

    `token_ids` is prompt then output. Positions [0, num_computed) have their K/V in the cache,
    at the slots that `block_table` names. Of them the first `num_cached` were found there; while
    these are all, the table may be replaced, afterwards it only grows, until it is emptied.
    Seats and blocks are shared out between each `client` that wants some; of its sequences, lower
    `priority` comes first. Only sequences with the same `salt` share blocks. `number` counts
    arrivals. Times are monotonic seconds.
    """

    id: str
    token_ids: list[int]
    params: SamplingParams
    detokenizer: Detokenizer
    arrived: float
    priority: int = 0
    salt: str = ""
    client: str = ""
    number: int = 0
    num_prompt: int = field(init=False)
    num_computed: int = 0
    num_cached: int = 0
    pause_after_one: bool = False
    block_table: list[int] = field(default_factory=list)
    block_keys: list[bytes] = field(default_factory=list)
    num_published: int = 0
    admitted: bool = False
    started: bool = False
    tally: Tally | None = None  # of the sampler, where penalties need one
    guide: Guide | None = None  # where a grammar is to be followed

    def __post_init__(self) -> None:
        self.num_prompt = len(self.token_ids)

    @property
    def num_output(self) -> int:
        return len(self.token_ids) - self.num_prompt

    @property
    def output_ids(self) -> list[int]:
        return self.token_ids[self.num_prompt :]

    @property
    def forced_token(self) -> int | None:
        """The next token, where it is known without the logits."""
        forced = self.params.forced
        if forced and forced[0] == self.num_output:
            return forced[1]
        return self.guide.forced[0] if self.guide and self.guide.forced else None

    @property
    def plain(self) -> bool:
        """Whether the next token is known from the argmax alone, or without it."""
        if self.params.plain:
            return True
        return self.params.logprobs is None and self.forced_token is not None

    @property
    def num_pending(self) -> int:
        """Tokens whose K/V must be computed before the next one can be sampled."""
        return len(self.token_ids) - self.num_computed

    @property
    def is_fresh(self) -> bool:
        """Whether it has computed nothing itself: all that it has was found in the cache."""
        return self.num_computed == self.num_cached
