"""Memory that large bodies have left free within the heap goes back to the system."""

import asyncio
import ctypes
from collections.abc import Callable
from contextlib import suppress
from typing import Final

_EVERY: Final = 32 << 20  # bytes of bodies
_DELAY: Final = 2.0  # seconds after the body that makes it due, when what was made of it is gone


def trim() -> None:
    """Milliseconds for a hundred megabytes. Only glibc has it, and only there it is needed."""
    with suppress(AttributeError, OSError):
        ctypes.CDLL(None).malloc_trim(0)


class Heap:
    """Calls `trim` once for every 32 MB of bodies.

    glibc gives back only what is free at the heap's end, and what a tape keeps may lie there: after
    5,000 hostile bodies the server held 150 MB more than before.
    """

    def __init__(self, trim: Callable[[], None] = trim) -> None:
        self._trim = trim
        self._freed = 0
        self._due: asyncio.TimerHandle | None = None

    def freed(self, size: int) -> None:
        """So many bytes of a body are needed no more."""
        self._freed += size
        if self._freed >= _EVERY and self._due is None:
            self._due = asyncio.get_running_loop().call_later(_DELAY, self._now)

    def _now(self) -> None:
        self._freed, self._due = 0, None
        self._trim()
