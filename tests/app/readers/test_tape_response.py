"""Frames on real sockets, without a model: a reader that takes nothing hurts nobody."""

import asyncio
import json
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import cast

import pytest
import uvicorn
from sse_starlette import EventSourceResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app.api.native import frames as native
from app.observability.metrics import Metrics
from app.readers.frame_cache import FrameCache
from app.readers.tape_response import SendWatch, TapeResponse
from app.readers.turns import Turns
from app.server import bound_connections
from app.settings import Settings
from app.sockets.http_protocol import http_with
from app.tapes.registry import Registry
from app.tapes.tape import Choice, Entry, Tape
from tests.raw import never_reading
from tests.server import Frame, parse_frames
from tests.speed import patience

MIB = 1 << 20
REQUEST = b"GET / HTTP/1.1\r\nHost: tape\r\nConnection: close\r\n\r\n"


class Readers:
    """Stands for the registry: says who comes and who goes."""

    def __init__(self) -> None:
        self.came: asyncio.Queue[Tape] = asyncio.Queue()
        self.left: asyncio.Queue[Tape] = asyncio.Queue()

    def add_reader(self, tape: Tape) -> None:
        self.came.put_nowait(tape)

    def remove_reader(self, tape: Tape) -> None:
        self.left.put_nowait(tape)


def reading(
    tape: Tape,
    readers: Readers,
    send_timeout: float,
    ping_interval: float,
    metrics: Metrics | None = None,
) -> ASGIApp:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        response = TapeResponse(
            cast(Registry, readers),
            tape,
            None,
            metrics=metrics or Metrics("none", 8192),
            turns=Turns(),
            cache=FrameCache(),
            dialect=native,
            ping_interval=ping_interval,
            send_timeout=send_timeout,
        )
        await response(scope, receive, send)

    return app


@asynccontextmanager
async def serving(app: ASGIApp, kernel_timeout: float = 15.0) -> AsyncIterator[int]:
    """uvicorn on a port of its own, in this loop; its sockets are as those of the server."""
    http = http_with(Settings())
    with socket.create_server(("127.0.0.1", 0)) as listening:
        bound_connections(listening, kernel_timeout)
        config = uvicorn.Config(app, http=http, lifespan="off", ws="none", log_config=None)
        server = uvicorn.Server(config)
        task = asyncio.create_task(server.serve([listening]))
        yield listening.getsockname()[1]
        server.should_exit = True
        await task


async def read_all(port: int) -> list[Frame]:
    """Every frame until the connection closes."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(REQUEST)
    raw = await reader.read()
    writer.close()
    return parse_frames(unchunked(raw.partition(b"\r\n\r\n")[2]).decode())


def unchunked(raw: bytes) -> bytes:
    body = b""
    while raw:
        length, _, raw = raw.partition(b"\r\n")
        body, raw = body + raw[: int(length, 16)], raw[int(length, 16) + 2 :]
    return body


async def test_a_reader_that_takes_nothing_is_cut_off_and_holds_up_nobody() -> None:
    tape, readers, metrics = Tape("a" * 22, [Choice(1)]), Readers(), Metrics("none", 8192)
    app = reading(tape, readers, send_timeout=1.0, ping_interval=15, metrics=metrics)
    async with serving(app) as port, asyncio.timeout(patience(20)):
        stuck = never_reading(port, REQUEST)
        await readers.came.get()
        reader = asyncio.create_task(read_all(port))
        await readers.came.get()
        for number in range(16):  # more than any socket keeps for its peer
            tape.append(Entry("x" * MIB, number))
            await asyncio.sleep(0)
        assert await readers.left.get() is tape
        assert not reader.done(), "the one that was cut off is the one that takes nothing"
        tape.finish("stop")
        frames = await reader
        stuck.close()
    texts = [json.loads(frame.data or "")["text"] for frame in frames if frame.event == "token"]
    assert len("".join(texts)) == 16 * MIB
    assert frames[-1].event == "done"
    assert b'slow_readers_cut_total{model_name="none"} 1.0' in metrics.text()


async def test_a_silent_stream_gets_comments_that_move_no_cursor() -> None:
    tape, readers = Tape("a" * 22, [Choice(1)]), Readers()
    app = reading(tape, readers, send_timeout=30.0, ping_interval=0.05)
    async with serving(app) as port:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(REQUEST)
        async with asyncio.timeout(patience(10)):
            for _ in range(2):
                await reader.readuntil(b": ping state=queued\n\n")
            tape.append(Entry("x", 1))
            await reader.readuntil(b": ping state=queued last_token_age_s=0.")
            tape.finish("stop")
            rest = await reader.read()
        writer.close()
    assert b"id: %b:2\nevent: done" % tape.id.encode() in rest


async def test_a_send_that_never_ends_is_ended() -> None:
    async def forever(message: Message) -> None:
        await asyncio.Event().wait()

    async with asyncio.timeout(patience(10)):
        with pytest.raises(TimeoutError):
            async with SendWatch(0.05) as watch:
                await watch.send(forever, {})


async def test_many_sends_may_take_longer_together_than_one_may_alone() -> None:
    async def slow(message: Message) -> None:
        await asyncio.sleep(0.2)

    async with SendWatch(0.6) as watch:
        for _ in range(5):
            await watch.send(slow, {})


async def test_a_ping_behind_a_send_that_waits_does_not_hide_it() -> None:
    """The ping is let through at once; the frame never is."""

    async def forever(message: Message) -> None:
        await asyncio.Event().wait()

    async def at_once(message: Message) -> None:
        pass

    async def frame_and_ping() -> None:
        async with SendWatch(0.05) as watch:
            frame = asyncio.create_task(watch.send(forever, {}))
            await asyncio.sleep(0)
            await watch.send(at_once, {})
            await frame

    async with asyncio.timeout(patience(10)):
        with pytest.raises(TimeoutError):
            await frame_and_ping()


def test_what_we_override_in_sse_starlette_is_there() -> None:
    """Under another name, streams would work and cost twice as much."""
    assert "_send_with_timeout" in vars(EventSourceResponse)
