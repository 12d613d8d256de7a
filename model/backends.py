"""Which way a model is computed on this machine: the compiled kernels, or torch."""

from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import torch

from model.checkpoints.checkpoint import Checkpoint
from model.checkpoints.config import ModelConfig
from model.decoder.attention.gathered import GatheredAttention
from model.decoder.dense import DenseDecoder
from model.decoder.kv_cache import KVCache, bytes_per_block
from model.decoder.linear import Precision, resolve_precision
from model.decoder.runner import Runner, TorchRunner
from model.decoder.weights import Weights
from model.native import library
from model.native.runner import NativeRunner, unsupported
from model.native.runner import bytes_per_block as native_bytes_per_block


@dataclass(frozen=True, slots=True)
class Sizes:
    """What a runner must have room for: KV blocks; new tokens and sequences of one step; positions
    of one sequence. `threads` compute.
    """

    num_blocks: int
    max_step_tokens: int
    max_num_seqs: int
    max_model_len: int
    threads: int


class Backend(Protocol):
    """A way to compute: what it is called, what a KV block takes, and the runner itself."""

    @property
    def dtype(self) -> str: ...

    def bytes_per_block(self, config: ModelConfig) -> int: ...

    def build(self, checkpoint: Checkpoint, sizes: Sizes) -> Runner:
        """Load the weights. Raises ModelLoadError, MemoryError."""


@dataclass(frozen=True, slots=True)
class TorchBackend:
    """Torch on a device, in one of the precisions of model/decoder/linear.py."""

    precision: Precision
    device: torch.device

    @property
    def dtype(self) -> str:
        return self.precision.name

    def bytes_per_block(self, config: ModelConfig) -> int:
        return bytes_per_block(config, self.precision.dtype)

    def build(self, checkpoint: Checkpoint, sizes: Sizes) -> Runner:
        config, precision = checkpoint.config, self.precision
        weights = Weights(checkpoint.weights(), precision.dtype, self.device, precision.storage)
        decoder = DenseDecoder(config, weights)
        cache = KVCache(config, sizes.num_blocks, precision.dtype, self.device)
        return TorchRunner(decoder, GatheredAttention(config, cache, self.device), self.device)


@dataclass(frozen=True, slots=True)
class NativeBackend:
    """The kernels of model/native: int8, on the processor."""

    path: Path

    @property
    def dtype(self) -> str:
        return "int8"

    def bytes_per_block(self, config: ModelConfig) -> int:
        return native_bytes_per_block(config)

    def build(self, checkpoint: Checkpoint, sizes: Sizes) -> Runner:
        return NativeRunner(
            self.path,
            checkpoint.config,
            Weights(checkpoint.weights(), torch.float32, torch.device("cpu")),
            num_blocks=sizes.num_blocks,
            max_rows=sizes.max_step_tokens,
            max_outputs=sizes.max_num_seqs,
            max_positions=sizes.max_model_len,
            threads=sizes.threads,
        )


@dataclass(frozen=True, slots=True)
class BackendSelection:
    """The backend to begin with, and why not the compiled one, if that was asked for.

    `pending`: the kernels could serve this model, but must be compiled first.
    """

    backend: Backend
    pending: bool = False
    note: str | None = None


def choose(dtype: str, config: ModelConfig, device: torch.device) -> BackendSelection:
    """The fastest way to compute `config` in precision `dtype` on this machine."""
    plain = TorchBackend(resolve_precision(dtype, device), device)
    if dtype not in ("auto", "int8") or device.type != "cpu":
        return BackendSelection(plain)
    reason = library.why_unavailable() or unsupported(config)
    if reason:
        return BackendSelection(
            plain, note=f"the compiled kernels are not used: {reason}; torch is slower"
        )
    found = library.find()
    if found.path:
        return BackendSelection(NativeBackend(found.path), note=found.fault)
    note = "compiling kernels for this processor, once"
    return BackendSelection(
        plain, pending=True, note=f"{found.fault}; {note}" if found.fault else note
    )
