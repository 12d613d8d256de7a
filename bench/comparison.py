"""The same loads against every target in turn: A B A B, because a machine's speed drifts."""

from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from dataclasses import dataclass, field
from statistics import median

import msgspec

from bench.bare import BareEngine, BareRun
from bench.figures import Figures, middle, ratio
from bench.generator import Run, run
from bench.load import Load
from bench.memory import Memory, memory
from bench.report import Row
from bench.stream import Target

BARE = "bare engine"
FEWEST_REQUESTS = 4

Say = Callable[[str], None]  # what is being measured now, for whoever waits


class Plan(msgspec.Struct, frozen=True):
    """What is measured. `requests` for each stream; an open loop has as many as the widest loop."""

    concurrency: list[int]
    rates: list[float]
    words: int
    new_tokens: int
    requests: int
    rounds: int
    seed: str

    def loads(self) -> list[Load]:
        """One for each part of the table; `again` gives each round prompts of its own."""
        closed = [
            self._load(requests=self.requests * count, concurrency=count)
            for count in self.concurrency
        ]
        opened = [
            self._load(self.requests * max(self.concurrency), rate=rate) for rate in self.rates
        ]
        return closed + opened

    def _load(self, requests: int, concurrency: int = 1, rate: float | None = None) -> Load:
        requests = max(requests, FEWEST_REQUESTS)
        return Load(requests, concurrency, rate, self.words, self.new_tokens)

    def again(self, load: Load, number: int) -> Load:
        return msgspec.structs.replace(load, seed=f"{self.seed} {load.label} {number}")

    @property
    def warm_up(self) -> Load:
        """As many streams as there will be, so that nothing is met for the first time later."""
        count = max([1, *self.concurrency])
        return Load(count, count, words=self.words, new_tokens=8, seed=f"{self.seed} warm")


@dataclass(slots=True)
class _Rounds:
    """What one target did under one load."""

    http: list[Run] = field(default_factory=list)
    bare: list[BareRun] = field(default_factory=list)
    memory: Memory | None = None

    @property
    def figures(self) -> list[Figures]:
        return [run.figures for run in self.http] + [run.figures for run in self.bare]


async def compare(
    plan: Plan,
    targets: Sequence[Target],
    bare: BareEngine | None,
    bandwidth: float | None,
    say: Say,
) -> AsyncIterator[Row]:
    """The first target is ours. Raises BenchError when one of them fails."""
    say("warm-up")
    for target in targets:
        await run(target, plan.warm_up)
    if bare:
        bare.run(plan.warm_up)
    for load in plan.loads():
        rounds = await _rounds(plan, load, targets, bare, say)
        for row in _rows(load, rounds, bandwidth):
            yield row


async def _rounds(
    plan: Plan,
    load: Load,
    targets: Sequence[Target],
    bare: BareEngine | None,
    say: Say,
) -> dict[str, _Rounds]:
    found = {target.name: _Rounds() for target in targets[:1]}
    if bare and not load.rate:
        found[BARE] = _Rounds()
    found |= {target.name: _Rounds() for target in targets[1:]}
    for number in range(plan.rounds):
        fresh = plan.again(load, number)
        for target in targets:
            say(f"load {load.label}, round {number + 1}: {target.name}")
            found[target.name].http.append(await run(target, fresh))
        if bare and not load.rate:
            say(f"load {load.label}, round {number + 1}: {BARE}")
            found[BARE].bare.append(bare.run(fresh))
    for target in targets:
        found[target.name].memory = memory(target.pid) if target.pid else None
    return found


def _rows(load: Load, rounds: dict[str, _Rounds], bandwidth: float | None) -> Iterator[Row]:
    ours = next(iter(rounds.values())).figures
    for name, found in rounds.items():
        step_ms, step_bytes = _step(found.bare)
        share = step_bytes / (step_ms / 1000) / bandwidth if step_ms and bandwidth else None
        yield Row(
            load=load.label,
            target=name,
            figures=middle(found.figures),
            rounds=found.figures,
            ours_over_it=ratio(ours, found.figures),
            generator_share=max((run.generator_share for run in found.http), default=0.0),
            memory=found.memory,
            step_ms=step_ms or None,
            step_bytes=step_bytes or None,
            bandwidth_share=share,
        )


def _step(runs: Sequence[BareRun]) -> tuple[float, float]:
    """Medians of the decode step's milliseconds and bytes; zeros where there was none."""
    steps = [(run.step_ms, run.step_bytes) for run in runs if run.step_ms and run.step_bytes]
    if not steps:
        return 0.0, 0.0
    return median(ms for ms, _ in steps), median(size for _, size in steps)
