"""Frames -> bytes on the socket: one response class for every streaming route.

Built on sse-starlette, which does the headers, the pings, the send timeout and the watch for a
client that leaves. Two things are done here on purpose:

- The reader is detached in `__call__`, not in the generator: a generator that was never started
  does not run its `finally`.
- Frames are yielded as bytes, made by the dialect: sse-starlette's own event objects cannot
  share one write.
"""

import logging
from collections.abc import AsyncIterator, Callable, Sequence

from sse_starlette import EventSourceResponse, ServerSentEvent
from sse_starlette.sse import SendTimeoutError
from starlette.types import Receive, Scope, Send

from app.tapes.registry import Registry
from app.tapes.tape import End, Entry, Tape

logger = logging.getLogger("tickertape.sse")

Frames = Callable[[str, int, Sequence[Entry | End]], bytes]


class TapeResponse(EventSourceResponse):
    """One reader of one tape, from after entry `after` to the terminal entry."""

    def __init__(
        self,
        registry: Registry,
        tape: Tape,
        after: int,
        *,
        opening: bytes,
        frames: Frames,
        ping_interval: float,
        send_timeout: float,
    ) -> None:
        self._registry = registry
        self._tape = tape
        super().__init__(
            _stream(tape, after, opening, frames),
            headers={"X-Tape": tape.id, "Content-Location": f"/v1/tapes/{tape.id}"},
            sep="\n",
            ping=ping_interval,
            ping_message_factory=lambda: ServerSentEvent(comment="ping", sep="\n"),
            send_timeout=send_timeout,
        )

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self._registry.attach(self._tape)
        try:
            await super().__call__(scope, receive, send)
        except SendTimeoutError:
            logger.info("a reader of tape %s took nothing and was cut off", self._tape.id)
        finally:
            self._registry.detach(self._tape)


async def _stream(tape: Tape, after: int, opening: bytes, frames: Frames) -> AsyncIterator[bytes]:
    yield opening
    async for batch in tape.read(after):
        after += len(batch)
        yield frames(tape.id, after, batch)
