"""One sequence while the engine works on it."""

from array import array
from dataclasses import dataclass, field

from model.sampling.state import SamplerState
from model.text.detokenizer import Detokenizer


@dataclass(slots=True, eq=False, kw_only=True)
class Sequence(SamplerState):
    """A prompt, what was generated so far, and where its keys and values lie."""

    id: str
    detokenizer: Detokenizer
    arrived: float  # monotonic seconds
    number: int = 0  # counts arrivals
    client: str = ""  # seats and blocks are shared out between the clients that want some
    priority: int = 0  # of one client's sequences, lower comes first
    salt: str = ""  # only sequences with the same salt share blocks
    # Positions [0, num_computed) have their K/V in the cache, in the blocks of `block_table`.
    num_computed: int = 0
    # Of these the first `num_cached` were found in the prefix cache. While these are all, the table
    # may be replaced; afterwards it only grows, until it is emptied.
    num_cached: int = 0
    block_table: "array[int]" = field(default_factory=lambda: array("i"))
    block_hashes: list[bytes] = field(default_factory=list)  # of its full blocks
    num_published: int = 0  # full blocks that others can find
    admitted: bool = False  # whether it has taken a seat before
    started: bool = False  # whether it was in a step
    pause_after_one: bool = False  # whether it pauses once it has a token

    @property
    def num_pending(self) -> int:
        """Tokens whose K/V must be computed before the next one can be sampled."""
        return len(self.token_ids) - self.num_computed

    @property
    def is_fresh(self) -> bool:
        """Whether it has computed nothing itself: all that it has was found in the cache."""
        return self.num_computed == self.num_cached
