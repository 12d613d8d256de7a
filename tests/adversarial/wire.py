"""Requests as bytes over plain sockets: no client library would send these."""

import contextlib
import json
import socket
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

ATTACKER = "127.0.0.2"  # an address of its own: without keys it is whose share a request counts for
JSON = ("Content-Type", "application/json")
Headers = tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class Request:
    """`body` None is none at all. A target is latin-1, as headers are."""

    method: str
    target: str
    headers: Headers = ()
    body: bytes | None = None

    def written(self, more: Headers = ()) -> bytes:
        given = (*self.headers, *more)
        names = {name.lower() for name, _ in given}
        usual = (("Host", "localhost"), ("Connection", "close"))
        lines = [f"{self.method} {self.target} HTTP/1.1"]
        lines += [f"{name}: {value}" for name, value in usual if name.lower() not in names]
        lines += [f"{name}: {value}" for name, value in given]
        if self.body is not None and not names & {"transfer-encoding", "content-length"}:
            lines.append(f"Content-Length: {len(self.body)}")
        return "\r\n".join([*lines, "", ""]).encode("latin-1") + (self.body or b"")


@dataclass(frozen=True)
class Answer:
    """`status` 0: no answer. `whole`: the connection was closed by the server, in time."""

    status: int
    head: bytes
    body: bytes
    seconds: float
    whole: bool

    def json(self) -> Any:
        """None where it is not JSON."""
        with contextlib.suppress(ValueError):
            return json.loads(self.body)
        return None


def connect(port: int, seconds: float = 30) -> socket.socket:
    return socket.create_connection(("127.0.0.1", port), seconds, source_address=(ATTACKER, 0))


def ask(port: int, request: bytes, seconds: float, until: float | None = None) -> Answer:
    """Send it and read to the end of the answer, for `seconds` in all.

    After `until` seconds an answer that has begun is left alone: it is a stream.
    """
    began = time.monotonic()
    received = bytearray()
    whole = False
    with contextlib.suppress(OSError), connect(port, seconds) as client:
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):  # refused before its end
            client.sendall(request)
        while True:
            passed = time.monotonic() - began
            most = until if until is not None and received else seconds
            if passed >= most:
                break
            client.settimeout(most - passed)
            if not (data := client.recv(1 << 18)):
                whole = True
                break
            received += data
    head, _, body = bytes(received).partition(b"\r\n\r\n")
    if b"\r\ntransfer-encoding: chunked" in head.lower():
        body = _without_chunks(body)
    status = int(head.split(b" ", 2)[1]) if head.startswith(b"HTTP/1.1 ") else 0
    left = until is not None and not whole and status > 0
    return Answer(status, head, body, time.monotonic() - began, whole or left)


def _without_chunks(body: bytes) -> bytes:
    """As far as it has come."""
    parts = []
    while body:
        size, _, body = body.partition(b"\r\n")
        length = int(size or b"0", 16)
        parts.append(body[:length])
        body = body[length + 2 :]
    return b"".join(parts)


@contextlib.contextmanager
def opened(
    port: int, requests: list[bytes], receive: int | None = None
) -> Iterator[list[socket.socket]]:
    """A connection for each request, which is sent; with `receive` bytes of buffer."""
    clients: list[socket.socket] = []
    try:
        for request in requests:
            client = socket.socket()
            if receive:
                client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive)
            client.settimeout(30)
            client.bind((ATTACKER, 0))
            client.connect(("127.0.0.1", port))
            clients.append(client)
            with contextlib.suppress(OSError):
                client.sendall(request)
        yield clients
    finally:
        for client in clients:
            client.close()


def head_of(client: socket.socket) -> bytes:
    """What has come when the answer's headers have; empty where the connection is closed first."""
    received = b""
    with contextlib.suppress(OSError):
        while b"\r\n\r\n" not in received:
            if not (data := client.recv(4096)):
                break
            received += data
    return received
