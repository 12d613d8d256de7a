"""Runs batches on the compiled decoder."""

import ctypes
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from model.checkpoints.config import ModelConfig
from model.decoder.kv_cache import BLOCK_SIZE
from model.decoder.rope import RotaryEmbedding
from model.decoder.weights import Weights
from model.native import library
from model.sampling.logits import Logits
from model.scheduling.forward_batch import ForwardBatch

CPU: Final = torch.device("cpu")

# The enums of kernels/decoder.cpp.
_QKV, _OUT, _GATE_UP, _DOWN, _EMBEDDING, _HEAD = range(6)
_NORM_ATTENTION, _NORM_MLP, _NORM_QUERY, _NORM_KEY, _NORM_FINAL = range(5)

_GROUP: Final = 64  # kGroup of kernels/matmul.h
_GATES: Final = 16  # a panel of gate_up: so many gates, then the values they act on
_MAX_HEAD_DIM: Final = 512


def unsupported(config: ModelConfig) -> str | None:
    """What of this model the kernels cannot do, for a person; None when they can do all."""
    sizes = {
        "hidden_size": config.hidden_size % _GROUP,
        "intermediate_size": config.intermediate_size % _GROUP,
        "heads * head_dim": config.num_heads * config.head_dim % _GROUP,
        "KV heads * head_dim": config.num_kv_heads * config.head_dim % _GATES,
        "head_dim": config.head_dim % 16 or config.head_dim > _MAX_HEAD_DIM,
    }
    odd = [name for name, misfit in sizes.items() if misfit]
    return f"its {', '.join(odd)} is no multiple of what they work on" if odd else None


def bytes_per_block(config: ModelConfig) -> int:
    """Memory of one KV block over all layers: keys and values in 8 bits, and their scales."""
    scales = 2 * 4
    per_token = config.num_layers * config.num_kv_heads * (2 * config.head_dim + scales)
    return BLOCK_SIZE * per_token


class NativeRunner:
    """The decoder's weights and KV cache, both inside the library."""

    def __init__(
        self,
        path: Path,
        config: ModelConfig,
        weights: Weights,
        *,
        num_blocks: int,
        max_rows: int,
        max_outputs: int,
        max_positions: int,
        threads: int,
    ) -> None:
        """`weights` are float32 and are all taken. Sizes: KV blocks, new tokens and rows of logits
        of one step, positions of one sequence. Raises MemoryError, ModelLoadError.
        """
        self._config = config
        self._limits = {
            "new tokens": max_rows,
            "rows of logits": max_outputs,
            "positions": max_positions,
        }
        self._library = library.load(path)
        self._handle = self._library.tickertape_new(
            library.Shape(
                layers=config.num_layers,
                hidden=config.hidden_size,
                inner=config.intermediate_size,
                heads=config.num_heads,
                kv_heads=config.num_kv_heads,
                head_dim=config.head_dim,
                vocab=config.vocab_size,
                tied=config.tie_embeddings,
                blocks=num_blocks,
                max_rows=max_rows,
                max_outputs=max_outputs,
                max_positions=max_positions,
                threads=threads,
                eps=config.norm_eps,
            )
        )
        if not self._handle:
            raise MemoryError("there is no memory for the KV cache")
        self._logits = self._view_logits(max_outputs, config.vocab_size)
        self._best = np.empty(max_outputs, np.int32)
        self._best_score = np.empty(max_outputs, np.float32)
        _Loader(self._library, self._handle, config, weights).load(max_positions)

    def __del__(self) -> None:
        if getattr(self, "_handle", None):
            self._library.tickertape_free(self._handle)

    def run(self, batch: ForwardBatch) -> Logits:
        """Compute the batch. Where the argmax is enough, a row of logits is not written.

        Raises ValueError for a step that is larger than the sizes given at the start.
        """
        self._check(batch)
        for source, target in batch.copies:
            self._library.tickertape_copy_block(self._handle, source, target)
        rows = batch.logit_rows
        tables = np.fromiter((table.buffer_info()[0] for table in batch.block_tables), np.uintp)
        arrays: dict[str, NDArray[Any]] = {
            "tokens": batch.token_ids,
            "starts": batch.starts,
            "counts": batch.counts,
            "tables": tables,
            "output_rows": rows,
            "only_best": batch.only_best,
            "best": self._best,
            "best_score": self._best_score,
        }
        step = library.ForwardArgs(
            rows=len(batch.token_ids),
            sequences=len(batch.sequences),
            outputs=len(rows),
            **{name: array.ctypes.data for name, array in arrays.items()},
        )
        self._library.tickertape_step(self._handle, ctypes.byref(step))
        return Logits(
            torch.from_numpy(self._logits[: len(rows)]),
            self._best[: len(rows)].tolist(),
            np.isfinite(self._best_score[: len(rows)]).tolist(),
        )

    def _check(self, batch: ForwardBatch) -> None:
        """The library trusts its caller: beyond its buffers it would write over other memory."""
        wanted = {
            "new tokens": len(batch.token_ids),
            "rows of logits": int(batch.num_logits.sum()),
            "positions": int((batch.starts + batch.counts).max(initial=0)),
        }
        for name, limit in self._limits.items():
            if wanted[name] > limit:
                raise ValueError(f"a step of {wanted[name]} {name}: there is room for {limit}")

    def _view_logits(self, rows: int, vocab_size: int) -> "np.ndarray[Any, np.dtype[np.float32]]":
        """The library's own memory, as an array."""
        at = self._library.tickertape_logits(self._handle)
        flat = (ctypes.c_float * (rows * vocab_size)).from_address(at)
        return np.ctypeslib.as_array(flat).reshape(rows, vocab_size)

    @property
    def weight_bytes(self) -> int:
        """Bytes of weights that a step with one row reads."""
        size: int = self._library.tickertape_weight_bytes(self._handle)
        return size

    @property
    def instructions(self) -> str:
        """What the library was compiled for: "AVX-512 VNNI" or "AVX2"."""
        name: bytes = self._library.tickertape_instructions()
        return name.decode()

    def block(self, layer: int, block: int) -> Any:
        """The bytes of one KV block of one layer, writable: for tests that corrupt it."""
        size = bytes_per_block(self._config) // self._config.num_layers
        at = self._library.tickertape_block(self._handle, layer, block)
        return np.ctypeslib.as_array((ctypes.c_uint8 * size).from_address(at))


class _Loader:
    """Hands the weights to the library, which quantizes and packs them one by one."""

    def __init__(
        self, library_: ctypes.CDLL, handle: int, config: ModelConfig, weights: Weights
    ) -> None:
        self._library = library_
        self._handle = handle
        self._config = config
        self._weights = weights

    def load(self, max_positions: int) -> None:
        config = self._config
        embedding = (config.vocab_size, config.hidden_size)
        table = self._weights.take("embed.weight", embedding)
        if config.tie_embeddings:
            self._matrix(0, _HEAD, table)
        else:
            self._matrix(0, _EMBEDDING, table)
            self._matrix(0, _HEAD, self._weights.take("head.weight", embedding))
        for layer in range(config.num_layers):
            self._layer(layer)
        self._norm(0, _NORM_FINAL, "norm", config.hidden_size)
        self._rotary(max_positions)
        self._weights.expect_all_taken()

    def _layer(self, layer: int) -> None:
        config = self._config
        hidden, inner = config.hidden_size, config.intermediate_size
        queries, keys = config.num_heads * config.head_dim, config.num_kv_heads * config.head_dim
        attention, mlp = f"layers.{layer}.attn", f"layers.{layer}.mlp"
        qkv = {f"{attention}.q": queries, f"{attention}.k": keys, f"{attention}.v": keys}
        self._matrix(layer, _QKV, *self._take(qkv, hidden, config.qkv_bias))
        out = {f"{attention}.o": hidden}
        self._matrix(layer, _OUT, *self._take(out, queries, config.o_bias))
        gate_up = {f"{mlp}.gate": inner, f"{mlp}.up": inner}
        weight, bias = self._take(gate_up, hidden, config.mlp_bias)
        self._matrix(
            layer, _GATE_UP, _interleaved(weight), None if bias is None else _interleaved(bias)
        )
        self._matrix(layer, _DOWN, *self._take({f"{mlp}.down": hidden}, inner, config.mlp_bias))
        self._norm(layer, _NORM_ATTENTION, f"layers.{layer}.attn_norm", hidden)
        self._norm(layer, _NORM_MLP, f"layers.{layer}.mlp_norm", hidden)
        if config.head_norms:
            self._norm(layer, _NORM_QUERY, f"{attention}.q_norm", config.head_dim)
            self._norm(layer, _NORM_KEY, f"{attention}.k_norm", config.head_dim)
        self._library.tickertape_set_layer(
            self._handle, layer, config.windows[layer] or 0, config.rotates[layer]
        )

    def _take(
        self, widths: dict[str, int], inputs: int, bias: bool
    ) -> tuple[Tensor, Tensor | None]:
        """Matrices that read the same input, one below the other, and their biases."""
        take = self._weights.take
        weight = torch.cat([take(f"{name}.weight", (n, inputs)) for name, n in widths.items()])
        if not bias:
            return weight, None
        return weight, torch.cat([take(f"{name}.bias", (n,)) for name, n in widths.items()])

    def _matrix(self, layer: int, which: int, weight: Tensor, bias: Tensor | None = None) -> None:
        outputs, inputs = weight.shape
        weight = weight.contiguous()  # named, so that it lives as long as its address is in use
        bias = None if bias is None else bias.contiguous()
        self._library.tickertape_set_matrix(
            self._handle,
            layer,
            which,
            weight.data_ptr(),
            None if bias is None else bias.data_ptr(),
            outputs,
            inputs,
        )

    def _norm(self, layer: int, which: int, name: str, size: int) -> None:
        gains = self._weights.take(f"{name}.weight", (size,))
        self._library.tickertape_set_norm(self._handle, layer, which, gains.data_ptr(), size)

    def _rotary(self, max_positions: int) -> None:
        half = self._config.head_dim // 2
        factors = self._weights.take_if_present("rope.factors", (half,))
        rotary = RotaryEmbedding(self._config, CPU, factors)
        cos, sin = rotary.angles(torch.arange(max_positions), torch.float32)
        cos, sin = cos[:, 0, :half].contiguous(), sin[:, 0, :half].contiguous()
        self._library.tickertape_set_rotary(
            self._handle, cos.data_ptr(), sin.data_ptr(), max_positions
        )


def _interleaved(gate_up: Tensor) -> Tensor:
    """Rows (all gates, all values) -> sixteen gates, their sixteen values, the next sixteen."""
    halves = gate_up.view(2, -1, _GATES, *gate_up.shape[1:])
    return halves.transpose(0, 1).reshape(gate_up.shape)
