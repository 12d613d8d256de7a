"""One streamed answer over a socket of its own, at the least cost to the machine that is measured.

While a run lasts, bytes are only kept with their time. What they say is read when it is over.
"""

import asyncio
import json
import ssl
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from urllib.parse import urlsplit

import h11

from bench.dialects import Dialect
from bench.figures import Answer, BenchError


@dataclass(frozen=True, slots=True)
class Target:
    """A server to be measured. `pid` is the root of its processes, where that is known."""

    name: str
    url: str
    dialect: Dialect
    pid: int | None = None

    def request(self, prompt: str, new_tokens: int) -> bytes:
        """A whole HTTP request; the server is to close the connection after its answer."""
        url = urlsplit(self.url)
        body = json.dumps(self.dialect.body(prompt, new_tokens)).encode()
        head = (
            f"POST {url.path.rstrip('/').removesuffix('/v1')}{self.dialect.path} HTTP/1.1\r\n"
            f"Host: {url.netloc}\r\nContent-Type: application/json\r\nAccept: text/event-stream\r\n"
            f"Content-Length: {len(body)}\r\nConnection: close\r\n\r\n"
        )
        return head.encode() + body


@dataclass(slots=True)
class Recording:
    """The bytes of one answer, each piece with the time it came."""

    sent: float
    pieces: list[tuple[float, bytes]] = field(default_factory=list)


class _Recorder(asyncio.Protocol):
    def __init__(self, request: bytes) -> None:
        self._request = request
        self.recording = Recording(time.perf_counter())  # before the connection is made
        self.closed: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        transport.write(self._request)  # type: ignore[attr-defined]

    def data_received(self, data: bytes) -> None:
        self.recording.pieces.append((time.perf_counter(), data))

    def connection_lost(self, exc: Exception | None) -> None:
        if not self.closed.done():
            self.closed.set_result(None)


async def record(target: Target, request: bytes) -> Recording:
    """Send a request and keep the whole answer. Raises BenchError when nobody listens."""
    url = urlsplit(target.url)
    secure = ssl.create_default_context() if url.scheme == "https" else None
    port = url.port or (443 if secure else 80)
    try:
        transport, recorder = await asyncio.get_running_loop().create_connection(
            lambda: _Recorder(request), str(url.hostname), port, ssl=secure
        )
    except OSError as error:
        raise BenchError(f"{target.name}: nothing answers at {target.url} ({error})") from error
    try:
        await recorder.closed
    finally:
        transport.abort()
    return recorder.recording


def read(target: Target, recording: Recording) -> Answer:
    """What a recorded answer says. Raises BenchError for one that failed or broke off."""
    answer = Answer(recording.sent)
    for when, line in _lines(target, recording):
        if not line.startswith(b"data:") or line == b"data: [DONE]":
            continue
        data = json.loads(line.removeprefix(b"data:"))
        if data.get("error"):
            raise BenchError(f"{target.name}: {data['error']}")
        if count := target.dialect.tokens(data):
            answer.arrivals.append((when, count))
        if usage := target.dialect.usage(data):
            answer.prompt_tokens = usage["prompt_tokens"]
            answer.cached_tokens = usage["cached_tokens"]
            answer.completion_tokens = usage["completion_tokens"]
    if not answer.arrivals:
        raise BenchError(f"{target.name}: an answer without a token")
    answer.completion_tokens = answer.completion_tokens or sum(n for _, n in answer.arrivals)
    return answer


def _lines(target: Target, recording: Recording) -> Iterator[tuple[float, bytes]]:
    """The lines of the body, each with the time at which it was complete."""
    rest = b""
    for when, data in _body(target, recording):
        *lines, rest = (rest + data).split(b"\n")
        for line in lines:
            yield when, line.rstrip(b"\r")


def _body(target: Target, recording: Recording) -> Iterator[tuple[float, bytes]]:
    """The body without its HTTP framing. Raises BenchError for a refusal or a torn answer."""
    status, refusal = 0, b""
    try:
        for when, event in _events(recording):
            if isinstance(event, h11.Response):
                status = event.status_code
            elif isinstance(event, h11.Data) and status == 200:
                yield when, bytes(event.data)
            elif isinstance(event, h11.Data):
                refusal += event.data
    except h11.RemoteProtocolError as error:
        raise BenchError(f"{target.name}: a torn answer ({error})") from error
    if status != 200:
        words = " ".join(refusal.decode(errors="replace").split())
        raise BenchError(f"{target.name} refused with {status}: {words:.300}")


def _events(recording: Recording) -> Iterator[tuple[float, h11.Event]]:
    """The response as h11 sees it, to its end. Raises h11.RemoteProtocolError."""
    http = h11.Connection(h11.CLIENT)
    http.send(h11.Request(method="POST", target="/", headers=[("Host", "-")]))
    http.send(h11.EndOfMessage())
    for when, piece in [*recording.pieces, (time.perf_counter(), b"")]:  # b"": it was closed
        http.receive_data(piece)
        while (event := http.next_event()) is not h11.NEED_DATA:
            yield when, event  # type: ignore[misc]
            if isinstance(event, h11.EndOfMessage):
                return
