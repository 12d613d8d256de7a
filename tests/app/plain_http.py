"""uvicorn with our HTTP in the test's own loop, and clients that are plain sockets. No model."""

import asyncio
import json
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import uvicorn
from starlette.types import Receive, Scope, Send

from app.settings import Settings
from app.sockets.http_protocol import http_with
from tests.speed import patience

GET = b"GET /%s HTTP/1.1\r\nHost: localhost\r\n\r\n"
FAULT = {"type", "message", "param", "code"}


@dataclass
class Script:
    """An application whose stream says what the test says, and that notes who leaves."""

    pieces: asyncio.Queue[bytes] = field(default_factory=asyncio.Queue)
    left: asyncio.Event = field(default_factory=asyncio.Event)
    begun: list[str] = field(default_factory=list)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self.begun.append(scope["path"])
        end = b"end of " + scope["path"].encode()
        if scope["path"] == "/body":
            end += b": " + await self.read(receive)
        headers = [(b"connection", b"keep-alive")]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        if scope["path"] == "/stream":
            await self.stream(receive, send)
        await send({"type": "http.response.body", "body": end})

    async def read(self, receive: Receive) -> bytes:
        body = b""
        while (message := await receive())["type"] == "http.request":
            body += message["body"]
            if not message["more_body"]:
                return body
        self.left.set()
        return body

    async def stream(self, receive: Receive, send: Send) -> None:
        watch = asyncio.create_task(self.departure(receive))
        while piece := await self.pieces.get():
            await send({"type": "http.response.body", "body": piece, "more_body": True})
        watch.cancel()

    async def departure(self, receive: Receive) -> None:
        while (await receive())["type"] != "http.disconnect":
            pass
        self.left.set()


@asynccontextmanager
async def serving(script: Script, **options: Any) -> AsyncIterator[int]:
    """uvicorn with our HTTP on a port of its own, in this loop."""
    settings = Settings(**options)
    with socket.create_server(("127.0.0.1", 0)) as listening:
        config = uvicorn.Config(
            script, lifespan="off", ws="none", log_config=None, http=http_with(settings)
        )
        server = uvicorn.Server(config)
        task = asyncio.create_task(server.serve([listening]))
        try:
            yield listening.getsockname()[1]
        finally:
            server.should_exit = True
            await task


@asynccontextmanager
async def connection(
    port: int,
) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        yield reader, writer
    finally:
        writer.close()


async def exchange(port: int, request: bytes) -> bytes:
    """All that comes back until the server closes."""
    async with connection(port) as (reader, writer), asyncio.timeout(patience(20)):
        writer.write(request)
        return await reader.read()


def refusal(raw: bytes) -> tuple[int, str]:
    """Status and code of the one answer that came, which has our shape and ends the connection."""
    head, _, body = raw.partition(b"\r\n\r\n")
    assert raw.count(b"HTTP/1.1 ") == 1, raw
    lines = head.decode().lower().split("\r\n")
    assert lines.count("connection: close") == 1
    assert "content-type: application/json" in lines
    assert f"content-length: {len(body)}" in lines
    error = json.loads(body)["error"]
    assert error.keys() == FAULT
    assert ";" in error["message"], "it says what to do"
    return int(head[9:12]), error["code"]
