"""The chunks of one step as arrays: made once, and read by every runner."""

from array import array
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import chain

import numpy as np
from numpy.typing import NDArray

from model.scheduling.scheduler import Chunk
from model.scheduling.sequence import Sequence

Ints = NDArray[np.int32]


@dataclass(frozen=True, slots=True)
class ForwardBatch:
    """S sequences with T new tokens, laid end to end as rows, and R rows whose logits are wanted.

    Sequences with equally many new tokens stand side by side.
    """

    sequences: list[Sequence]
    token_ids: Ints  # (T,)
    starts: Ints  # (S,) the position of each sequence's first new token
    counts: Ints  # (S,) how many new tokens each has
    num_logits: Ints  # (S,) how many of its last rows give logits
    only_best: Ints  # (R,) not 0: the argmax is enough
    block_tables: "list[array[int]]"  # as the sequences hold them; they are not copied
    copies: list[tuple[int, int]]  # KV blocks to copy before anything else, (from, to)

    @classmethod
    def of(
        cls,
        chunks: Iterable[Chunk],
        copies: Iterable[tuple[int, int]] = (),
        *,
        all_logits: bool = False,
    ) -> "ForwardBatch":
        """With `all_logits` every row gives logits, else those that a token is sampled from."""
        batch = sorted(chunks, key=lambda chunk: chunk.count)
        wanted = [chunk.count if all_logits else chunk.num_logits for chunk in batch]
        only_best = chain.from_iterable(
            [not all_logits and chunk.sequence.argmax_only] * count
            for chunk, count in zip(batch, wanted, strict=True)
        )
        return cls(
            sequences=[chunk.sequence for chunk in batch],
            token_ids=_ints(chain.from_iterable(map(_new_tokens, batch))),
            starts=_ints(chunk.start for chunk in batch),
            counts=_ints(chunk.count for chunk in batch),
            num_logits=_ints(wanted),
            only_best=_ints(only_best),
            block_tables=[chunk.sequence.block_table for chunk in batch],
            copies=list(copies),
        )

    @property
    def sampling(self) -> list[Sequence]:
        """The sequences that give logits, in the order of the rows of logits."""
        return [self.sequences[i] for i in self.num_logits.nonzero()[0]]

    @property
    def logit_rows(self) -> Ints:
        """(R,) the rows whose logits are wanted."""
        ends = self.counts.cumsum()
        firsts = np.repeat(ends - self.num_logits.cumsum(), self.num_logits)
        return (firsts + np.arange(len(firsts))).astype(np.int32)

    @property
    def positions(self) -> Ints:
        """(T,) of each new token within its sequence."""
        firsts = np.repeat(self.starts - self.counts.cumsum() + self.counts, self.counts)
        return (firsts + np.arange(len(firsts))).astype(np.int32)


def _ints(values: Iterable[int]) -> Ints:
    return np.fromiter(values, np.int32)


def _new_tokens(chunk: Chunk) -> list[int]:
    return chunk.sequence.token_ids[chunk.start : chunk.start + chunk.count]
