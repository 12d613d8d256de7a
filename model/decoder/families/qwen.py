"""Qwen2 and Qwen3 (Yang et al. 2024, 2025): Llama's shape with other attention inputs."""

from typing import ClassVar

from torch import Tensor

from model.checkpoints.config import ModelConfig
from model.decoder.families.llama import Llama
from model.decoder.layers import SelfAttention, take_norm
from model.decoder.weights import Weights


class Qwen2(Llama):
    """Biases on queries, keys and values: the config says so, and `SelfAttention` takes them."""


class NormedAttention(SelfAttention):
    """Every head's query and key pass an RMS norm of their own before they are rotated."""

    def __init__(self, config: ModelConfig, weights: Weights, layer: int) -> None:
        super().__init__(config, weights, layer)
        prefix = f"layers.{layer}.attn"
        self._query_norm = take_norm(config, weights, f"{prefix}.q_norm", config.head_dim)
        self._key_norm = take_norm(config, weights, f"{prefix}.k_norm", config.head_dim)

    def heads(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        query, key, value = super().heads(x)
        return self._query_norm(query), self._key_norm(key), value


class Qwen3(Llama):
    """Norms on queries and keys, no biases."""

    attention: ClassVar[type[SelfAttention]] = NormedAttention
