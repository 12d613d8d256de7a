"""Carries out an attack and its twin, and compares what a bystander has seen of either."""

import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

import httpx

from tests.adversarial.attack import Attack, Step, Target
from tests.adversarial.bystander import Bystander, Window
from tests.adversarial.judge import Bounds, Violation, percentile

EVERY_SECONDS = 0.25
PATIENCE = 120.0  # seconds
MEMORY_AFTER = 160 << 20  # more than before: what an allocator keeps, and --tape-memory
MEMORY_DURING = 400 << 20
NEWCOMER = 2.0  # times the twin's
NOTICED = 1000.0  # milliseconds: who waits less has not been stopped


@dataclass
class Seen:
    window: Window
    memory_before: int
    memory_most: int
    memory_after: int
    idle: bool  # in the end

    @property
    def told(self) -> str:
        w = self.window
        return (
            f"/health {w.slowest_health:.0f} ms, gaps p99 {percentile(w.gaps, 99):.0f} longest "
            f"{w.longest_gap:.0f} ms, one token {max(w.newcomers, default=0):.0f} ms, 66 kB "
            f"{max(w.texts, default=0):.0f} ms, memory {self.memory_before >> 20} -> "
            f"{self.memory_most >> 20} -> {self.memory_after >> 20} MB"
        )


@dataclass
class Outcome:
    attack: Attack
    plain: Seen
    hostile: Seen
    violations: list[Violation] = field(default_factory=list)


class Comparison:
    """Of one server. `memory` says how many bytes it has."""

    def __init__(
        self, target: Target, bystander: Bystander, bounds: Bounds, memory: Callable[[], int]
    ) -> None:
        self._target = target
        self._bystander = bystander
        self._bounds = bounds
        self._memory = memory

    def carry_out(self, attack: Attack) -> Outcome:
        """What is wrong is tried again, and counts if it is wrong again."""
        outcome = self._once(attack)
        if outcome.violations:
            again = self._once(attack)
            kinds = {violation.what.partition(":")[0] for violation in again.violations}
            outcome.violations = [
                violation
                for violation in outcome.violations
                if violation.what.partition(":")[0] in kinds
            ]
        return outcome

    def memory_at_rest(self) -> int:
        self._idle()
        return self._memory()

    def _once(self, attack: Attack) -> Outcome:
        plain = self._see(attack.twin, attack.watched)
        hostile = self._see(attack.hostile, attack.watched)
        outcome = Outcome(attack, plain, hostile)
        outcome.violations = [
            Violation(attack.name, what) for what in _wrong(plain, hostile, self._bounds)
        ]
        return outcome

    def _see(self, step: Step, watched: float) -> Seen:
        """The bystander's window from its beginning until it is as before, and memory."""
        self._idle()
        before = most = self._memory()
        self._bystander.window("newcomers")
        seen, last = Window(), Window()
        deadline = time.monotonic() + PATIENCE
        calm = 0.0
        with ThreadPoolExecutor(1) as attacker:
            attacking = attacker.submit(step, self._target)
            while (calm < watched or _waits(last)) and time.monotonic() < deadline:
                time.sleep(EVERY_SECONDS)
                last = self._bystander.window()
                seen.add(last)
                most = max(most, self._memory())
                calm = calm + EVERY_SECONDS if attacking.done() else 0.0
        attacking.result()
        self._bystander.window("quiet")
        idle = self._idle()
        return Seen(seen, before, most, self._memory(), idle)

    def _idle(self) -> bool:
        """Whether nothing but the bystander's stream is there, in time."""
        deadline = time.monotonic() + PATIENCE
        while time.monotonic() < deadline:
            health = httpx.get(f"http://127.0.0.1:{self._target.port}/health", timeout=300).json()
            if health["running"] <= 1 and health["waiting"] == health["paused"] == 0:
                return True
            time.sleep(EVERY_SECONDS)
        return False


def _waits(window: Window) -> bool:
    """Whether somebody has waited for longer than he should, and still does."""
    waits = [*window.newcomers[-1:], *window.texts[-1:], *window.gaps[-1:], *window.health[-1:]]
    return max(waits, default=0.0) > NOTICED


def _wrong(plain: Seen, hostile: Seen, bounds: Bounds) -> list[str]:
    found = list(dict.fromkeys(f"bystander: {fault}" for fault in hostile.window.faults))
    health = hostile.window.slowest_health
    if health > bounds.health:
        found.append(f"/health: {health:.0f} ms")
    gap, usual = hostile.window.longest_gap, plain.window.longest_gap
    typical = percentile(hostile.window.gaps, 99) / percentile(plain.window.gaps, 99)
    if gap > bounds.gap * usual and (typical > bounds.gap or gap > NOTICED):
        found.append(f"the stream stood still: {gap:.0f} ms, {usual:.0f} beside its twin")
    for name, what in (("newcomers", "one token"), ("texts", "66 kB")):
        worst = max(getattr(hostile.window, name), default=0.0)
        usual = max(getattr(plain.window, name), default=0.0)
        if worst > max(NEWCOMER * usual, NOTICED):
            found.append(f"{what} took: {worst:.0f} ms, {usual:.0f} beside its twin")
    if not hostile.idle:
        found.append(f"work left: more than {PATIENCE:.0f} s later")
    if hostile.memory_most > hostile.memory_before + MEMORY_DURING:
        found.append(f"memory grew: {(hostile.memory_most - hostile.memory_before) >> 20} MB")
    return found + kept_memory(hostile.memory_before, hostile.memory_after)


def kept_memory(before: int, after: int) -> list[str]:
    """What is wrong about it, if anything."""
    kept = after - before
    return [f"memory kept: {kept >> 20} MB"] if kept > MEMORY_AFTER else []
