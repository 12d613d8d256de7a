"""Rotary position embedding (Su et al. 2021) and its context-stretching variants.

Dimension pair m of a head turns by position * f_m, with f_m = theta^(-2m/d). What differs between
the variants is f alone (and, for yarn, one factor on the result).
"""

import math

import torch
from torch import Tensor

from model.checkpoints.config import ModelConfig, RopeScaling


class RotaryEmbedding:
    """Rotates queries and keys by their positions; angles in float32 whatever the model's dtype."""

    def __init__(
        self, config: ModelConfig, device: torch.device, factors: Tensor | None = None
    ) -> None:
        """`factors` (d/2,) divides the frequencies: a GGUF file's own form of llama3 scaling."""
        frequencies, self._magnitude = rotary_frequencies(config)
        if factors is not None:
            frequencies = frequencies / factors.float().cpu()
        self._frequencies = frequencies.to(device)

    def angles(self, positions: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """cos and sin for positions (T,), each (T, 1, d): one angle per pair, given twice."""
        turned = positions.float().unsqueeze(-1) * self._frequencies
        turned = torch.cat((turned, turned), dim=-1).unsqueeze(1)
        cos, sin = turned.cos() * self._magnitude, turned.sin() * self._magnitude
        return cos.to(dtype), sin.to(dtype)


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Turn x (T, heads, d), whose pair m is dimensions m and m + d/2."""
    first, second = x.chunk(2, dim=-1)
    return x * cos + torch.cat((-second, first), dim=-1) * sin


def rotary_frequencies(config: ModelConfig) -> tuple[Tensor, float]:
    """Frequencies (d/2,) in float32, and the factor on cos and sin."""
    exponents = torch.arange(0, config.head_dim, 2, dtype=torch.int64).float() / config.head_dim
    frequencies = 1.0 / config.rope_theta**exponents
    scaling = config.rope_scaling
    if scaling is None:
        return frequencies, 1.0
    if scaling.kind == "linear":
        return frequencies / scaling.factor, 1.0
    if scaling.kind == "llama3":
        return _llama3(frequencies, scaling), 1.0
    return _yarn(frequencies, config, scaling), _yarn_magnitude(scaling)


def _llama3(frequencies: Tensor, scaling: RopeScaling) -> Tensor:
    """Long waves are stretched by `factor`, short ones kept, those between interpolated.

    As in Llama 3.1's own reference code (`apply_scaling`).
    """
    waves = 2 * math.pi / frequencies
    turns = scaling.original_max_position_embeddings / waves
    span = scaling.high_freq_factor - scaling.low_freq_factor
    keep = ((turns - scaling.low_freq_factor) / span).clamp(0.0, 1.0)
    return keep * frequencies + (1 - keep) * frequencies / scaling.factor


def _yarn(frequencies: Tensor, config: ModelConfig, scaling: RopeScaling) -> Tensor:
    """NTK-by-parts interpolation (Peng et al. 2023, section 3.2)."""
    low = _yarn_dimension(scaling.beta_fast, config, scaling)
    high = _yarn_dimension(scaling.beta_slow, config, scaling)
    if scaling.truncate:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, config.head_dim - 1)
    ramp = torch.arange(config.head_dim // 2, dtype=torch.float32) - low
    stretch = (ramp / max(high - low, 0.001)).clamp(0.0, 1.0)
    return stretch * frequencies / scaling.factor + (1 - stretch) * frequencies


def _yarn_dimension(turns: float, config: ModelConfig, scaling: RopeScaling) -> float:
    """The (fractional) dimension that makes `turns` full turns over the original context."""
    wave = scaling.original_max_position_embeddings / (turns * 2 * math.pi)
    return config.head_dim * math.log(wave) / (2 * math.log(config.rope_theta))


def _yarn_magnitude(scaling: RopeScaling) -> float:
    """The attention temperature of yarn (section 3.4), folded into cos and sin."""

    def magnitude(weight: float) -> float:
        return 1.0 if scaling.factor <= 1 else 0.1 * weight * math.log(scaling.factor) + 1.0

    if scaling.attention_factor is not None:
        return scaling.attention_factor
    if scaling.mscale and scaling.mscale_all_dim:
        return magnitude(scaling.mscale) / magnitude(scaling.mscale_all_dim)
    return magnitude(1.0)
