"""Frames -> bytes on the socket: one response class for every streaming route.

Built on sse-starlette, which does the headers, the pings and the watch for a client that leaves.
Three things are done here on purpose:

- The reader is detached in `__call__`, not in the generator: a generator that was never started
  does not run its `finally`.
- Frames are yielded as bytes, made by the dialect: sse-starlette's own event objects cannot
  share one write.
- One timer watches all sends of a response: sse-starlette makes a cancel scope for each, which
  costs more than all else that happens to a frame.
"""

import asyncio
import logging
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from functools import partial
from types import TracebackType
from typing import Protocol, Self

from sse_starlette import EventSourceResponse
from starlette.responses import Response
from starlette.types import Message, Receive, Scope, Send

from app.metrics import Metrics
from app.normal_requests import asks_for_head
from app.tapes.position import Position
from app.tapes.registry import Registry
from app.tapes.tape import End, Entry, Gap, Progress, Tape

logger = logging.getLogger("tickertape.sse")


class Dialect(Protocol):
    """One wire format: from what a tape holds to frames. No sockets, no clocks.

    One whose frames depend on earlier entries is made anew for each reader.
    """

    def resume(self, entries: Sequence[Entry]) -> None:
        """What this reader has already: the frames go on after it."""

    def opening(self, position: Position) -> bytes: ...

    def frames(self, tape_id: str, last: int, batch: Sequence[Entry | End]) -> bytes: ...

    def gap(self, gap: Gap) -> bytes: ...

    def status(self, progress: Progress) -> bytes: ...

    def heartbeat(self, tape: Tape) -> bytes:
        """A comment that goes out on a silent stream."""


class SendWatch:
    """Raises TimeoutError out of its block when a send in it takes longer than `limit` seconds."""

    def __init__(self, limit: float) -> None:
        self._limit = limit
        self._loop = asyncio.get_running_loop()
        self._since: float | None = None  # when the send that is under way began
        self._cut = asyncio.timeout(None)

    async def __aenter__(self) -> Self:
        await self._cut.__aenter__()
        self._look()
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._timer.cancel()
        await self._cut.__aexit__(exc_type, exc, traceback)

    async def send(self, send: Send, message: Message) -> None:
        """Pass the message on to `send`."""
        if self._since is not None:  # a ping behind a frame that waits: that one is watched
            await send(message)
            return
        self._since = self._loop.time()
        try:
            await send(message)
        finally:
            self._since = None

    def _look(self) -> None:
        """Cut off, or look again when the send under way, or one that begins now, is overdue."""
        now = self._loop.time()
        due = (now if self._since is None else self._since) + self._limit
        if due <= now:
            self._cut.reschedule(now)
        else:
            self._timer = self._loop.call_at(due, self._look)


class Stream(EventSourceResponse):
    """Frames as they come, for a reader that is cut off when it takes none for `send_timeout`.

    Where they come often, there is no need for `ping`: 0 is none.
    """

    def __init__(
        self,
        frames: AsyncIterator[bytes],
        *,
        send_timeout: float,
        headers: Mapping[str, str] | None = None,
        ping: float = 0,
        ping_message: Callable[[], bytes] | None = None,
    ) -> None:
        self._watch = SendWatch(send_timeout)
        super().__init__(
            frames,
            headers={"Cache-Control": "no-store, no-transform", **(headers or {})},
            sep="\n",
            ping=ping,
            ping_message_factory=ping_message,  # type: ignore[arg-type]
        )

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if asks_for_head(scope):
            await Response(None, self.status_code, self.headers)(scope, receive, send)
            return
        try:
            async with self._watch:
                await super().__call__(scope, receive, partial(self._watch.send, send))
        except TimeoutError:
            self._was_cut()

    def _was_cut(self) -> None:
        logger.info("one who watched took nothing and was cut off")

    async def _send_with_timeout(self, send: Send, message: Message) -> None:
        """In place of sse-starlette's cancel scope: `send` is watched already."""
        await send(message)


class TapeResponse(Stream):
    """One reader of one tape, to the terminal entry: from the start, or on from after an entry."""

    def __init__(
        self,
        registry: Registry,
        tape: Tape,
        after: int | None,
        *,
        metrics: Metrics,
        dialect: Dialect,
        ping_interval: float,
        send_timeout: float,
    ) -> None:
        self._registry = registry
        self._tape = tape
        self._resumes = after is not None
        self._metrics = metrics
        super().__init__(
            _stream(tape, after or 0, dialect, metrics, known=tape.last),
            send_timeout=send_timeout,
            headers={"X-Tape": tape.id, "Content-Location": f"/v1/tapes/{tape.id}"},
            ping=ping_interval,
            ping_message=lambda: dialect.heartbeat(tape),
        )

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if asks_for_head(scope):
            await super().__call__(scope, receive, send)
            return
        self._registry.attach(self._tape)
        if self._resumes:
            self._tape.resumes += 1
            self._metrics.resumed()
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._registry.detach(self._tape)

    def _was_cut(self) -> None:
        logger.info("a reader of tape %s took nothing and was cut off", self._tape.id)
        self._metrics.cut()


async def _stream(
    tape: Tape, after: int, dialect: Dialect, metrics: Metrics, known: int
) -> AsyncIterator[bytes]:
    dialect.resume(tape.entries[: max(after - tape.num_dropped, 0)])
    yield dialect.opening(Position(tape.id, after))
    async for item in tape.read(after):
        if isinstance(item, list):
            after += len(item)
            yield dialect.frames(tape.id, after, item)
            metrics.handed_over(after, item, known)
        elif isinstance(item, Gap):
            after = item.last
            yield dialect.gap(item)
        else:
            yield dialect.status(item)
