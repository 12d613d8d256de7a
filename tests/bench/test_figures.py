"""Percentiles, latencies and ratios: by hand, and as properties."""

import math
from statistics import median

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bench.figures import Answer, Figures, Percentiles, figures, middle, percentiles, ratio

seconds = st.floats(min_value=0, max_value=1e4)


def answer(sent: float, *arrivals: tuple[float, int]) -> Answer:
    tokens = sum(count for _, count in arrivals)
    return Answer(sent, list(arrivals), prompt_tokens=10, completion_tokens=tokens)


def at(tokens_per_second: float) -> Figures:
    some = Percentiles(1.0, 2.0, 3.0)
    return Figures(tokens_per_second, 1.0, 1, 1.0, 1.0, some, some, some)


def test_percentiles_interpolate() -> None:
    found = percentiles([n / 1000 for n in range(101)])
    assert (found.p50, found.p90, found.p99) == pytest.approx((50, 90, 99))
    assert percentiles([1.0, 2.0]).p90 == pytest.approx(1900)


def test_percentiles_of_nothing_are_no_numbers() -> None:
    assert all(math.isnan(p) for p in (percentiles([]).p50, percentiles([]).p99))


@given(st.lists(seconds, min_size=1))
def test_percentiles_lie_in_order_within_the_sample(sample: list[float]) -> None:
    found = percentiles(sample)
    low, high = min(sample) * 1000, max(sample) * 1000
    near = 1e-9 * (1 + high)
    assert low - near <= found.p50 <= found.p90 + near <= found.p99 + 2 * near <= high + 3 * near
    assert found.p50 == pytest.approx(median(sample) * 1000)


def test_latencies_of_one_answer() -> None:
    """A frame with three tokens is one gap, and three tokens for the time per token."""
    found = answer(10.0, (10.5, 1), (10.7, 1), (11.5, 3))
    assert found.ttft == pytest.approx(0.5)
    assert found.gaps == pytest.approx([0.2, 0.8])
    assert found.tpot == pytest.approx(1.0 / 4)


def test_throughput_counts_from_the_first_request_to_the_last_token() -> None:
    found = figures([answer(0.0, (1.0, 1), (2.0, 1)), answer(1.0, (3.0, 1), (4.0, 3))])
    assert found.seconds == 4.0
    assert found.tokens_per_second == 6 / 4
    assert (found.answers, found.prompt_tokens, found.new_tokens) == (2, 10.0, 3.0)
    assert found.ttft_ms.p50 == pytest.approx(1500)


def test_an_answer_of_one_token_has_no_gaps() -> None:
    found = figures([answer(0.0, (1.0, 1))])
    assert math.isnan(found.itl_ms.p50)
    assert found.tpot_ms.p50 == 0


def test_the_middle_of_rounds_is_taken_figure_by_figure() -> None:
    rounds = [figures([answer(0.0, (1.0, 1), (t, 1))]) for t in (2.0, 9.0, 3.0)]
    assert middle(rounds) == rounds[2]


def test_ratios_are_taken_inside_a_round() -> None:
    """The machine was twice as fast in the second round; neither target gained by it."""
    ours, theirs = [at(100), at(200), at(100)], [at(50), at(100), at(50)]
    assert ratio(ours, theirs) == 2.0
    with pytest.raises(ValueError, match="shorter"):
        ratio(ours, theirs[:2])
