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
from typing import Final, TypeVar

T = TypeVar("T")


_NICEST: Final = 19


def _step_back() -> None:
    """On Linux a thread has a priority of its own; elsewhere it would be the whole process's."""
    if sys.platform == "linux":
        with contextlib.suppress(OSError):
            os.setpriority(os.PRIO_PROCESS, 0, _NICEST)


_threads = ThreadPoolExecutor(2, "quiet", _step_back)


async def quietly(function: Callable[[], T]) -> T:
    """What it returns, some time."""
    return await asyncio.get_running_loop().run_in_executor(_threads, function)
