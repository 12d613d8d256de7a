"""Every way to store a weight: its products against plain float32 ones."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F

from model.decoder import linear
from model.decoder.linear import (
    DenseLinear,
    Linear,
    PackedLinear,
    QuantizedLinear,
    make_linear,
    quantize,
    resolve_precision,
    take_linear,
)
from model.decoder.weights import Weights

CPU = torch.device("cpu")
INT8 = linear._has_int8_products()
needs_bfloat16 = pytest.mark.skipif(
    not torch.ops.mkldnn._is_mkldnn_bf16_supported(), reason="oneDNN has no bfloat16 here"
)
needs_int8 = pytest.mark.skipif(not INT8, reason="this processor has no int8 products (VNNI)")


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def error(ours: Tensor, exact: Tensor) -> float:
    return float((ours - exact).norm() / exact.norm())


def linears(weight: Tensor, bias: Tensor | None) -> dict[str, tuple[Linear, float]]:
    """Each that works here, with the error its rounding may cause, relative to the product."""
    rounded: dict[str, tuple[Linear, float]] = {
        "float32": (DenseLinear(weight, bias), 2e-6),
        "int8 without instructions": (linear._rounded(weight, bias), 0.02),
    }
    if INT8:
        rounded["int8"] = (QuantizedLinear(weight, bias), 0.03)
        rounded["int8, 16-bit activations"] = (QuantizedLinear(weight, bias, bits=16), 0.02)
    return rounded


@settings(max_examples=40, deadline=None)
@given(
    rows=st.sampled_from([1, 2, 3, 17, 64]),
    size=st.sampled_from([5, 32, 48, 576, 1536]),
    outputs=st.sampled_from([1, 7, 64, 960]),
    biased=st.booleans(),
    shift=st.sampled_from([0.0, 3.0, -1.0]),
    seed=st.integers(0, 1000),
)
def test_products_are_those_of_float32_up_to_rounding(
    rows: int, size: int, outputs: int, biased: bool, shift: float, seed: int
) -> None:
    x = random(rows, size, seed=seed)
    weight = random(outputs, size, seed=seed + 1)
    bias = random(outputs, seed=seed + 2) if biased else None
    shifted = x.double() + shift
    exact = F.linear(shifted, weight.double(), None if bias is None else bias.double())
    # Of a product of independent numbers of these sizes; the sum itself may cancel.
    typical = shifted.square().mean().sqrt() * weight.double().square().mean().sqrt() * size**0.5
    for name, (product, bound) in linears(weight, bias).items():
        wrong = (product(shifted.float()) - exact).square().mean().sqrt()
        # The error of a single product may be several times that of many.
        assert wrong <= bound * (1 + 3 / exact.numel() ** 0.5) * typical, name


@needs_int8
def test_sixteen_bits_hold_beside_an_outlier_where_eight_do_not() -> None:
    x, weight = random(8, 256), random(64, 256, seed=1)
    x[:, 3] = 300.0
    weight[:, 3] = 0.0
    exact = x @ linear._rounded(weight, None).weight.T  # type: ignore[attr-defined]
    assert error(QuantizedLinear(weight, None, bits=16)(x), exact) < 2e-3
    assert error(QuantizedLinear(weight, None)(x), exact) > 0.1


@needs_int8
@pytest.mark.parametrize("bits", [8, 16])
def test_a_row_of_int8_is_bitwise_the_same_in_any_batch(bits: int) -> None:
    product = QuantizedLinear(random(960, 576), random(960, seed=1), bits=bits)
    x = random(70, 576, seed=2)
    together = product(x)
    for rows in (slice(0, 1), slice(5, 8), slice(3, 67)):
        assert torch.equal(product(x[rows].clone()), together[rows])


@needs_int8
@pytest.mark.parametrize("bits", [8, 16])
@pytest.mark.parametrize("wrong", [torch.nan, torch.inf, -torch.inf])
def test_a_bad_row_stays_bad_and_alone(wrong: float, bits: int) -> None:
    product = QuantizedLinear(random(32, 64), None, bits=bits)
    x = random(3, 64, seed=1)
    good = product(x)
    x[1, 7] = wrong
    bad = product(x)
    assert not bad[1].isfinite().any()
    assert torch.equal(bad[[0, 2]], good[[0, 2]])


@needs_int8
@pytest.mark.parametrize("bits", [8, 16])
@pytest.mark.parametrize("value", [0.0, 2.5, -1e-38])
def test_a_row_of_equal_values_is_exact(value: float, bits: int) -> None:
    weight = torch.tensor([[127.0, -3.0, 5.0], [0.0, 0.0, 0.0]])
    product = QuantizedLinear(weight, None, bits=bits)
    expected = torch.tensor([[129.0 * value, 0.0]])
    torch.testing.assert_close(product(torch.full((1, 3), value)), expected)


@given(seed=st.integers(0, 1000), size=st.integers(1, 40))
def test_quantized_weights_are_off_by_half_a_step_at_most(seed: int, size: int) -> None:
    weight = random(9, size, seed=seed) * 10.0 ** random(9, 1, seed=seed + 1)
    quantized, scales = quantize(weight)
    assert quantized.dtype == torch.int8
    assert (quantized.abs().amax(dim=-1) == 127).all()
    wrong = (quantized * scales[:, None] - weight).abs()
    assert (wrong <= scales[:, None] * 0.5001).all()


@needs_bfloat16
def test_packed_bfloat16_is_bfloat16() -> None:
    weight, bias = random(64, 96).bfloat16(), random(64, seed=1).bfloat16()
    x = random(5, 96, seed=2).bfloat16()
    out = PackedLinear(weight, bias)(x[:, :96])
    assert out.dtype == torch.bfloat16
    exact = F.linear(x.double(), weight.double(), bias.double())
    assert error(out.double(), exact) < 0.005


# ---- which one is taken


@pytest.mark.parametrize(
    ("int8", "bfloat16", "chosen"),
    [
        (True, False, "int8"),
        (True, True, "int8"),
        (False, True, "bfloat16"),
        (False, False, "float32"),
    ],
)
def test_auto_is_the_fastest_of_this_processor(
    monkeypatch: pytest.MonkeyPatch, int8: bool, bfloat16: bool, chosen: str
) -> None:
    monkeypatch.setattr(linear, "_has_int8_products", lambda: int8)
    monkeypatch.setattr(linear, "_has_bfloat16_products", lambda: bfloat16)
    assert resolve_precision("auto", CPU) == resolve_precision(chosen, CPU)
    assert resolve_precision("auto", torch.device("cuda")).name == "bfloat16"


@pytest.mark.parametrize(
    ("int8", "bfloat16", "storage", "dtype", "kind"),
    [
        pytest.param(True, True, "int8", torch.float32, QuantizedLinear, marks=needs_int8),
        (False, True, "int8", torch.float32, DenseLinear),
        pytest.param(True, True, "dense", torch.bfloat16, PackedLinear, marks=needs_bfloat16),
        (True, False, "dense", torch.bfloat16, DenseLinear),
        (True, True, "dense", torch.float32, DenseLinear),
    ],
)
def test_storage_and_processor_decide(
    monkeypatch: pytest.MonkeyPatch,
    int8: bool,
    bfloat16: bool,
    storage: str,
    dtype: torch.dtype,
    kind: type,
) -> None:
    monkeypatch.setattr(linear, "_has_int8_products", lambda: int8)
    monkeypatch.setattr(linear, "_has_bfloat16_products", lambda: bfloat16)
    assert isinstance(make_linear(random(16, 16).to(dtype), storage=storage), kind)


def test_several_matrices_are_one_product() -> None:
    tensors = {"a.weight": random(6, 8), "b.weight": random(10, 8, seed=1)}
    tensors |= {"a.bias": random(6, seed=2), "b.bias": random(10, seed=3)}
    x = random(4, 8, seed=4)
    exact = torch.cat([F.linear(x, tensors[f"{n}.weight"], tensors[f"{n}.bias"]) for n in "ab"], -1)
    for storage, bound in (("dense", 1e-6), ("int8", 0.02)):
        weights = Weights(tensors.items(), torch.float32, CPU, storage)
        product = take_linear(weights, ["a", "b"], [6, 10], 8, bias=True)
        weights.expect_all_taken()
        assert error(product(x), exact) < bound
