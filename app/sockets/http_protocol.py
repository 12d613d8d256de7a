"""uvicorn's HTTP on httptools, with bounds on what a connection may send and how slowly.

What never becomes a request is refused here: a head that is too large, too slow or malformed, and
a body that is too large or too slow. Such an answer has the shape of all our errors. Four things
are mended: an HTTP/1.0 client gets no chunks, a request for another protocol is answered as
HTTP/1.1, a stream that has a request waiting behind it learns that its reader has left, and the
answer to garbage behind a stream does not get into the stream.

For a frame of a stream nothing is done here.
"""

import asyncio
import logging
from collections.abc import Callable, Iterable
from enum import Enum, auto
from typing import Any

import httptools
from uvicorn._types import ASGI3Application
from uvicorn.config import Config
from uvicorn.protocols.http.httptools_impl import (
    STATUS_LINE,
    HttpToolsProtocol,
    RequestResponseCycle,
)
from uvicorn.server import ServerState

from app.errors import APIError, body_too_large, try_later
from app.observability.access_log import new_request_id
from app.settings import Settings
from app.sockets.connections import Connections, Use
from app.sockets.send_buffer import EXTENSION, Sending

logger = logging.getLogger("tickertape.requests")

# How long a client may go on sending behind the last answer before the connection is closed. Closed
# at once, the kernel would answer with a reset what it sends, and that may overtake the answer.
_LINGER_SECONDS = 2.0

# Bytes of a body that must come in a second, once --body-timeout has passed. A slow phone sends ten
# times as many.
_LEAST_BODY_RATE = 1024

# A body may come in so many chunks, and in one more for each so many bytes of it: each chunk costs
# a microsecond of the loop, however small it is.
_FREE_CHUNKS = 8192
_LEAST_CHUNK = 128

_KEEP_ALIVE = (b"connection", b"keep-alive")


class _Awaited(Enum):
    """What the client has to send before anything else can happen on its connection."""

    NOTHING = auto()
    HEAD = auto()
    BODY = auto()


class LimitedHttp(HttpToolsProtocol):
    """One connection."""

    _settings: Settings
    _open: Connections["LimitedHttp"]

    def __init__(
        self,
        config: Config,
        server_state: ServerState,
        app_state: dict[str, Any],
        _loop: asyncio.AbstractEventLoop | None = None,
    ) -> None:
        super().__init__(config, server_state, app_state, _loop)
        self.timeout_keep_alive = self._settings.keep_alive_timeout  # type: ignore[assignment]
        self._lingers = False
        self._running: RequestResponseCycle | None = None  # self.cycle is the last that came in
        self._awaited = _Awaited.HEAD
        self._head_size = 0
        self._body_size = 0
        self._num_chunks = 0
        self._unfinished = 0  # bytes that have brought the parser no further
        self._began = 0.0  # when the client began to owe what is awaited
        self._clock: asyncio.TimerHandle | None = None
        self._fault: APIError | None = None  # found while the parser runs
        self._closing = False

    # ---- the connection

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        if not self._open.make_room():
            self._refuse(_NO_ROOM)
        self._settle()

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_clock()
        if self._running:
            _disconnect(self._running)
        super().connection_lost(exc)
        self._open.forget(self)

    def data_received(self, data: bytes) -> None:
        if self._closing:
            return
        self._unset_keepalive_if_required()
        self._unfinished += len(data)
        self._parse(data)
        if not self._closing and self._unfinished > self._settings.max_header_size:
            self._refuse(_head_too_large(self._settings))
        if self._awaited is _Awaited.NOTHING and self._unfinished:  # ends of lines, before a head
            self._awaited = _Awaited.HEAD
        self._settle()

    def pause_writing(self) -> None:
        super().pause_writing()
        self._settle()

    def resume_writing(self) -> None:
        super().resume_writing()
        self._settle()

    def give_way(self) -> None:
        """Close at once: the descriptor is needed for another."""
        self._take_no_more()
        self.transport.abort()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        if self._closing and not self._answering and not self._lingers:
            self.transport.close()
        self._settle()

    def close_after_answer(self) -> None:
        """What a cycle does with its transport at the end of a connection's last answer.

        RFC 9112, 9.6: where the client still sends its body, the answer would be lost.
        """
        if self._awaited is _Awaited.BODY and self._running is self.cycle:
            self._take_no_more()
            self._linger()
        else:
            self.transport.close()

    def _settle(self) -> None:
        """Note what the connection is used for, and watch the client that has to send something."""
        self._open.note(self, self._use)
        if self._awaited is _Awaited.NOTHING or self._closing:
            self._stop_clock()
        elif self._clock is None:
            self._began = self.loop.time()
            self._clock = self.loop.call_at(self._due, self._look)

    @property
    def _use(self) -> Use:
        is_whole = self._awaited is not _Awaited.BODY or self._running is not self.cycle
        if self._answering and is_whole:
            return Use.STALLED if self.flow.write_paused else Use.ANSWERING
        return Use.IDLE if self._awaited is _Awaited.NOTHING else Use.INCOMPLETE

    # ---- a request

    def _parse(self, data: bytes) -> None:
        """Feed the parser. A head that asks for another protocol is read again, without its wish.

        RFC 9110, 7.8: a server that does not switch answers as if it had not been asked to. The
        parser takes what comes behind such a head for the other protocol, and stops there.
        """
        unread = [memoryview(data)]
        while unread and not self._closing:
            piece = unread.pop()
            try:
                self.parser.feed_data(piece)
            except httptools.HttpParserUpgrade as stop:
                unread += [piece[stop.args[0] :], memoryview(self._head_without_upgrade())]
                self._begin_parsing()
            except httptools.HttpParserError as error:
                self.send_400_response(str(error))

    def _begin_parsing(self) -> None:
        """With a parser in uvicorn's state: the old one takes nothing more after HTTP/1.0."""
        self.parser = httptools.HttpRequestParser(self)
        self.parser.set_dangerous_leniencies(lenient_data_after_close=True)

    def _head_without_upgrade(self) -> bytes:
        request = self.parser.get_method(), self.url, self.parser.get_http_version().encode()
        lines = [b"%s: %s" % header for header in self.headers if header[0] != b"upgrade"]
        return b"\r\n".join([b"%s %s HTTP/%s" % request, *lines, b"", b""])

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._awaited = _Awaited.HEAD
        self._head_size = 0
        self._body_size = 0
        self._num_chunks = 0
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
        if self.parser.get_method() == b"CONNECT":
            raise self._found(_NO_PROXY)
        if self.parser.should_upgrade():
            return
        super().on_headers_complete()
        self._stop_clock()
        self._awaited = _Awaited.BODY
        self._unfinished = 0

    def on_chunk_header(self) -> None:
        self._num_chunks += 1
        if self._num_chunks > _FREE_CHUNKS + self._body_size // _LEAST_CHUNK:
            raise self._found(_CHUNKS_TOO_SMALL)

    def on_body(self, body: bytes) -> None:
        self._unfinished = 0
        self._body_size += len(body)
        if self._body_size > self._settings.max_body_size:
            raise self._found(body_too_large(self._settings.max_body_size))
        super().on_body(body)

    def on_message_complete(self) -> None:
        if self.parser.should_upgrade():
            return
        self._stop_clock()
        self._awaited = _Awaited.NOTHING
        self._unfinished = 0
        super().on_message_complete()
        if self.cycle.response_complete:  # refused before its body was there
            self._wait_for_the_next()

    def _wait_for_the_next(self) -> None:
        """As uvicorn does after an answer: what came of the body has stopped its clock."""
        self._unset_keepalive_if_required()
        self.timeout_keep_alive_task = self.loop.call_later(
            self.timeout_keep_alive, self.timeout_keep_alive_handler
        )

    def _start_asgi_task(self, cycle: RequestResponseCycle, app: ASGI3Application) -> None:
        self._running = cycle
        extensions = cycle.scope.setdefault("extensions", {})
        extensions[EXTENSION] = {"sending": Sending(self.transport)}
        cycle.transport = _Outgoing(self.transport, self.close_after_answer)  # type: ignore[assignment]
        if cycle.scope["http_version"] == "1.0":
            app = _unchunked(cycle, app)
        super()._start_asgi_task(cycle, app)

    # ---- a client that is slow

    @property
    def _due(self) -> float:
        """When what is awaited must be there: a body later, the more of it has come."""
        if self._awaited is _Awaited.HEAD:
            return self._began + self._settings.header_timeout
        earned = self._body_size / _LEAST_BODY_RATE
        return self._began + self._settings.body_timeout + earned

    def _look(self) -> None:
        """Let the client go, or look again when it is due by then."""
        now = self.loop.time()
        if self.flow.read_paused:  # by us: what it has sent meanwhile is not seen
            self._began = now
        if self._due > now:
            self._clock = self.loop.call_at(self._due, self._look)
        elif self._awaited is _Awaited.BODY:
            self._refuse(_body_too_slow(self._settings))
        else:
            self._give_up()

    def _stop_clock(self) -> None:
        if self._clock:
            self._clock.cancel()
            self._clock = None

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
        if not self._is_answered:
            self._tell(fault)
        self._linger()

    def _linger(self) -> None:
        """Send no more, and let the client go on for a while: all that comes is dropped."""
        self._lingers = True
        self.flow.resume_reading()
        self.transport.write_eof()
        self.loop.call_later(_LINGER_SECONDS, self.transport.close)

    def _tell(self, fault: APIError) -> None:
        request_id = new_request_id()
        self.transport.write(_raw(fault, request_id, self.server_state.default_headers))
        told = {"request_id": request_id, "status": fault.status_code, "code": fault.code}
        address = "{}:{}".format(*self.client) if self.client else None
        logger.info("refused", extra=told | {"client": address})

    @property
    def _is_answered(self) -> bool:
        """Whether the request that still comes in has its answer: a second would be the next's."""
        return self._awaited is _Awaited.BODY and self.cycle.response_complete

    def _give_up(self) -> None:
        """Close, without a word: nobody has asked for anything."""
        self._take_no_more()
        if not self._answering:
            self.transport.close()

    def _take_no_more(self) -> None:
        """What came whole is still answered."""
        self._closing = True
        self._stop_clock()
        last = self.cycle
        if last and last.more_body:
            _disconnect(last)
            if self.pipeline and self.pipeline[0][0] is last:
                self.pipeline.popleft()

    @property
    def _answering(self) -> bool:
        cycle = self._running
        return bool(cycle and not cycle.response_complete and not cycle.disconnected)


class _Outgoing:
    """What a cycle has in place of its connection's transport: it closes in another way."""

    def __init__(self, transport: asyncio.Transport, close: Callable[[], None]) -> None:
        self.write = transport.write
        self.is_closing = transport.is_closing
        self.close = close


def http_with(settings: Settings) -> type[LimitedHttp]:
    """uvicorn makes connections from a class, and hands it nothing that is ours."""

    class Limited(LimitedHttp):
        _settings = settings
        _open = Connections()

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


def _body_too_slow(settings: Settings) -> APIError:
    return APIError(
        408,
        f"the body did not come within {settings.body_timeout:g} s and one more for each "
        f"{_LEAST_BODY_RATE} bytes of it; send it faster, or set --body-timeout",
        code="body_too_slow",
    )


_CHUNKS_TOO_SMALL = APIError(
    400,
    f"the body came in more than {_FREE_CHUNKS} chunks of less than {_LEAST_CHUNK} bytes; send "
    "larger chunks, or a Content-Length",
    code="chunks_too_small",
)
_NO_PROXY = APIError(
    501, "this server is no proxy; send it requests of its own, without CONNECT", code="no_proxy"
)
_NO_ROOM = try_later(
    503,
    "all connections that this server may have are in use; try again, or raise its limit of open "
    "files (ulimit -n, LimitNOFILE)",
    code="too_many_connections",
)
_MALFORMED = APIError(
    400, "this is no HTTP request that can be read; send HTTP/1.1", code="malformed_request"
)
