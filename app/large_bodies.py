"""Reads and checks large bodies in a thread beside the event loop, one after the other.

To make the objects of a body of megabytes takes up to 60 ms. The loop gets the interpreter back
from the thread within a switch interval (app/server.py), and goes on serving everybody else.
"""

import asyncio
import contextlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, Final

from app.errors import APIError, try_later
from app.fair_share import FairQueue

_CAPACITY: Final = 256  # bodies that may wait


@dataclass(slots=True, eq=False)
class _Job:
    read: Callable[[], Any]
    result: asyncio.Future[Any] = field(
        default_factory=lambda: asyncio.get_running_loop().create_future()
    )


class LargeBodies:
    """Clients take turns. A body is not read when its request has been cancelled."""

    def __init__(self) -> None:
        self._queue = FairQueue[_Job](_CAPACITY)
        self._thread = ThreadPoolExecutor(1, "large-bodies")
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        self._task = asyncio.create_task(self._work())

    async def stop(self) -> None:
        if self._task:
            self._task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._task
        self._thread.shutdown(wait=False)

    async def read(self, client: str, read: Callable[[], Any]) -> Any:
        """What `read` returns or raises. Raises APIError 429 where too many wait."""
        job = _Job(read)
        if not self._queue.put(client, job):
            raise _too_many()
        try:
            return await job.result
        finally:
            self._queue.discard(client, job)

    async def _work(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            job = await self._queue.get()
            reading = loop.run_in_executor(self._thread, job.read)
            await asyncio.wait([reading])
            fault = reading.exception()
            if job.result.done():  # nobody waits for it any more
                continue
            if fault:
                job.result.set_exception(fault)
            else:
                job.result.set_result(reading.result())


def _too_many() -> APIError:
    return try_later(
        429,
        f"too many large bodies of yours wait to be read (at most {_CAPACITY} of all clients may); "
        "try again when one is answered",
        code="bodies_full",
    )
