"""uvicorn's HTTP on httptools, with bounds on what a connection may send and how slowly.

What never becomes a request is refused here: a head that is too large, too slow or malformed, and
a body that is announced too large. Such an answer has the shape of all our errors. And three things
are mended: an HTTP/1.0 client gets no chunks, a stream that has a request waiting behind it learns
that its reader has left, and the answer to garbage behind a stream does not get into the stream.

For a frame of a stream nothing is done here.
"""

import asyncio
import logging
from collections.abc import Iterable
from typing import Any

from uvicorn._types import ASGI3Application
from uvicorn.config import Config
from uvicorn.protocols.http.httptools_impl import (
    STATUS_LINE,
    HttpToolsProtocol,
    RequestResponseCycle,
)
from uvicorn.server import ServerState

from app.errors import APIError, body_too_large
from app.requests import new_request_id
from app.settings import Settings

logger = logging.getLogger("tickertape.requests")

# How long a refused client may go on sending before the connection is closed. Closed at once, the
# kernel would answer with a reset what it sends, and that may overtake the refusal.
_LINGER_SECONDS = 2.0

_KEEP_ALIVE = (b"connection", b"keep-alive")


class LimitedHttp(HttpToolsProtocol):
    """One connection."""

    _settings: Settings

    def __init__(
        self,
        config: Config,
        server_state: ServerState,
        app_state: dict[str, Any],
        _loop: asyncio.AbstractEventLoop | None = None,
    ) -> None:
        super().__init__(config, server_state, app_state, _loop)
        self._running: RequestResponseCycle | None = None  # self.cycle is the last that came in
        self._in_head = False
        self._head_size = 0
        self._unfinished = 0  # bytes that have brought the parser no further
        self._overdue: asyncio.TimerHandle | None = None
        self._fault: APIError | None = None  # found while the parser runs
        self._closing = False

    # ---- the connection

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._expect_progress()

    def connection_lost(self, exc: Exception | None) -> None:
        self._cancel_overdue()
        if self._running:
            _disconnect(self._running)
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        if self._closing:
            return
        self._unfinished += len(data)
        super().data_received(data)
        if self._closing:
            return
        if self._unfinished > self._settings.max_header_size:
            self._refuse(_head_too_large(self._settings))
        elif self._in_head or self._unfinished:
            self._expect_progress()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        if self._closing and not self._answering:
            self.transport.close()

    # ---- a request

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._in_head = True
        self._head_size = 0
        self._unfinished = 0

    def on_url(self, url: bytes) -> None:
        super().on_url(url)
        if len(self.url) > self._settings.max_request_line:
            raise self._found(_url_too_long(self._settings))

    def on_header(self, name: bytes, value: bytes) -> None:
        super().on_header(name, value)
        self._head_size += len(name) + len(value)
        if self._head_size > self._settings.max_header_size:
            raise self._found(_head_too_large(self._settings))
        if name.lower() == b"content-length" and int(value) > self._settings.max_body_size:
            raise self._found(body_too_large(self._settings.max_body_size))

    def on_headers_complete(self) -> None:
        self._in_head = False
        self._progress()
        super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        self._progress()
        super().on_body(body)

    def on_message_complete(self) -> None:
        self._progress()
        super().on_message_complete()

    def _start_asgi_task(self, cycle: RequestResponseCycle, app: ASGI3Application) -> None:
        self._running = cycle
        if cycle.scope["http_version"] == "1.0":
            app = _unchunked(cycle, app)
        super()._start_asgi_task(cycle, app)

    # ---- a client that is slow

    def _expect_progress(self) -> None:
        if self._overdue is None:
            self._overdue = self.loop.call_later(self._settings.header_timeout, self._give_up)

    def _progress(self) -> None:
        self._unfinished = 0
        self._cancel_overdue()

    def _cancel_overdue(self) -> None:
        if self._overdue:
            self._overdue.cancel()
            self._overdue = None

    # ---- a client that is refused

    def _found(self, fault: APIError) -> APIError:
        """To be raised: the parser stops at it, and uvicorn calls `send_400_response`."""
        self._fault = fault
        return fault

    def send_400_response(self, msg: str) -> None:
        self._refuse(self._fault or _MALFORMED)

    def _refuse(self, fault: APIError) -> None:
        """Say why and close; where an answer is under way, only close when it is out."""
        self._take_no_more()
        if self._answering:
            return
        if self._running and self._running.response_started and not self._running.response_complete:
            self.transport.close()
            return
        self.flow.resume_reading()
        request_id = new_request_id()
        self.transport.write(_raw(fault, request_id, self.server_state.default_headers))
        told = {"request_id": request_id, "status": fault.status_code, "code": fault.code}
        address = "{}:{}".format(*self.client) if self.client else None
        logger.info("refused", extra=told | {"client": address})
        self.transport.write_eof()
        self.loop.call_later(_LINGER_SECONDS, self.transport.close)

    def _give_up(self) -> None:
        """Close, without a word: nobody has asked for anything."""
        self._take_no_more()
        if not self._answering:
            self.transport.close()

    def _take_no_more(self) -> None:
        """What came whole is still answered."""
        self._closing = True
        self._cancel_overdue()
        last = self.cycle
        if last and last.more_body:
            _disconnect(last)
            if self.pipeline and self.pipeline[0][0] is last:
                self.pipeline.popleft()

    @property
    def _answering(self) -> bool:
        cycle = self._running
        return bool(cycle and not cycle.response_complete and not cycle.disconnected)


def http_with(settings: Settings) -> type[LimitedHttp]:
    """uvicorn makes connections from a class, and hands it nothing that is ours."""

    class Limited(LimitedHttp):
        _settings = settings

    return Limited


def _disconnect(cycle: RequestResponseCycle) -> None:
    """Let its handler see that the client has gone."""
    if not cycle.response_complete:
        cycle.disconnected = True
        cycle.message_event.set()


def _unchunked(cycle: RequestResponseCycle, app: ASGI3Application) -> ASGI3Application:
    """For HTTP/1.0: the body goes out as it is, and ends with the connection.

    The cycle is made to believe that each piece is just what it was told to expect.
    """
    cycle.chunked_encoding = False

    async def unchunked(scope: Any, receive: Any, send: Any) -> None:
        async def send_plain(message: Any) -> None:
            if message["type"] == "http.response.body":
                cycle.expected_content_length = len(message.get("body", b""))
            else:
                message["headers"] = [h for h in message.get("headers", ()) if h != _KEEP_ALIVE]
            await send(message)

        await app(scope, receive, send_plain)

    return unchunked


def _raw(fault: APIError, request_id: str, default_headers: Iterable[tuple[bytes, bytes]]) -> bytes:
    """A whole answer, after which the connection ends."""
    response = fault.response()
    response.headers["Connection"] = "close"
    response.headers["X-Request-Id"] = request_id
    headers = [*default_headers, *response.raw_headers]
    lines = b"".join(b"%s: %s\r\n" % header for header in headers)
    return STATUS_LINE[response.status_code] + lines + b"\r\n" + bytes(response.body)


def _url_too_long(settings: Settings) -> APIError:
    return APIError(
        414,
        f"path and query have more than {settings.max_request_line} bytes; send the fields as the "
        "body of a POST, or set --max-request-line",
        code="uri_too_long",
    )


def _head_too_large(settings: Settings) -> APIError:
    return APIError(
        431,
        f"the headers have more than {settings.max_header_size} bytes; send fewer or shorter ones, "
        "or set --max-header-size",
        code="headers_too_large",
    )


_MALFORMED = APIError(
    400, "this is no HTTP request that can be read; send HTTP/1.1", code="malformed_request"
)
