"""Masked scaled dot-product attention over keys and values gathered from the KV cache.

    attention(Q, K, V) = softmax(Q K^T / sqrt(d) + M) V        (Vaswani et al. 2017, section 3.2.1)

where M is 0 for the positions that a query may see and -inf for all others.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from model.checkpoints.config import ModelConfig
from model.decoder.kv_cache import BLOCK_SIZE, KVCache
from model.scheduling.forward_batch import ForwardBatch, Ints


def visible(query_positions: Tensor, num_keys: int, window: int | None) -> Tensor:
    """The mask: which of the keys 0..num_keys-1 each query may see, as booleans.

    Query i sees key j if j <= i (causal: never the future), and, with a sliding window of w
    tokens (Mistral, Jiang et al. 2023, section 2), only if j > i - w.
    Positions (...,) give a mask (..., num_keys).
    """
    keys = torch.arange(num_keys, device=query_positions.device)
    queries = query_positions.unsqueeze(-1)
    mask = keys <= queries
    if window is not None:
        mask &= keys > queries - window
    return mask


def additive_mask(visible: Tensor, heads_per_key: int, dtype: torch.dtype) -> Tensor:
    """M of the formula for `masked_attention`, from booleans (B, T, L): (B, 1, T * heads, L).

    Made once per step and shared by its layers.
    """
    mask = torch.zeros(visible.shape, dtype=dtype, device=visible.device)
    mask.masked_fill_(~visible, -torch.inf)
    return mask.repeat_interleave(heads_per_key, dim=1).unsqueeze(1)


def masked_attention(
    query: Tensor, key: Tensor, value: Tensor, mask: Tensor, scale: float
) -> Tensor:
    """Grouped-query attention of B sequences with T queries and L keys each.

    query (B, T, H, d); key and value (B, L, KV, d), H a multiple of KV; mask as `additive_mask`
    gives it. Returns (B, T, H, d). The H / KV query heads that share a KV head (Ainslie et al.
    2023) are laid side by side as further queries, so that no key or value is copied.
    """
    batch, num_queries, heads, size = query.shape
    kv_heads = key.shape[2]
    group = heads // kv_heads
    folded = query.view(batch, num_queries, kv_heads, group, size)
    folded = folded.permute(0, 2, 1, 3, 4).reshape(batch, kv_heads, num_queries * group, size)
    out = scaled_dot_product_attention(
        folded,
        key.transpose(1, 2),
        value.transpose(1, 2),
        attn_mask=mask,
        scale=scale,
    )
    out = out.view(batch, kv_heads, num_queries, group, size).permute(0, 2, 1, 3, 4)
    return out.reshape(batch, num_queries, heads, size)


@dataclass(frozen=True, slots=True)
class Group:
    """Sequences of one step that have equally many new tokens, so that they attend together.

    Their B * T tokens are the rows [first_row, first_row + B * T) of the step.
    """

    first_row: int
    num_queries: int  # T
    block_tables: Tensor  # (B, N), padded with any valid block
    masks: dict[int | None, Tensor]  # by sliding window, for N * BLOCK_SIZE keys

    def attend(
        self, query: Tensor, cache: KVCache, layer: int, window: int | None, scale: float
    ) -> Tensor:
        """Attention of this group's rows of `query` (rows, H, d); returns (B * T, H, d)."""
        batch = self.block_tables.shape[0]
        rows = query[self.first_row : self.first_row + batch * self.num_queries]
        keys, values = cache.read(layer, self.block_tables)
        grouped = rows.view(batch, self.num_queries, *rows.shape[1:])
        return masked_attention(grouped, keys, values, self.masks[window], scale).flatten(0, 1)


@dataclass(frozen=True, slots=True)
class GatheredPlan:
    """The groups of one step, and the cache slots of its rows."""

    cache: KVCache
    positions: Tensor  # (rows,)
    slots: Tensor  # (rows,)
    groups: list[Group]

    def attend(
        self,
        layer: int,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        *,
        window: int | None,
        scale: float,
    ) -> Tensor:
        self.cache.write(layer, self.slots, key, value)
        return torch.cat(
            [group.attend(query, self.cache, layer, window, scale) for group in self.groups]
        )


class GatheredAttention:
    """Copies the keys and values of each sequence side by side: any device, any precision."""

    def __init__(self, config: ModelConfig, cache: KVCache, device: torch.device) -> None:
        self._cache = cache
        self._device = device
        self._windows = set(config.windows)
        self._heads_per_key = config.num_heads // config.num_kv_heads

    def plan(self, batch: ForwardBatch) -> GatheredPlan:
        self._cache.copy(batch.copies)
        tables = [np.frombuffer(table, np.int32) for table in batch.block_tables]
        groups = []
        first = row = 0
        for count, members in groupby(batch.counts.tolist()):
            last = first + len(list(members))
            groups.append(self._group(row, count, batch.starts[first:last], tables[first:last]))
            row += count * (last - first)
            first = last
        positions = batch.positions
        return GatheredPlan(
            self._cache,
            positions=self._tensor(positions),
            slots=self._tensor(_slots(positions, batch.counts, tables)),
            groups=groups,
        )

    def _group(self, row: int, count: int, starts: Ints, tables: Sequence[Ints]) -> Group:
        positions = self._tensor(starts[:, None] + np.arange(count))
        blocks = -(-(int(starts.max()) + count) // BLOCK_SIZE)
        table = np.zeros((len(tables), blocks), np.int32)
        for padded, own in zip(table, tables, strict=True):
            padded[: len(own)] = own[:blocks]
        dtype = self._cache.keys.dtype
        masks = {
            window: additive_mask(
                visible(positions, blocks * BLOCK_SIZE, window), self._heads_per_key, dtype
            )
            for window in self._windows
        }
        return Group(row, count, self._tensor(table), masks)

    def _tensor(self, values: NDArray[Any]) -> Tensor:
        return torch.from_numpy(values).to(self._device, torch.long)


def _slots(positions: Ints, counts: Ints, tables: Sequence[Ints]) -> Ints:
    """Which slot of the cache each row's key and value go to."""
    last, slots = 0, np.empty_like(positions)
    for count, table in zip(counts.tolist(), tables, strict=True):
        own = positions[last : last + count]
        slots[last : last + count] = table[own // BLOCK_SIZE] * BLOCK_SIZE + own % BLOCK_SIZE
        last += count
    return slots
