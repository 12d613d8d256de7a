"""Masked scaled dot-product attention over the KV cache.

    attention(Q, K, V) = softmax(Q K^T / sqrt(d) + M) V        (Vaswani et al. 2017, section 3.2.1)

where M is 0 for the positions that a query may see and -inf for all others.
"""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from model.decoder.kv_cache import KVCache


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
class StepContext:
    """Where the rows of one step stand: their positions, their cache slots, whom they may see."""

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
        """Put the new keys and values in the cache, then attend over all that each row may see.

        query (rows, H, d), key and value (rows, KV, d); returns (rows, H, d).
        """
        self.cache.write(layer, self.slots, key, value)
        return torch.cat(
            [group.attend(query, self.cache, layer, window, scale) for group in self.groups]
        )
