"""What a load asks for, and when."""

from itertools import pairwise

import msgspec
import pytest
from scipy import stats

from bench.comparison import Plan
from bench.load import WORDS, Load
from model.text.tokenizer import Tokenizer

PLAN = Plan([1, 8], [0.5], words=64, new_tokens=128, requests=2, rounds=3, seed="s")


def gaps(load: Load) -> list[float]:
    times = list(load.arrivals())
    return [later - earlier for earlier, later in pairwise([0.0, *times])]


def test_prompts_are_the_seeds_and_have_their_length() -> None:
    load = Load(20, words=30, seed="a")
    assert load.prompts() == load.prompts()
    assert all(len(prompt.split()) == 30 for prompt in load.prompts())
    assert len(set(load.prompts())) == 20
    assert set(load.prompts()).isdisjoint(Load(20, words=30, seed="b").prompts())


def test_a_word_is_a_token_of_the_default_model(tokenizer: Tokenizer) -> None:
    assert all(len(tokenizer.encode(f" {word}")) == 1 for word in WORDS)


@pytest.mark.parametrize("rate", [0.5, 40.0])
def test_arrivals_are_poisson(rate: float) -> None:
    """Exponential gaps, by Kolmogorov and Smirnov; the seed is fixed, so this cannot flicker."""
    sample = gaps(Load(2000, rate=rate, seed="arrivals"))
    assert min(sample) >= 0
    assert stats.kstest(sample, "expon", args=(0, 1 / rate)).pvalue > 0.01
    assert stats.kstest(sample, "expon", args=(0, 1.2 / rate)).pvalue < 0.001


def test_a_plan_has_a_load_for_each_concurrency_and_rate() -> None:
    one, eight, opened = PLAN.loads()
    assert (one.label, one.concurrency, one.requests) == ("1", 1, 4)
    assert (eight.label, eight.concurrency, eight.requests) == ("8", 8, 16)
    assert (opened.label, opened.rate, opened.requests) == ("0.5/s", 0.5, 16)


def test_no_two_rounds_share_a_prompt() -> None:
    """Or a prefix cache would answer for the engine."""
    loads = [PLAN.again(load, n) for load in PLAN.loads() for n in range(PLAN.rounds)]
    prompts = [prompt for load in [*loads, PLAN.warm_up] for prompt in load.prompts()]
    assert len(set(prompts)) == len(prompts)


def test_a_load_crosses_the_pipe_unchanged() -> None:
    load = Load(3, rate=2.5, seed="x")
    assert msgspec.json.decode(msgspec.json.encode(load), type=Load) == load
