"""What one connection may send, how slowly, and what it gets back. Plain sockets, no model."""

import asyncio
import contextlib
import re
import select
import socket
import time
from pathlib import Path
from statistics import median

import httpx
import pytest

from tests.app.plain_http import GET, Script, connection, exchange, refusal, serving
from tests.conftest import HEADER_TIMEOUT
from tests.server import RunningServer
from tests.speed import Promised, patience

MIB = 1 << 20


def rss(server: RunningServer) -> int:
    status = Path(f"/proc/{server.process.pid}/status").read_text()
    return int(re.findall(r"VmRSS:\s+(\d+) kB", status)[0]) * 1024


@pytest.mark.parametrize(
    ("request_", "answer"),
    [
        (b"GET / HTTP/1.1\r\nX: " + b"x" * 70_000 + b"\r\n\r\n", (431, "headers_too_large")),
        (b"GET / HTTP/1.1\r\n" + b"X: x\r\n" * 35_000 + b"\r\n", (431, "headers_too_large")),
        (b"GET / HTTP/1.1\r\n" + b"X" * 200_000, (431, "headers_too_large")),
        (b"GET /?" + b"q" * 17_000 + b" HTTP/1.1\r\n\r\n", (414, "uri_too_long")),
        (b"GET /" + b"q" * 17_000, (414, "uri_too_long")),
        (b"GARBAGE\r\n\r\n", (400, "malformed_request")),
        (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", (400, "malformed_request")),
        (b"GET / HTTP/1.1\r\nX: \x1b[31m\r\n\r\n", (400, "malformed_request")),
        (b"GET / HTTP/1.1\r\nX: a\x00b\r\n\r\n", (400, "malformed_request")),
        (b"GET / HTTP/1.1\r\nX : a\r\n\r\n", (400, "malformed_request")),
        (b"POST / HTTP/1.1\r\nContent-Length: 3000000\r\n\r\n", (413, "body_too_large")),
        (b"POST / HTTP/1.1\r\nContent-Length: " + b"9" * 19 + b"\r\n\r\n", (413, "body_too_large")),
        (
            b"POST / HTTP/1.1\r\nContent-Length: 3000000\r\nExpect: 100-continue\r\n\r\n",
            (413, "body_too_large"),
        ),
        (b"POST / HTTP/1.1\r\nContent-Length: -1\r\n\r\n", (400, "malformed_request")),
        (
            b"POST / HTTP/1.1\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n",
            (400, "malformed_request"),
        ),
    ],
    ids=lambda value: value[:25] if isinstance(value, bytes) else str(value),
)
async def test_what_never_becomes_a_request(request_: bytes, answer: tuple[int, str]) -> None:
    script = Script()
    async with serving(script) as port:
        assert refusal(await exchange(port, request_)) == answer
    assert script.begun == []


async def test_a_body_that_is_too_large_is_refused_before_it_is_read() -> None:
    """Who goes on sending all the same gets the answer, not a reset."""
    script = Script()
    async with serving(script) as port:
        head = b"POST /body HTTP/1.1\r\nContent-Length: 8388608\r\n\r\n"
        began = time.monotonic()
        assert refusal(await exchange(port, head)) == (413, "body_too_large")
        assert time.monotonic() - began < patience(1)
        raw = await exchange(port, head + b"x" * (8 * MIB))
        assert refusal(raw) == (413, "body_too_large")
    assert script.begun == []


async def test_bytes_without_end_that_lead_to_nothing() -> None:
    """The extension of a chunk, and a trailer: llhttp would keep or read them for ever."""
    for beginning in (b"1;x=", b"1\r\nx\r\n0\r\nTrailer: "):
        script = Script()
        async with serving(script) as port, connection(port) as (reader, writer):
            writer.write(b"POST /body HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n" + beginning)
            for _ in range(40):
                writer.write(b"x" * 65536)
                await writer.drain()
            async with asyncio.timeout(patience(5)):
                assert refusal(await reader.read())[0] == 431
                await script.left.wait()


async def test_an_http_1_0_client_gets_no_chunks() -> None:
    script = Script()
    async with serving(script) as port:
        for piece in (b"one ", b"two ", b""):
            script.pieces.put_nowait(piece)
        for keep_alive in (b"", b"Connection: keep-alive\r\n"):
            raw = await exchange(port, b"GET / HTTP/1.0\r\n" + keep_alive + b"\r\n")
            assert raw.endswith(b"\r\n\r\nend of /")
        raw = await exchange(port, b"GET /stream HTTP/1.0\r\n\r\n")
        assert raw.endswith(b"\r\n\r\none two end of /stream")
        assert b"chunked" not in raw.lower()
        assert raw.lower().count(b"connection: close") == 1
        assert b"keep-alive" not in raw.lower()


async def test_a_request_behind_a_stream_waits_for_its_turn() -> None:
    script = Script()
    async with serving(script) as port, connection(port) as (reader, writer):
        writer.write(GET % b"stream" + GET % b"second" + GET % b"third")
        script.pieces.put_nowait(b"first piece")
        await reader.readuntil(b"first piece")
        assert script.begun == ["/stream"]
        script.pieces.put_nowait(b"")
        raw = await reader.readuntil(b"end of /third")
        assert raw.index(b"end of /stream") < raw.index(b"end of /second")
        assert raw.count(b"HTTP/1.1 200 OK") == 2


async def test_a_reader_that_leaves_is_noticed_though_another_request_waits() -> None:
    script = Script()
    async with serving(script) as port:
        async with connection(port) as (reader, writer):
            writer.write(GET % b"stream" + GET % b"second")
            script.pieces.put_nowait(b"first piece")
            await reader.readuntil(b"first piece")
        async with asyncio.timeout(patience(5)):
            while not script.left.is_set():
                script.pieces.put_nowait(b"more")
                await asyncio.sleep(0)
        script.pieces.put_nowait(b"")
    assert script.begun == ["/stream"]


@pytest.mark.parametrize(
    "behind", [b"GARBAGE\r\n\r\n", b"GET / HTTP/1.1\r\nX: " + b"x" * 70_000 + b"\r\n\r\n"]
)
async def test_garbage_behind_a_stream_does_not_get_into_it(behind: bytes) -> None:
    script = Script()
    async with serving(script) as port, connection(port) as (reader, writer):
        writer.write(GET % b"stream" + behind)
        script.pieces.put_nowait(b"first piece")
        await reader.readuntil(b"first piece")
        script.pieces.put_nowait(b"last piece")
        script.pieces.put_nowait(b"")
        raw = await reader.read()
    assert b"last piece" in raw
    assert raw.endswith(b"end of /stream\r\n0\r\n\r\n")
    assert b"HTTP/1.1" not in raw


async def test_a_slow_head_behind_a_stream_does_not_cut_it() -> None:
    script = Script()
    async with serving(script, header_timeout=0.1) as port, connection(port) as (reader, writer):
        writer.write(GET % b"stream" + b"GET / HT")
        script.pieces.put_nowait(b"first piece")
        await reader.readuntil(b"first piece")
        async with asyncio.timeout(patience(5)):  # only its closing tells that the time has passed
            loop, passed = asyncio.get_running_loop(), asyncio.Event()
            loop.call_later(0.3, passed.set)
            await passed.wait()
        script.pieces.put_nowait(b"last piece")
        script.pieces.put_nowait(b"")
        raw = await reader.read()
    assert b"last piece" in raw
    assert raw.endswith(b"0\r\n\r\n")


@pytest.mark.parametrize(
    "sent",
    [b"", b"\r\n", b"GET / HTTP/1.1\r\nX: x", GET % b"" + b"GET"],
    ids=["nothing", "a line end", "half a head", "half of the next"],
)
async def test_who_does_not_finish_a_head_is_let_go(sent: bytes) -> None:
    async with serving(Script(), header_timeout=0.2) as port:
        began = time.monotonic()
        await exchange(port, sent)
        assert 0.19 < time.monotonic() - began < patience(2)


async def test_a_line_end_does_not_keep_a_connection() -> None:
    """It stops uvicorn's clock for idle connections, and begins no head."""
    async with (
        serving(Script(), header_timeout=0.2) as port,
        connection(port) as (reader, writer),
        asyncio.timeout(patience(2)),
    ):
        writer.write(GET % b"")
        await reader.readuntil(b"end of /")
        writer.write(b"\r\n")
        assert await reader.read() == b"\r\n0\r\n\r\n"


async def test_a_body_may_take_longer_than_a_head() -> None:
    script = Script()
    async with serving(script, header_timeout=0.2) as port, connection(port) as (reader, writer):
        writer.write(b"POST /body HTTP/1.1\r\nContent-Length: 2\r\n\r\nx")
        loop, passed = asyncio.get_running_loop(), asyncio.Event()
        loop.call_later(0.5, passed.set)
        await passed.wait()
        writer.write(b"x")
        assert b"end of /body" in await reader.readuntil(b"end of /body")


async def test_cve_2025_48956_a_huge_header_takes_no_memory(tiny_server: RunningServer) -> None:
    async def send() -> int:
        async with connection(tiny_server.port) as (reader, writer):
            writer.write(b"GET /health HTTP/1.1\r\nHost: localhost\r\nX: ")
            for _ in range(128):
                writer.write(b"x" * 65536)
                await writer.drain()
            writer.write(b"\r\n\r\n")
            return refusal(await reader.read())[0]

    assert await send() == 431
    before = rss(tiny_server)
    for _ in range(5):
        assert await send() == 431
    grown = rss(tiny_server) - before
    print(f"{grown} bytes")
    assert grown < 2 * MIB


@pytest.mark.alone
def test_500_slow_headers_are_closed_and_hold_up_nobody(
    tiny_server: RunningServer, promised: Promised
) -> None:
    slow: dict[socket.socket, float] = {}
    lived, times = [], []
    with httpx.Client(base_url=tiny_server.url, timeout=patience(30)) as http:

        def ask() -> None:
            began = time.perf_counter()
            assert http.get("/health").status_code == 200
            times.append(time.perf_counter() - began)

        for _ in range(25):
            ask()
        before, times = times, []
        for number in range(500):
            began = time.monotonic()
            client = socket.create_connection(("127.0.0.1", tiny_server.port))
            client.sendall(b"GET /health HTTP/1.1\r\nHost: localhost\r\n")
            slow[client] = began
            if number % 20 == 0:
                ask()
        while slow:
            ask()
            closed, _, _ = select.select(slow, [], [], 0.1)
            for client in closed:
                lived.append(time.monotonic() - slow.pop(client))
                client.close()
            for client in slow:
                with contextlib.suppress(ConnectionError):  # closed meanwhile
                    client.send(b"X: x\r\n")
    assert min(lived) > 0.95 * HEADER_TIMEOUT  # the loop counts in whole milliseconds
    assert max(lived) < HEADER_TIMEOUT + patience(1)
    assert median(times) < 2 * max(before), (times, before)
    promised("closed", max(lived), HEADER_TIMEOUT + 1)
    promised(f"/health, slowest of {len(times)}", max(times), 0.1)


async def test_the_last_answer_is_not_lost_to_who_still_sends_a_body() -> None:
    """The application does not read it, and closes: a reset would overtake the answer."""
    size = MIB
    head = b"GET /early HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n"
    for coding in (b"Content-Length: %d" % size, b"Transfer-Encoding: chunked"):
        async with serving(Script()) as port, connection(port) as (reader, writer):
            writer.write(head + coding + b"\r\n\r\n")
            assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 200")
            chunk = b"%x\r\n" % size if b"chunked" in coding else b""
            writer.write(chunk + b"x" * size)  # more than the sockets' buffers hold
            async with asyncio.timeout(patience(20)):
                await writer.drain()
                assert b"end of /early" in await reader.read()


# ---- chunks


def in_chunks(number: int, size: int) -> bytes:
    chunk = b"%x\r\n%s\r\n" % (size, b"x" * size)
    head = b"POST /body HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n"
    return head + b"Transfer-Encoding: chunked\r\n\r\n" + chunk * number + b"0\r\n\r\n"


@pytest.mark.parametrize(("number", "size"), [(8192, 1), (9000, 200)])
async def test_small_chunks_are_taken_in_bounds(number: int, size: int) -> None:
    async with serving(Script()) as port:
        assert (await exchange(port, in_chunks(number, size))).startswith(b"HTTP/1.1 200")


@pytest.mark.parametrize(("number", "size"), [(9000, 1), (500_000, 1), (60_000, 8)])
async def test_countless_small_chunks_are_refused(number: int, size: int) -> None:
    """Each costs a microsecond of the loop, however little it holds."""
    async with serving(Script()) as port:
        raw = await exchange(port, in_chunks(number, size))
    assert refusal(raw) == (400, "chunks_too_small")
