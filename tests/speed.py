"""How fast this machine is, so that a time limit gives a slow one the time it needs.

The limits in the tests were set on a quiet machine on which `work` takes REFERENCE seconds. Where
it takes longer, because the machine is slower or something else keeps it busy, `patience` stretches
them. It is for limits that only keep a test from hanging: what is proven is a ratio or a count.

`python -m tests.speed` does the work and prints how long each time took.
"""

import functools
import json
import os
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

import numpy as np

REFERENCE = 0.05
PROCESSES = 2  # as many as `make test` keeps busy: a core that others use is seen, too
SAMPLES = 4
SLACK = 2  # load comes and goes after it was measured
VARIABLE = "TICKERTAPE_TESTS_SLOWNESS"  # measured once, and handed on to every process of a run


# The fixture of tests/conftest.py: what happened, how long it took, how long it may take.
Promised = Callable[[str, float, float], None]


def patience(seconds: float) -> float:
    """That time limit on this machine: never shorter, and twice what its speed would allow."""
    return seconds * SLACK * slowness()


async def in_turn(times: int, *calls: Callable[[], Awaitable[object]]) -> tuple[list[float], ...]:
    """How long each call took, so many times; in turn, so that all meet the same load."""
    took: tuple[list[float], ...] = tuple([] for _ in calls)
    for _ in range(times):
        for call, seconds in zip(calls, took, strict=True):
            began = time.perf_counter()
            await call()
            seconds.append(time.perf_counter() - began)
    return took


@functools.cache
def slowness() -> float:
    """The longest time that the work took just now, in units of the reference; at least 1."""
    if VARIABLE not in os.environ:
        os.environ[VARIABLE] = str(max(1.0, max(samples()) / REFERENCE))
    return float(os.environ[VARIABLE])


def samples() -> list[float]:
    """Seconds by the wall clock, of several processes at once."""
    command = [sys.executable, "-m", "tests.speed"]
    root = Path(__file__).parents[1]
    env = os.environ | {"OPENBLAS_NUM_THREADS": "1"}
    running = [
        subprocess.Popen(command, cwd=root, env=env, stdout=subprocess.PIPE, text=True)
        for _ in range(PROCESSES)
    ]
    return [float(line) for process in running for line in process.communicate()[0].split()]


def work() -> None:
    """What the suite spends its time on: objects of Python, and a matrix larger than a cache."""
    matrix, vector = np.ones((2048, 2048), dtype=np.float32), np.ones(2048, dtype=np.float32)
    for _ in range(8):
        vector = matrix @ vector / 2048
        json.loads(json.dumps([{"token": number, "text": str(number)} for number in range(5000)]))


if __name__ == "__main__":
    for _ in range(SAMPLES):
        began = time.perf_counter()
        work()
        print(time.perf_counter() - began)
