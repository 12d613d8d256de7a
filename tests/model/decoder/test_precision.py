"""What a precision costs: perplexity of the default model on 20,480 tokens, against float32."""

import gzip
from collections.abc import Iterator
from typing import cast

import pytest
import torch
from torch import Tensor

from bench.perplexity import TEXT, WINDOW, WINDOWS, PlainDecoder, decoder, perplexity, windows
from model.checkpoints.checkpoint import Checkpoint
from model.decoder.linear import resolve_precision
from tests.model.harness import CPU, TeacherForced

pytestmark = pytest.mark.timeout(900)


@pytest.fixture(scope="module")
def text(checkpoint: Checkpoint) -> list[list[int]]:
    return windows(checkpoint.tokenizer())


def test_the_text_is_long_enough(checkpoint: Checkpoint, text: list[list[int]]) -> None:
    assert sum(map(len, text)) == WINDOW * WINDOWS >= 20_000
    assert (
        checkpoint.tokenizer().encode(gzip.decompress(TEXT.read_bytes()).decode())[:512] == text[0]
    )


def test_the_measure_sees_the_logits_that_the_engine_sees(
    checkpoint: Checkpoint, text: list[list[int]]
) -> None:
    plain = PlainDecoder(checkpoint, resolve_precision("float32", CPU))
    token_ids = text[2][:70]
    engine = TeacherForced(checkpoint).logits(token_ids, [1, 32, 37])
    measured = plain(token_ids)[[0, 32, 69]]
    torch.testing.assert_close(measured, torch.stack(engine), atol=1e-3, rtol=0)


def test_perplexity_of_known_probabilities() -> None:
    """Every true token at one in four, the first of each window not counted."""

    def one_in_four(token_ids: object) -> torch.Tensor:
        return torch.zeros(5, 4)

    assert perplexity(one_in_four, [[0, 1, 2, 3, 0], [3, 3, 1, 0, 2]]) == pytest.approx(4.0)


@pytest.mark.usefixtures("kernels")
@pytest.mark.parametrize(
    "count",
    [
        pytest.param(WINDOWS // 8, id="an eighth"),
        pytest.param(WINDOWS, id="all", marks=pytest.mark.long),
    ],
)
def test_what_auto_chooses_costs_two_percent_at_most(
    checkpoint: Checkpoint, text: list[list[int]], count: int
) -> None:
    float32 = PlainDecoder(checkpoint, resolve_precision("float32", CPU))
    exact = perplexity(float32, text[:count])
    ours = perplexity(decoder(checkpoint, "auto"), text[:count])
    print(f"float32 {exact:.3f}, auto {ours:.3f}: {ours / exact - 1:+.2%}")
    assert ours <= 1.02 * exact


@pytest.mark.long
def test_int8_without_the_kernels_costs_two_percent_at_most(
    checkpoint: Checkpoint, text: list[list[int]]
) -> None:
    """On a quarter of the text, for time's sake; `python -m bench.perplexity` takes it whole."""
    text = text[: WINDOWS // 4]
    exact = perplexity(PlainDecoder(checkpoint, resolve_precision("float32", CPU)), text)
    ours = perplexity(PlainDecoder(checkpoint, resolve_precision("int8", CPU)), text)
    print(f"float32 {exact:.3f}, int8 in torch {ours:.3f}: {ours / exact - 1:+.2%}")
    assert ours <= 1.02 * exact


class Coarse:
    """A checkpoint whose matrices are rounded to steps of 1/15 of each row's largest weight."""

    def __init__(self, checkpoint: Checkpoint) -> None:
        self.config = checkpoint.config
        self._weights = checkpoint.weights

    def weights(self) -> Iterator[tuple[str, Tensor]]:
        for name, weight in self._weights():
            step = weight.abs().amax(dim=-1, keepdim=True) / 15
            yield name, (weight / step).round() * step if weight.dim() == 2 else weight


@pytest.mark.long
def test_the_measure_sees_a_coarser_precision(
    checkpoint: Checkpoint, text: list[list[int]]
) -> None:
    """The negative control: 5 bits are too few."""
    float32 = resolve_precision("float32", CPU)
    exact = perplexity(PlainDecoder(checkpoint, float32), text[:2])
    coarse = PlainDecoder(cast(Checkpoint, Coarse(checkpoint)), float32)
    assert perplexity(coarse, text[:2]) > 1.02 * exact
