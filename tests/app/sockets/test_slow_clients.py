"""Who holds a connection and sends nothing, or too slowly: let go, and in nobody's way."""

import asyncio
import contextlib
import json
import resource
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import pytest

from tests.app.plain_http import GET, Script, connection, exchange, refusal, serving
from tests.raw import never_reading, post_generate
from tests.server import RunningServer, running
from tests.speed import patience

POST = b"POST /body HTTP/1.1\r\nHost: localhost\r\n"
CHUNKED = POST + b"Transfer-Encoding: chunked\r\n\r\n"

# ---- a body


@pytest.mark.parametrize(
    ("begun", "more"),
    [
        (POST + b"Content-Length: 9000\r\n\r\n", b""),
        (POST + b"Content-Length: 9000\r\n\r\nx", b""),
        (POST + b"Content-Length: 9000\r\n\r\nx", b"x"),
        (CHUNKED, b""),
        (CHUNKED, b"1\r\nx\r\n"),
        (CHUNKED + b"ffff\r\n", b"x"),
        (CHUNKED + b"1;", b"x"),
        (CHUNKED + b"0\r\n", b""),
    ],
    ids=[
        "announced",
        "one byte",
        "trickles",
        "no chunk",
        "chunks",
        "in a chunk",
        "extension",
        "end",
    ],
)
async def test_a_body_that_does_not_come_is_refused(begun: bytes, more: bytes) -> None:
    script = Script()
    async with (
        serving(script, body_timeout=0.2) as port,
        connection(port) as (reader, writer),
        asyncio.timeout(patience(20)),
    ):
        writer.write(begun)
        answer = asyncio.create_task(reader.read())
        while not answer.done():
            with contextlib.suppress(ConnectionError):  # it has been closed meanwhile
                writer.write(more)
            await asyncio.wait([answer], timeout=0.02)
        assert refusal(await answer) == (408, "body_too_slow")
        await script.left.wait()


async def test_who_was_told_to_continue_and_does_not_is_refused() -> None:
    async with serving(Script(), body_timeout=0.2) as port:
        raw = await exchange(port, POST + b"Expect: 100-continue\r\nContent-Length: 9\r\n\r\n")
    proceed, _, refused = raw.partition(b"\r\n\r\n")
    assert proceed == b"HTTP/1.1 100 Continue"
    assert refusal(refused) == (408, "body_too_slow")


async def test_a_body_behind_its_refusal_has_the_same_time_and_no_second_answer() -> None:
    """The application has said no without reading."""
    head = b"POST /refused HTTP/1.1\r\nHost: localhost\r\n"
    for begun, more in (
        (head + b"Content-Length: 9000\r\n\r\nx", b"x"),
        (head + b"Transfer-Encoding: chunked\r\n\r\n", b"1\r\nx\r\n"),
    ):
        async with (
            serving(Script(), body_timeout=0.2) as port,
            connection(port) as (reader, writer),
            asyncio.timeout(patience(20)),
        ):
            writer.write(begun)
            answer = asyncio.create_task(reader.read())
            while not answer.done():
                with contextlib.suppress(ConnectionError):
                    writer.write(more)
                await asyncio.wait([answer], timeout=0.02)
            assert (await answer).count(b"HTTP/1.1") == 1


async def test_a_body_behind_its_refusal_is_no_larger_than_any_other() -> None:
    head = b"POST /refused HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n"
    async with (
        serving(Script(), max_body_size="1KiB") as port,
        connection(port) as (reader, writer),
        asyncio.timeout(patience(20)),
    ):
        writer.write(head)
        await reader.readuntil(b"end of /refused\r\n0\r\n\r\n")
        writer.write(b"800\r\n" + b"x" * 0x800 + b"\r\n")
        assert await reader.read() == b""


async def test_a_body_refused_before_it_was_there_leaves_the_connection_to_the_next() -> None:
    head = b"POST /refused HTTP/1.1\r\nHost: localhost\r\nContent-Length: 2\r\n\r\nx"
    async with (
        serving(Script(), keep_alive_timeout=0.2) as port,
        connection(port) as (reader, writer),
        asyncio.timeout(patience(20)),
    ):
        writer.write(head)
        await reader.readuntil(b"end of /refused\r\n0\r\n\r\n")
        writer.write(b"x" + GET % b"next")
        await reader.readuntil(b"end of /next\r\n0\r\n\r\n")
        writer.write(head)
        await reader.readuntil(b"end of /refused\r\n0\r\n\r\n")
        writer.write(b"x")
        assert await reader.read() == b"", "then it is idle like any other"


async def test_a_body_that_comes_steadily_may_take_longer() -> None:
    async with (
        serving(Script(), body_timeout=0.2) as port,
        connection(port) as (reader, writer),
        asyncio.timeout(patience(20)),
    ):
        loop = asyncio.get_running_loop()
        ends = loop.time() + 1
        writer.write(CHUNKED + b"400\r\n" + b"x" * 1024 + b"\r\n")
        sent = 1024
        while loop.time() < ends:
            await asyncio.sleep(0.05)
            writer.write(b"400\r\n" + b"x" * 1024 + b"\r\n")
            sent += 1024
        writer.write(b"0\r\n\r\n")
        await reader.readuntil(b"end of /body: " + b"x" * sent + b"\r\n")


async def test_a_body_is_not_late_while_it_is_not_read() -> None:
    """It waits in the kernel, behind a stream."""
    body = b"x" * (1 << 19)
    script = Script()
    async with (
        serving(script, body_timeout=0.1) as port,
        connection(port) as (reader, writer),
        asyncio.timeout(patience(20)),
    ):
        writer.write(GET % b"stream" + POST + b"Content-Length: %d\r\n\r\n" % len(body) + body)
        loop, passed = asyncio.get_running_loop(), asyncio.Event()
        loop.call_later(0.5, passed.set)
        await passed.wait()
        script.pieces.put_nowait(b"")
        await reader.readuntil(b"end of /stream\r\n0\r\n\r\n")
        await reader.readuntil(b"end of /body: ")
        assert await reader.readexactly(len(body)) == body


async def test_half_a_body_behind_a_stream_does_not_cut_it() -> None:
    script = Script()
    async with (
        serving(script, body_timeout=0.1) as port,
        connection(port) as (reader, writer),
        asyncio.timeout(patience(20)),
    ):
        writer.write(GET % b"stream" + POST + b"Content-Length: 9\r\n\r\nx")
        loop, passed = asyncio.get_running_loop(), asyncio.Event()
        loop.call_later(0.5, passed.set)
        await passed.wait()
        script.pieces.put_nowait(b"")
        raw = await reader.read()
    assert raw.count(b"HTTP/1.1") == 1
    assert raw.endswith(b"end of /stream\r\n0\r\n\r\n")


async def test_an_idle_connection_is_kept_and_then_closed() -> None:
    async with (
        serving(Script(), keep_alive_timeout=0.5) as port,
        connection(port) as (reader, writer),
        asyncio.timeout(patience(20)),
    ):
        for _ in range(4):  # longer than that together
            writer.write(GET % b"idle")
            await reader.readuntil(b"end of /idle\r\n0\r\n\r\n")
            await asyncio.sleep(0.2)
        assert await reader.read() == b""


# ---- few descriptors

DESCRIPTORS = 256
CLIENTS = 300


def half_a_head(port: int) -> socket.socket:
    return sending(port, b"GET /health HTTP/1.1\r\nHost: localhost\r\n")


def nothing(port: int) -> socket.socket:
    return sending(port, b"")


def half_a_body(port: int) -> socket.socket:
    return sending(port, post_generate({"prompt": "x"})[:-1])


def no_chunk(port: int) -> socket.socket:
    return sending(
        port,
        b"POST /tokenize HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
        b"Transfer-Encoding: chunked\r\n\r\n",
    )


def a_body_that_was_refused(port: int) -> socket.socket:
    return sending(port, b"POST /none HTTP/1.1\r\nHost: localhost\r\nContent-Length: 9\r\n\r\nx")


def idle(port: int) -> socket.socket:
    client = sending(port, GET % b"health")
    client.recv(1 << 16)
    return client


def an_answer_that_is_not_read(port: int) -> socket.socket:
    """Twenty answers of 145 kB: more than the buffers on the way hold."""
    return never_reading(port, GET % b"static/vendor/uplot/uPlot.esm.js" * 20)


def sending(port: int, data: bytes) -> socket.socket:
    client = socket.create_connection(("127.0.0.1", port), timeout=patience(20))
    with contextlib.suppress(ConnectionError):  # refused already
        client.sendall(data)
    return client


@pytest.fixture(scope="module")
def patient(tiny_model: Path) -> Iterator[RunningServer]:
    """One that lets nobody go by itself, and has few descriptors."""
    flags = ["--model", str(tiny_model)]
    for name in ("header", "body", "keep-alive", "send"):
        flags += [f"--{name}-timeout", "3600"]
    with running(tiny_model / "patient.log", *flags) as server:
        limits = (DESCRIPTORS, DESCRIPTORS)
        resource.prlimit(server.process.pid, resource.RLIMIT_NOFILE, limits)
        yield server
        assert server.stop() == 0, server.log.read_text()


def processor_seconds(server: RunningServer) -> float:
    fields = Path(f"/proc/{server.process.pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / 100


def newcomer(server: RunningServer) -> int:
    """The status of its answer."""
    body = {"prompt": "x", "max_length": 2}
    return httpx.post(f"{server.url}/generate", json=body, timeout=patience(20)).status_code


def wait_until_let_in(server: RunningServer) -> None:
    """The others are being answered until the kernel has taken what it can hold of that."""
    deadline = time.monotonic() + patience(20)
    while newcomer(server) == 503:
        assert time.monotonic() < deadline


@pytest.mark.parametrize(
    "hold",
    [
        nothing,
        half_a_head,
        half_a_body,
        no_chunk,
        a_body_that_was_refused,
        idle,
        an_answer_that_is_not_read,
    ],
)
def test_a_newcomer_gets_in_whoever_holds_connections(
    patient: RunningServer, hold: Callable[[int], socket.socket]
) -> None:
    with contextlib.ExitStack() as held:
        for _ in range(CLIENTS):
            held.enter_context(hold(patient.port))
        if hold is an_answer_that_is_not_read:
            wait_until_let_in(patient)
        for _ in range(3):
            assert newcomer(patient) == 200
    assert "short of file descriptors" in patient.log.read_text()


def test_who_is_answered_is_not_closed_for_another(patient: RunningServer) -> None:
    """And who comes then is told, at once."""
    whole = post_generate({"prompt": "x", "max_length": 400, "ignore_eos": True, "timeout": 120})
    with contextlib.ExitStack() as held:
        asking = [held.enter_context(sending(patient.port, whole)) for _ in range(CLIENTS)]
        answers = [head_of(client) for client in asking]
        statuses = [head.split()[1] for head in answers if head]
        assert statuses.count(b"200") > DESCRIPTORS / 2
        refused = next(head for head in answers if b" 503 " in head)
        assert b"retry-after: " in refused.lower()
        assert json.loads(refused.partition(b"\r\n\r\n")[2])["error"]["code"] in (
            "too_many_connections",
            "overloaded",
        )
    assert httpx.get(f"{patient.url}/health").status_code == 200


def head_of(client: socket.socket) -> bytes:
    """The beginning of what comes; nothing when the connection has been reset."""
    client.settimeout(patience(120))
    with contextlib.suppress(ConnectionError):
        return client.recv(1 << 16)
    return b""


@pytest.mark.alone
def test_a_shortage_is_no_busy_loop(patient: RunningServer) -> None:
    with contextlib.ExitStack() as held:
        for _ in range(CLIENTS):
            held.enter_context(nothing(patient.port))
        spent, began = processor_seconds(patient), time.monotonic()
        time.sleep(2)
        share = (processor_seconds(patient) - spent) / (time.monotonic() - began)
    print(f"{share:.0%} of a processor")
    assert share < 0.3
