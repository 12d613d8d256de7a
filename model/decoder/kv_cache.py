"""Keys and values of past positions, in fixed-size blocks shared by all sequences.

A past position's key and value never change, so they are computed once, kept here, and only read
again: the work of one new token does not grow with the square of the text (docs/how-it-works.md).
"""

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from model.checkpoints.config import ModelConfig

BLOCK_SIZE = 16


class KVCache:
    """One pair of tensors, each (layers, blocks, block size, KV heads, head size).

    Token slot s of the pool is row s % BLOCK_SIZE of block s // BLOCK_SIZE.
    """

    def __init__(
        self, config: ModelConfig, num_blocks: int, dtype: torch.dtype, device: torch.device
    ) -> None:
        shape = (config.num_layers, num_blocks, BLOCK_SIZE, config.num_kv_heads, config.head_dim)
        self.keys = _zeros(shape, dtype, device)
        self.values = _zeros(shape, dtype, device)
        self._key_slots = self.keys.flatten(1, 2)
        self._value_slots = self.values.flatten(1, 2)

    def write(self, layer: int, slots: Tensor, keys: Tensor, values: Tensor) -> None:
        """Store keys and values (T, KV heads, head size) of T tokens at `slots` (T,)."""
        self._key_slots[layer].index_copy_(0, slots, keys)
        self._value_slots[layer].index_copy_(0, slots, values)

    def copy(self, pairs: Sequence[tuple[int, int]]) -> None:
        """Copy whole blocks, over all layers: each pair is (from, to)."""
        for source, target in pairs:
            self.keys[:, target] = self.keys[:, source]
            self.values[:, target] = self.values[:, source]

    def read(self, layer: int, block_tables: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values of B sequences by their block tables (B, N).

        Returns two tensors (B, N * BLOCK_SIZE, KV heads, head size); where a table was padded, or a
        block is not full, they hold something that the attention mask must hide.
        """
        batch, blocks = block_tables.shape
        flat = block_tables.flatten()
        shape = (batch, blocks * BLOCK_SIZE, *self.keys.shape[3:])
        return (
            self.keys[layer].index_select(0, flat).view(shape),
            self.values[layer].index_select(0, flat).view(shape),
        )


def _zeros(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    """Zeros, not empty: a masked slot is multiplied by 0, and 0 * NaN would be NaN.

    On a CPU they come from calloc, through numpy: memory that no token has used costs nothing,
    where torch.zeros writes all of it (1 GiB: 3.3 s and 1 GiB of RSS against 7 ms and none).
    """
    if device.type != "cpu":
        return torch.zeros(shape, dtype=dtype, device=device)
    size = math.prod(shape) * dtype.itemsize
    return torch.from_numpy(np.zeros(size, dtype=np.uint8)).view(dtype).view(shape)


def bytes_per_block(config: ModelConfig, dtype: torch.dtype) -> int:
    """Memory of one block over all layers, keys and values together."""
    per_token = 2 * config.num_layers * config.num_kv_heads * config.head_dim * dtype.itemsize
    return BLOCK_SIZE * per_token
