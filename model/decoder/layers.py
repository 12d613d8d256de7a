"""What decoder layers are made of. Rows are tokens of any number of sequences, laid end to end."""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from model.checkpoints.config import ModelConfig
from model.decoder.attention.base import AttentionPlan
from model.decoder.linear import take_linear
from model.decoder.rope import rotate
from model.decoder.weights import Weights


class RMSNorm:
    """x / sqrt(mean(x^2) + eps) * weight (Zhang and Sennrich 2019)."""

    def __init__(self, weight: Tensor, eps: float) -> None:
        self._weight = weight
        self._eps = eps

    def __call__(self, x: Tensor) -> Tensor:
        return F.rms_norm(x, self._weight.shape, self._weight, self._eps)


@dataclass(frozen=True, slots=True)
class RotaryContext:
    """What every layer of one step shares: the plan, and cos and sin of the rows' positions."""

    plan: AttentionPlan
    cos: Tensor
    sin: Tensor


class SelfAttention:
    """Project to queries, keys and values, rotate, attend over the cache, project back.

    Where the config says so, each head's query and key pass an RMS norm before they are rotated
    (Qwen3), or are not rotated at all (SmolLM3).
    """

    def __init__(self, config: ModelConfig, weights: Weights, layer: int) -> None:
        prefix = f"layers.{layer}.attn"
        queries = config.num_heads * config.head_dim
        keys = config.num_kv_heads * config.head_dim
        self._layer = layer
        self._window = config.windows[layer]
        self._head_dim = config.head_dim
        self._widths = [queries, keys, keys]
        self._scale = config.head_dim**-0.5
        self._qkv = take_linear(
            weights,
            [f"{prefix}.{matrix}" for matrix in "qkv"],
            self._widths,
            config.hidden_size,
            bias=config.qkv_bias,
        )
        self._out = take_linear(
            weights, [f"{prefix}.o"], [config.hidden_size], queries, bias=config.o_bias
        )
        self._rotates = config.rotates[layer]
        self._norms = (
            [take_norm(config, weights, f"{prefix}.{h}_norm", config.head_dim) for h in "qk"]
            if config.head_norms
            else None
        )

    def __call__(self, x: Tensor, step: RotaryContext) -> Tensor:
        query, key, value = self._heads(x)
        if self._norms:
            query, key = self._norms[0](query), self._norms[1](key)
        if self._rotates:
            query, key = rotate(query, step.cos, step.sin), rotate(key, step.cos, step.sin)
        attended = step.plan.attend(
            self._layer, query, key, value, window=self._window, scale=self._scale
        )
        return self._out(attended.flatten(1))

    def _heads(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Queries (T, H, d), keys and values (T, KV, d), as projected."""
        query, key, value = torch.split(self._qkv(x), self._widths, dim=-1)
        rows, d = x.shape[0], self._head_dim
        return query.view(rows, -1, d), key.view(rows, -1, d), value.view(rows, -1, d)


class GatedMLP:
    """down(silu(gate x) * up x) (Shazeer 2020, SwiGLU)."""

    def __init__(self, config: ModelConfig, weights: Weights, layer: int) -> None:
        prefix = f"layers.{layer}.mlp"
        inner = config.intermediate_size
        hidden, bias = config.hidden_size, config.mlp_bias
        self._gate_up = take_linear(
            weights, [f"{prefix}.gate", f"{prefix}.up"], [inner, inner], hidden, bias=bias
        )
        self._down = take_linear(weights, [f"{prefix}.down"], [hidden], inner, bias=bias)

    def __call__(self, x: Tensor) -> Tensor:
        gate, up = self._gate_up(x).chunk(2, dim=-1)
        return self._down(F.silu(gate) * up)


def take_norm(config: ModelConfig, weights: Weights, name: str, size: int) -> RMSNorm:
    """The norm whose gains (size,) are `name`.weight."""
    return RMSNorm(weights.take(f"{name}.weight", (size,)), config.norm_eps)
