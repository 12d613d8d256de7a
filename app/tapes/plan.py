"""All that it takes to begin a tape, or to go on with it in another process."""

import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final, Literal

import msgspec

from app.tapes.recipe import Recipe, Turn
from app.tapes.sizes import size_of
from app.tapes.tape import Choice, IdempotencyClaim
from model.protocol.messages import Generate, id_array
from model.protocol.sampling_params import SamplingParams

# What to do when a stream's last reader leaves.
OnDisconnect = Literal["pause", "abort", "continue"]

_TOKEN: Final = 36  # bytes of a number in a list


@dataclass(frozen=True, slots=True)
class ReaderPolicy:
    """How long a tape waits for its readers, and they for it. None is no limit."""

    on_disconnect: OnDisconnect = "pause"
    grace: float = 10.0  # seconds that a paused generation waits for a reader
    timeout: float | None = None  # seconds from its beginning to its end
    queue_timeout: float | None = None  # seconds from its beginning to its first step


@dataclass(frozen=True, slots=True)
class Plan:
    """What a tape is to hold: choices for each prompt, in order."""

    prompts: list[list[int]]  # token ids
    params: SamplingParams
    policy: ReaderPolicy = ReaderPolicy()
    n: int = 1  # choices for each prompt
    priority: int = 0  # of one client's tapes, lower goes first
    salt: str = ""  # cached prefixes are shared only between tapes with the same
    owner: str = ""  # the API key that may read it, as app/guard/api_keys.py names it
    client: str = ""  # whose share of the server it counts towards: `owner`, or else an address
    claim: IdempotencyClaim | None = None
    # What the dialect needs later to describe the response, in JSON's types.
    response_context: Mapping[str, Any] | None = None
    created: float = field(default_factory=time.time)  # seconds since 1970
    parent: str = ""  # of a fork: the tape whose first `forked_at` entries it has copied
    forked_at: int = 0
    turns: list[Turn] = field(default_factory=list)  # later turns of a conversation

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
