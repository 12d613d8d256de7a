"""Matrix products and their precisions. Nothing outside this file knows how a weight is stored."""

from typing import Protocol

import torch
from torch import Tensor
from torch.nn import functional as F

from model.weights import Weights

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


class Linear(Protocol):
    """x (T, in) -> x W^T + b (T, out)."""

    def __call__(self, x: Tensor) -> Tensor: ...


class DenseLinear:
    """The weight as it is, in the model's own floating-point type."""

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        self.weight = weight
        self.bias = bias

    def __call__(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight, self.bias)


def make_linear(weight: Tensor, bias: Tensor | None = None) -> Linear:
    """The product for one weight (out, in), in the precision that serves it best."""
    return DenseLinear(weight, bias)


def take_linear(
    weights: Weights, names: list[str], widths: list[int], size: int, *, bias: bool
) -> Linear:
    """One product for several matrices that read the same input, outputs side by side.

    Matrix i is `names[i]`.weight (widths[i], size), and where `bias`, `names[i]`.bias (widths[i],).
    """
    outputs = list(zip(names, widths, strict=True))
    matrix = torch.cat([weights.take(f"{name}.weight", (width, size)) for name, width in outputs])
    if not bias:
        return make_linear(matrix)
    return make_linear(
        matrix, torch.cat([weights.take(f"{name}.bias", (width,)) for name, width in outputs])
    )


def resolve_dtype(name: str, device: torch.device) -> torch.dtype:
    """`auto` is the fastest that the processor has instructions for."""
    if name != "auto":
        return DTYPES[name]
    if device.type == "cuda" or _has_bfloat16_products():
        return torch.bfloat16
    return torch.float32


def _has_bfloat16_products() -> bool:
    return torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
