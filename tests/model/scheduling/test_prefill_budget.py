"""The pace against simulated machines: streams keep their rhythm, and prompts are not starved."""

import itertools
import random
from collections.abc import Callable
from dataclasses import dataclass, field
from statistics import median, quantiles
from typing import cast

import pytest

from model.protocol.sampling_params import SamplingParams
from model.scheduling.block_pool import BlockPool
from model.scheduling.prefill_budget import MIN_TOKENS, PrefillBudget
from model.scheduling.scheduler import Scheduler
from model.scheduling.sequence import Sequence
from model.text.detokenizer import Detokenizer

# Seconds of a step by its rows. The first waits for its weights up to 23 rows, as one that is bound
# by memory; the others have costs that every step and every row pays.
Machine = Callable[[int], float]
MACHINES: dict[str, Machine] = {
    "bound by memory": lambda rows: max(0.005, 0.00022 * rows),
    "between": lambda rows: 0.012 + 0.0003 * min(rows, 8) + 0.00015 * max(rows - 8, 0),
    "bound by compute": lambda rows: 0.005 + 0.00015 * rows,
}


@dataclass
class Simulation:
    """A scheduler and a clock that the machine moves, with noise, and outliers of four times."""

    machine: Machine
    pace: PrefillBudget | None
    draw: random.Random = field(default_factory=lambda: random.Random(1))
    now: float = 0.0
    tokens: dict[str, list[float]] = field(default_factory=dict)
    born: dict[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        pool = BlockPool(6000, 16)
        self.scheduler = Scheduler(pool, max_num_seqs=64, max_step_tokens=512)

    def add(self, id: str, prompt: int, max_tokens: int) -> None:
        ids = [self.draw.randrange(50_000) for _ in range(prompt)]
        params = SamplingParams(max_tokens=max_tokens, seed=0)
        self.scheduler.add(
            Sequence(
                token_ids=ids,
                params=params,
                id=id,
                detokenizer=cast(Detokenizer, None),
                arrived=self.now,
            )
        )
        self.born[id] = self.now
        self.tokens[id] = []

    def step(self) -> None:
        plan = self.scheduler.schedule(self.pace)
        decoding, prefill = plan.num_decoding, plan.num_prefill_tokens
        assert decoding + prefill, "there is always something to do here"
        seconds = self.machine(decoding + prefill) * self.draw.gauss(1, 0.04)
        seconds *= 4 if self.draw.random() < 0.002 else 1
        self.now += seconds
        sampling = [chunk.sequence for chunk in plan.chunks if chunk.num_logits]
        self.scheduler.computed(plan.chunks)
        for sequence in sampling:
            sequence.token_ids.append(self.draw.randrange(50_000))
            self.tokens[sequence.id].append(self.now)
            if sequence.num_output == sequence.params.max_tokens:
                self.scheduler.remove(sequence.id)
        if self.pace:
            self.pace.observe(decoding, prefill, seconds)

    def streams(self, seconds: float, *, prompts: bool) -> list[float]:
        """The times between the tokens of 8 streams, while long prompts come once a second."""
        for number in range(8):
            self.add(f"stream {number}", 100, 10**6)
        for second in itertools.count(1):
            while self.now < second:
                self.step()
            if second >= seconds:
                break
            if prompts:
                self.add(f"prompt {second}", 1500, 1)
        times = [self.tokens[f"stream {number}"] for number in range(8)]
        return [after - before for one in times for before, after in itertools.pairwise(one)]

    def first_token_seconds(self, kind: str) -> list[float]:
        return [
            times[0] - self.born[id]
            for id, times in self.tokens.items()
            if id.startswith(kind) and times
        ]

    def closed_loop(self, concurrency: int, seconds: float) -> float:
        """Tokens a second, with prompts of 100 tokens and outputs of 128."""
        numbers = itertools.count()
        while self.now < seconds:
            while len(self.scheduler._sequences) < concurrency:
                self.add(str(next(numbers)), 100, 128)
            self.step()
        return sum(map(len, self.tokens.values())) / self.now


def p99(values: list[float]) -> float:
    return quantiles(values, n=100)[98]


@pytest.mark.parametrize("machine", MACHINES.values(), ids=MACHINES)
def test_streams_keep_their_rhythm_while_long_prompts_come(machine: Machine) -> None:
    usual = median(Simulation(machine, PrefillBudget()).streams(12, prompts=False))
    busy = Simulation(machine, PrefillBudget())
    times = busy.streams(25, prompts=True)
    first = busy.first_token_seconds("prompt")
    print(f"p99 {p99(times) / usual:.2f} x the usual, first tokens after {median(first):.2f} s")
    assert p99(times) <= 1.5 * usual
    if machine is MACHINES["bound by memory"]:
        assert max(first) < 1


def test_without_a_pace_streams_lose_their_rhythm() -> None:
    """The negative control."""
    machine = MACHINES["bound by memory"]
    usual = median(Simulation(machine, None).streams(4, prompts=False))
    assert p99(Simulation(machine, None).streams(8, prompts=True)) > 3 * usual


@pytest.mark.parametrize("concurrency", [8, 64])
@pytest.mark.parametrize("machine", MACHINES.values(), ids=MACHINES)
def test_throughput_is_that_of_unlimited_prefill(machine: Machine, concurrency: int) -> None:
    limited = Simulation(machine, PrefillBudget()).closed_loop(concurrency, 25)
    unlimited = Simulation(machine, None).closed_loop(concurrency, 25)
    print(f"{limited:.0f} tokens/s, {unlimited:.0f} without a pace")
    assert limited >= 0.9 * unlimited


def test_nothing_is_limited_while_nothing_decodes() -> None:
    pace = PrefillBudget()
    assert pace.prefill_tokens(0, 3, 512) == 512


def test_a_load_is_measured_without_prefill_before_it_gets_any() -> None:
    pace = PrefillBudget()
    assert pace.prefill_tokens(8, 1, 512) == 0
    pace.observe(8, 0, 0.01)
    assert pace.prefill_tokens(8, 1, 512) == MIN_TOKENS
    assert pace.prefill_tokens(8, 1, 5) == 5


def test_an_outlier_moves_the_price_of_a_token_by_a_twentieth() -> None:
    pace = PrefillBudget()
    for _ in range(300):
        tokens = pace.prefill_tokens(8, 1, 512)
        pace.observe(8, tokens, 0.010 + 0.0001 * tokens)
    usual = pace.prefill_tokens(8, 1, 512)
    pace.observe(8, usual, 5.0)
    assert usual == pytest.approx(0.010 / 3 / 0.0001, rel=0.1)
    assert pace.prefill_tokens(8, 1, 512) >= int(usual / 1.05)


def test_short_prompts_do_not_make_long_ones_cheap() -> None:
    """Four tokens ride along for nothing, a hundred times: a long chunk still has its price."""
    pace = PrefillBudget()
    pace.observe(0, 100, 0.022)
    for _ in range(100):
        allowed = pace.prefill_tokens(8, 1, 512)
        pace.observe(8, min(allowed, 4), 0.005)
    assert pace.prefill_tokens(8, 1, 512) in (0, MIN_TOKENS)


def test_a_first_prompt_may_take_as_long_as_three_steps_of_the_decodes_that_wait_for_it() -> None:
    pace = PrefillBudget()
    assert pace.first_prompt_tokens(64, 512) == 0, "nothing was measured"
    pace.observe(0, 100, 0.1)
    assert pace.first_prompt_tokens(64, 512) == 0
    pace.observe(64, 0, 0.08)
    assert pace.first_prompt_tokens(64, 512) == 240
    assert pace.first_prompt_tokens(64, 50) == 50


def test_a_first_prompt_beside_more_decodes_than_ever_may_take_as_long_as_beside_fewer() -> None:
    """While a flood arrives, every step has more decodes than the last: none was measured."""
    pace = PrefillBudget()
    pace.observe(0, 100, 0.1)
    pace.observe(32, 0, 0.04)
    pace.observe(48, 100, 0.2)
    assert pace.first_prompt_tokens(64, 512) == 120
    assert pace.first_prompt_tokens(8, 512) == 0


def test_a_few_prompt_tokens_do_not_make_many_look_dear() -> None:
    """A step reads all weights, however few they are."""
    pace = PrefillBudget()
    pace.observe(64, 0, 0.08)
    pace.observe(0, 100, 0.1)
    pace.observe(0, 3, 0.05)
    assert pace.first_prompt_tokens(64, 512) == 240
    pace.observe(0, 100, 0.2)
    assert pace.first_prompt_tokens(64, 512) == 120, "a machine that has become slower does"
