"""Work that may take its time: done by threads that leave the processor to whoever wants it.

For what computes outside of the interpreter lock only: a thread that waits for the processor with
the lock in its hand would hold up everybody.
"""

import asyncio
import contextlib
import os
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

T = TypeVar("T")

def _step_back() -> None:
    """Linux lets a thread run only when its processor is idle (sched(7), SCHED_IDLE).

    A nice value is not enough: who is nice still keeps the processor for milliseconds when another
    thread wakes, and the engine's threads wake hundreds of times for each token.
    """
    if sys.platform == "linux":
        with contextlib.suppress(OSError):
            os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))


_threads = ThreadPoolExecutor(2, "quiet", _step_back)


async def quietly(function: Callable[[], T]) -> T:
    """What it returns, some time."""
    return await asyncio.get_running_loop().run_in_executor(_threads, function)
