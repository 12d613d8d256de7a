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
from collections.abc import AsyncIterator, Callable, Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from types import TracebackType
from typing import Any, Final, Protocol, Self

from sse_starlette import EventSourceResponse
from starlette.responses import Response
from starlette.types import Message, Receive, Scope, Send

from app.guard.normal_requests import asks_for_head
from app.observability.metrics import Metrics
from app.readers.frame_cache import Frame, FrameCache, Place
from app.readers.turns import Turns, paced
from app.sockets.send_buffer import EXTENSION, Sending
from app.tapes.event_id import Position
from app.tapes.heads import Head, Mark
from app.tapes.registry import Registry
from app.tapes.tape import End, Entry, Gap, Progress, Tape, pages

logger = logging.getLogger("tickertape.sse")

# Nothing on the way may keep a stream, nor merge its frames or compress them (RFC 9111, 5.2.2).
_CACHE_CONTROL: Final = {"Cache-Control": "no-store, no-transform"}

_LOOKS: Final = 4  # at what waits, in the time in which some of it has to be taken


class Dialect(Protocol):
    """One wire format: from what a tape holds to frames. No sockets, no clocks.

    One whose frames depend on earlier entries is made anew for each reader. All readers of a tape
    with the same `kind` get the same frames for the same entries, and `state` is what frames depend
    on beside their own.
    """

    @property
    def kind(self) -> Hashable: ...

    state: Any

    def skip(self, entries: Sequence[Entry]) -> None:
        """What this reader has already, a page at a time: the frames go on after it."""

    def opening(self, position: Position) -> bytes: ...

    def frames(self, tape_id: str, last: int, entries: Sequence[Entry]) -> bytes:
        """Of a page at most."""

    def ending(self, tape_id: str, last: int, end: End) -> Iterator[bytes]:
        """The terminal entry, in pieces as app/api/json_pieces.py makes them."""

    def gap(self, gap: Gap) -> bytes: ...

    def status(self, progress: Progress) -> bytes: ...

    def heartbeat(self, tape: Tape) -> bytes:
        """A comment that goes out on a silent stream."""


class SendWatch:
    """Raises TimeoutError out of its block when a reader takes nothing for `limit` seconds.

    Where the `sending` is not known, each send has the `limit` for itself.
    """

    def __init__(self, limit: float, sending: Sending | None = None) -> None:
        self._limit = limit
        self._sending = sending
        self._taken, self._left = 0, 0  # bytes, when it was last looked at
        self._loop = asyncio.get_running_loop()
        self._moved = self._loop.time()  # when something was last seen to be taken, or none waited
        self._since: float | None = None  # when the send under way began
        self._cut = asyncio.timeout(None)

    async def __aenter__(self) -> Self:
        await self._cut.__aenter__()
        if self._sending:
            self._sending.close_when_stuck(0)
        self._look()
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._timer.cancel()
        if self._sending and exc_type:  # what still waits may go
            self._sending.close_when_stuck(self._limit)
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
        """Cut off when what waits has not moved for too long; else look again soon."""
        now = self._loop.time()
        taken, left = (self._sending.taken(), self._sending.unsent()) if self._sending else (0, 0)
        waits = left > 0 or self._since is not None
        if not waits or taken != self._taken or left < self._left:
            self._moved = now
        self._taken, self._left = taken, left
        if now >= (due := max(self._moved, self._since or 0.0) + self._limit):
            self._cut.reschedule(now)
            return
        self._timer = self._loop.call_at(min(due, now + self._limit / _LOOKS), self._look)


class EventStreamResponse(EventSourceResponse):
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
        self._send_timeout = send_timeout
        super().__init__(
            frames,
            headers=_CACHE_CONTROL | dict(headers or {}),
            sep="\n",
            ping=ping,
            ping_message_factory=ping_message,  # type: ignore[arg-type]
        )

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if asks_for_head(scope):
            await Response(None, self.status_code, self.headers)(scope, receive, send)
            return
        sending = scope.get("extensions", {}).get(EXTENSION, {}).get("sending")
        try:
            async with SendWatch(self._send_timeout, sending) as watch:
                await super().__call__(scope, receive, partial(watch.send, send))
        except TimeoutError:
            self._was_cut()

    def _was_cut(self) -> None:
        logger.info("one who watched took nothing and was cut off")

    async def _send_with_timeout(self, send: Send, message: Message) -> None:
        """In place of sse-starlette's cancel scope: `send` is watched already."""
        await send(message)


class TapeResponse(EventStreamResponse):
    """One reader of one tape, to the terminal entry: from the start, or on from after an entry."""

    def __init__(
        self,
        registry: Registry,
        tape: Tape,
        after: int | None,
        *,
        metrics: Metrics,
        turns: Turns,
        cache: FrameCache,
        dialect: Dialect,
        ping_interval: float,
        send_timeout: float,
    ) -> None:
        self._registry = registry
        self._tape = tape
        self._after = after
        self._head = Head(after or 0)
        self._metrics = metrics
        super().__init__(
            _stream(_Reading(tape, dialect, cache, self._head), metrics, turns, known=tape.last),
            send_timeout=send_timeout,
            headers={
                "X-Tape": tape.id,
                "X-Reader": str(self._head.reader),
                "Content-Location": f"/v1/tapes/{tape.id}",
            },
            ping=ping_interval,
            ping_message=lambda: dialect.heartbeat(tape),
        )

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if asks_for_head(scope):
            await super().__call__(scope, receive, send)
            return
        tape, head = self._tape, self._head
        tape.heads.reading.append(head)
        self._registry.add_reader(tape)
        if self._after is not None:
            tape.resumes += 1
            replayed = tape.last - self._after
            tape.mark(Mark("resume", self._after, head.reader, replayed))
            self._metrics.resumed()
        try:
            await super().__call__(scope, receive, send)
        finally:
            tape.heads.reading.remove(head)
            if head.entry < tape.last or not tape.has_ended:
                tape.mark(Mark("leave", head.entry, head.reader))
            self._registry.remove_reader(tape)

    def _was_cut(self) -> None:
        logger.info("a reader of tape %s took nothing and was cut off", self._tape.id)
        self._metrics.cut()


@dataclass(slots=True)
class _Reading:
    """What one reader of a tape gets. `is_whole` where nothing is missing before what comes."""

    tape: Tape
    dialect: Dialect
    cache: FrameCache
    head: Head
    is_whole: bool = True

    def frames(self, last: int, entries: Sequence[Entry]) -> bytes:
        """Made once for all readers who stand at the same place, where there are several."""
        tape, dialect = self.tape, self.dialect
        if tape.readers < 2 or not (self.is_whole or dialect.state is None):
            return dialect.frames(tape.id, last, entries)
        place = Place(tape.id, dialect.kind, last - len(entries), last)
        if frame := self.cache.get(place):
            dialect.state = frame.state
            return frame.data
        data = dialect.frames(tape.id, last, entries)
        self.cache.add(place, Frame(data, dialect.state))
        return data


async def _stream(
    reading: _Reading, metrics: Metrics, turns: Turns, known: int
) -> AsyncIterator[bytes]:
    tape, dialect, head = reading.tape, reading.dialect, reading.head
    after = head.entry
    turn = partial(turns.take, tape.client)
    reading.is_whole = not (after and tape.num_dropped)
    for page in pages(tape.entries[: max(after - tape.num_dropped, 0)]):
        await turn()
        dialect.skip(page)
    yield dialect.opening(Position(tape.id, after))
    async for item in tape.read(after, turn):
        if isinstance(item, list):
            after += len(item)
            yield reading.frames(after, item)
            head.entry = after
            metrics.handed_over(after, item, known)
        elif isinstance(item, End):
            after += 1
            async for piece in paced(dialect.ending(tape.id, after, item), turn):
                yield piece
            head.entry = after
            metrics.handed_over(after, [item], known)
        elif isinstance(item, Gap):
            after, reading.is_whole = item.last, False
            yield dialect.gap(item)
        else:
            yield dialect.status(item)
