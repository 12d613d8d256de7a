"""One step of the model: the scheduler's chunks -> one flat batch -> logits."""

from collections.abc import Sequence
from itertools import groupby
from typing import Protocol

import torch
from torch import Tensor

from model.checkpoints.config import ModelConfig
from model.decoder.attention import Group, StepContext, additive_mask, visible
from model.decoder.families.llama import Llama
from model.decoder.kv_cache import BLOCK_SIZE, KVCache
from model.sampling.logits import Logits
from model.scheduling.scheduler import Chunk


class Runner(Protocol):
    """Runs chunks of several sequences at once. Knows nothing of sampling or of text."""

    @property
    def weight_bytes(self) -> int | None:
        """Bytes of weights that a step with one row reads, where it is known."""

    def run(self, chunks: Sequence[Chunk], copies: Sequence[tuple[int, int]] = ()) -> Logits:
        """Compute every chunk; return logits, a row for each chunk that samples.

        The rows come in the order of the chunks. Their requests' `num_computed` move on. Before
        anything else the KV block of each pair (from, to) is copied.
        """


class TorchRunner:
    """The decoder of `model/families` and its KV cache, in torch: on any machine, any precision."""

    weight_bytes: int | None = None

    def __init__(
        self, config: ModelConfig, decoder: Llama, cache: KVCache, device: torch.device
    ) -> None:
        self._decoder = decoder
        self._cache = cache
        self._device = device
        self._windows = set(config.windows)
        self._heads_per_key = config.num_heads // config.num_kv_heads

    @torch.inference_mode()
    def run(self, chunks: Sequence[Chunk], copies: Sequence[tuple[int, int]] = ()) -> Logits:
        self._cache.copy(copies)
        batch = sorted(chunks, key=lambda chunk: chunk.count)
        token_ids = torch.tensor(
            [token for chunk in batch for token in _new_tokens(chunk)], device=self._device
        )
        hidden = self._decoder.hidden(token_ids, self._context(batch))
        for chunk in chunks:
            chunk.sequence.num_computed += chunk.count
        return Logits.of(self._decoder.logits(hidden[self._sampling_rows(chunks, batch)]))

    def _context(self, batch: list[Chunk]) -> StepContext:
        """Positions, slots and attention groups; chunks of one length attend together."""
        groups = []
        row = 0
        for count, members in groupby(batch, key=lambda chunk: chunk.count):
            group = list(members)
            groups.append(self._group(row, group))
            row += count * len(group)
        return StepContext(
            self._cache,
            positions=torch.tensor([p for c in batch for p in _positions(c)], device=self._device),
            slots=torch.tensor([s for c in batch for s in _slots(c)], device=self._device),
            groups=groups,
        )

    def _group(self, first_row: int, chunks: list[Chunk]) -> Group:
        blocks = max(-(-(c.start + c.count) // BLOCK_SIZE) for c in chunks)
        tables = [_padded(c.sequence.block_table[:blocks], blocks) for c in chunks]
        positions = torch.tensor([list(_positions(c)) for c in chunks], device=self._device)
        dtype = self._cache.keys.dtype
        masks = {
            window: additive_mask(
                visible(positions, blocks * BLOCK_SIZE, window), self._heads_per_key, dtype
            )
            for window in self._windows
        }
        return Group(first_row, chunks[0].count, torch.tensor(tables, device=self._device), masks)

    def _sampling_rows(self, chunks: Sequence[Chunk], batch: list[Chunk]) -> Tensor:
        """The row of the last token of each chunk that samples, in the order of `chunks`."""
        last_row = {}
        row = 0
        for chunk in batch:
            row += chunk.count
            last_row[chunk] = row - 1
        return torch.tensor(
            [last_row[chunk] for chunk in chunks if chunk.samples],
            dtype=torch.long,
            device=self._device,
        )


def _positions(chunk: Chunk) -> range:
    return range(chunk.start, chunk.start + chunk.count)


def _new_tokens(chunk: Chunk) -> list[int]:
    return chunk.sequence.token_ids[chunk.start : chunk.start + chunk.count]


def _slots(chunk: Chunk) -> list[int]:
    table = chunk.sequence.block_table
    return [table[p // BLOCK_SIZE] * BLOCK_SIZE + p % BLOCK_SIZE for p in _positions(chunk)]


def _padded(table: list[int], length: int) -> list[int]:
    return table + [0] * (length - len(table))
