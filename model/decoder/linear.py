"""Matrix products and their precisions. Nothing outside this file knows how a weight is stored."""

from dataclasses import dataclass
from functools import cache
from typing import Final, Protocol

import torch
from torch import Tensor
from torch.nn import functional as F

from model.decoder.weights import Weights


@dataclass(frozen=True, slots=True)
class Precision:
    """How a model computes: `name` as --dtype has it, `storage` of its matrices, and the rest.

    `dtype` is that of the activations, the KV cache, and every weight that is not a matrix.
    """

    name: str
    storage: str  # "dense": the weights in `dtype`; "int8": see QuantizedLinear
    dtype: torch.dtype


def resolve_precision(name: str, device: torch.device) -> Precision:
    """`name` is float32, bfloat16, int8 or auto: the fastest here that is within 2 % of float32.

    The 2 % are of perplexity: tests/model/decoder/test_precision.py measures them.
    """
    if name == "auto":
        name = _fastest(device)
    if name == "int8":
        on_gpu = device.type == "cuda"
        return Precision(name, "int8", torch.bfloat16 if on_gpu else torch.float32)
    return Precision(name, "dense", {"float32": torch.float32, "bfloat16": torch.bfloat16}[name])


def _fastest(device: torch.device) -> str:
    if device.type == "cuda":
        return "bfloat16"
    if _has_int8_products():
        return "int8"
    return "bfloat16" if _has_bfloat16_products() else "float32"


@cache
def _has_bfloat16_products() -> bool:
    return torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()


@cache
def _has_int8_products() -> bool:
    """Whether uint8 x int8 sums are exact and fast: without VNNI oneDNN's 16-bit sums saturate."""
    return hasattr(torch.ops.onednn, "qlinear_pointwise") and torch.cpu._is_vnni_supported()


class Linear(Protocol):
    """x (T, in) -> x W^T + b (T, out), in the dtype of x."""

    def __call__(self, x: Tensor) -> Tensor: ...


class DenseLinear:
    """The weight as it is, in the model's own floating-point type."""

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        self.weight = weight
        self.bias = bias

    def __call__(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight, self.bias)


class PackedLinear:
    """A bfloat16 weight, reordered once to the layout that oneDNN's kernels read."""

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        self._weight = torch.ops.mkldnn._reorder_linear_weight(weight)
        self._bias = bias

    def __call__(self, x: Tensor) -> Tensor:
        product = torch.ops.mkldnn._linear_pointwise
        out: Tensor = product(x.contiguous(), self._weight, self._bias, "none", [], "")
        return out


class QuantizedLinear:
    """Weights int8 with a scale for each output, activations 8 or 16 bits, quantized by token.

    With w = s q (symmetric, s = max|w| / 127) and x = a u + b (b the least value of the token,
    a = (max - b) / 255), x w^T = s (a u q^T + b sum q). u q^T is a sum of integers, so what a
    token gets is the same in any batch. Per-row and per-token scales are those of LLM.int8()
    (Dettmers et al. 2022, section 2). 16 bits are two products of 8. x must be float32.
    """

    def __init__(self, weight: Tensor, bias: Tensor | None, *, bits: int = 8) -> None:
        quantized, self._scales = quantize(weight)
        self._sums = quantized.sum(dim=-1, dtype=torch.float32) * self._scales
        self._zeros = torch.zeros(len(quantized), dtype=torch.int32)
        self._weight = torch.ops.onednn.qlinear_prepack(quantized, None)
        self._bias = bias
        self._bits = bits

    def __call__(self, x: Tensor) -> Tensor:
        least, greatest = x.aminmax(dim=-1, keepdim=True)
        step = (greatest - least).div_(2**self._bits - 1).clamp_(min=_SMALLEST_STEP)
        rounded = x.sub(least).div_(step).round_()
        product = self._product if self._bits == 8 else self._product_of_halves
        out = product(rounded).mul_(step).addcmul_(least, self._sums)
        return out if self._bias is None else out.add_(self._bias)

    def _product(self, u: Tensor) -> Tensor:
        """s u q^T for u in 0..255."""
        # The op's own scale and zero point are for the whole tensor: ours go by token.
        out: Tensor = torch.ops.onednn.qlinear_pointwise(
            *(u.to(torch.uint8), 1.0, 0),
            *(self._weight, self._scales, self._zeros, None),
            *(1.0, 0, torch.float32, "none", [], ""),
        )
        return out

    def _product_of_halves(self, u: Tensor) -> Tensor:
        """s u q^T for u in 0..65535: upper and lower bytes as rows of one product."""
        upper = u.div(256.0, rounding_mode="floor")
        lower = u.sub(upper, alpha=256.0)
        upper, lower = self._product(torch.cat([upper, lower])).chunk(2)
        return lower.add_(upper, alpha=256.0)


# A token whose values are all equal has no step; its rounded values are 0.
_SMALLEST_STEP: Final = 1e-30


def quantize(weight: Tensor) -> tuple[Tensor, Tensor]:
    """int8 (out, in) and float32 scales (out,), symmetric: weight = scales * int8, rounded."""
    scales = (weight.abs().amax(dim=-1).float() / 127.0).clamp(min=_SMALLEST_STEP)
    return (weight / scales.unsqueeze(-1)).round_().to(torch.int8), scales


def make_linear(
    weight: Tensor, bias: Tensor | None = None, *, storage: str = "dense", bits: int = 8
) -> Linear:
    """The product for one weight (out, in), in the way that serves it best.

    `bits` is what the activations need where they are quantized: 8, or 16 for outliers.
    """
    on_cpu = weight.device.type == "cpu"
    if storage == "int8":
        if on_cpu and _has_int8_products():
            return QuantizedLinear(weight, bias, bits=bits)
        return _rounded(weight, bias)
    if on_cpu and weight.dtype == torch.bfloat16 and _has_bfloat16_products():
        return PackedLinear(weight, bias)
    return DenseLinear(weight, bias)


def _rounded(weight: Tensor, bias: Tensor | None) -> Linear:
    """int8 without the instructions for it: what int8 weights are worth, kept as floats."""
    quantized, scales = quantize(weight)
    return DenseLinear((quantized * scales.unsqueeze(-1)).to(weight.dtype), bias)


def take_linear(
    weights: Weights, names: list[str], widths: list[int], size: int, *, bias: bool
) -> Linear:
    """One product for several matrices that read the same input, outputs side by side.

    Matrix i is `names[i]`.weight (widths[i], size), and where `bias`, `names[i]`.bias (widths[i],).
    """
    outputs = list(zip(names, widths, strict=True))
    matrix = torch.cat([weights.take(f"{name}.weight", (width, size)) for name, width in outputs])
    biases = (
        torch.cat([weights.take(f"{name}.bias", (width,)) for name, width in outputs])
        if bias
        else None
    )
    # silu(gate) * up has outliers: in 8 bits they cost 2 % of perplexity (docs/decisions.md).
    bits = 16 if names[0].endswith(".mlp.down") else 8
    return make_linear(matrix, biases, storage=weights.storage, bits=bits)
