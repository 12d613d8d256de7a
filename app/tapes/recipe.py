"""What is kept of a plan for as long as its tape, so that the tape can be forked."""

from dataclasses import dataclass

import msgspec

from app.tapes.sizes import size_of
from model.protocol.sampling_params import SamplingParams


class Turn(msgspec.Struct, frozen=True, array_like=True):
    """A later turn of a conversation that one tape holds.

    Entries after number `first` follow the prompt's first `num_prompt` tokens, which hold the
    entries up to it.
    """

    first: int
    num_prompt: int


@dataclass(frozen=True, slots=True)
class Recipe:
    """What it takes to fork a tape: see Plan. Prompts are `id_array`s."""

    prompts: list[bytes]
    params: SamplingParams
    n: int
    priority: int
    salt: str
    turns: list[Turn]

    @property
    def size(self) -> int:
        """About how many bytes of memory it takes."""
        return size_of([*self.prompts, self.params.grammar, *self.params.stop, self.salt])
