"""All that it takes to begin a tape, or to go on with it in another process."""

import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

import msgspec

from app.schemas.sampling import OnDisconnect
from app.tapes.recipe import Recipe, Turn
from app.tapes.sizes import size_of
from app.tapes.tape import Choice, Claim
from model.messages import Generate, id_array
from model.sampling import SamplingParams

_TOKEN: Final = 36  # bytes of a number in a list


@dataclass(frozen=True, slots=True)
class Terms:
    """What holds for a tape beside its generation.

    Times are in seconds: `grace` that a paused generation waits for a reader, `timeout` from its
    beginning to its end, `queue_timeout` to its first step. None is no limit.
    """

    on_disconnect: OnDisconnect = "pause"
    grace: float = 10.0
    timeout: float | None = None
    queue_timeout: float | None = None


@dataclass(frozen=True, slots=True)
class Plan:
    """What a tape is to hold: `n` choices for each prompt, in order.

    `client` is whose share of the server it counts towards: `owner`, or else an address. Of its
    tapes, lower `priority` goes first. Only tapes with the same `salt` share cached prefixes.
    `owner` is the API key that may read it, as app/security.py names it. `origin` is what the
    surface that began the tape needs to tell of it later, in JSON's types. `created` is in seconds
    since 1970. Of a fork, the first `forked_at` entries are copies of those of the tape `parent`.
    """

    prompts: list[list[int]]
    params: SamplingParams
    terms: Terms = Terms()
    n: int = 1
    priority: int = 0
    salt: str = ""
    owner: str = ""
    client: str = ""
    claim: Claim | None = None
    origin: Mapping[str, Any] | None = None
    created: float = field(default_factory=time.time)
    parent: str = ""
    forked_at: int = 0
    turns: list[Turn] = field(default_factory=list)

    @property
    def size(self) -> int:
        """About how many bytes of memory are kept to compute it: prompts above all."""
        tokens = sum(map(len, self.prompts))
        return _TOKEN * tokens + size_of([self.params.grammar, *self.params.stop, self.salt])

    def choices(self) -> list[Choice]:
        """As they begin. Copies share their prompt, which is counted once."""
        held = self.turns[-1].first if self.turns else 0
        return [
            Choice(0 if copy else len(prompt) - held, num_in_prompt=held)
            for prompt in self.prompts
            for copy in range(self.n)
        ]

    def recipe(self) -> Recipe:
        """What is kept of it when the tape has ended."""
        prompts = [id_array(prompt).tobytes() for prompt in self.prompts]
        return Recipe(prompts, self.params, self.n, self.priority, self.salt, self.turns)

    def requests(self, tape_id: str) -> list[Generate]:
        """What the engine is asked for, one for each choice."""
        copies = [(prompt, copy) for prompt in self.prompts for copy in range(self.n)]
        return [
            Generate(
                sequence_of(tape_id, index),
                prompt,
                _with_seed(self.params, self.params.seed + copy),
                self.priority,
                self.salt,
                client=self.client,
            )
            for index, (prompt, copy) in enumerate(copies)
        ]


def sequence_of(tape_id: str, index: int) -> str:
    return f"{tape_id}:{index}"


def _with_seed(params: SamplingParams, seed: int) -> SamplingParams:
    """Copies of one prompt differ in nothing else. Seeds are 64 bits and wrap around."""
    wrapped = (seed + 2**63) % 2**64 - 2**63
    return msgspec.structs.replace(params, seed=wrapped)
