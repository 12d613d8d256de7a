"""nginx hands on each frame at once, hides nobody, and refuses nothing in words of its own."""

import asyncio
import contextlib
import functools
import os
import re
import subprocess
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from app.settings import Settings
from tests.deploy.tools import DEPLOY, complaints, tool
from tests.speed import patience

EXAMPLE = DEPLOY / "nginx" / "tickertape.conf"

# What Debian's nginx.conf has around the example, with every file in a folder of the test's own.
AROUND = """
{user}
pid nginx.pid;
error_log error.log;
events {{}}
http {{
    access_log off;
    client_body_temp_path body;
    proxy_temp_path proxy;
    fastcgi_temp_path fastcgi;
    uwsgi_temp_path uwsgi;
    scgi_temp_path scgi;
    gzip on;
    include {example};
}}
"""

Streams = tuple[asyncio.StreamReader, asyncio.StreamWriter]


def configure(folder: Path, example: str) -> Path:
    """nginx.conf in `folder`: the example on sockets of the folder instead of on ports."""
    for port, socket in (
        ("listen 80;", f"listen unix:{folder}/front;"),
        ("server 127.0.0.1:8000;", f"server unix:{folder}/back;"),
    ):
        assert port in example
        example = example.replace(port, socket, 1)
    (folder / "example.conf").write_text(example)
    user = "user root;" if os.geteuid() == 0 else ""
    file = folder / "nginx.conf"
    file.write_text(AROUND.format(user=user, example=folder / "example.conf"))
    return file


class Proxied:
    """A client before nginx, and the server behind it, whose side the test plays."""

    def __init__(self, folder: Path) -> None:
        self._front = folder / "front"
        self._arrived: asyncio.Queue[Streams] = asyncio.Queue()
        self._writers: list[asyncio.StreamWriter] = []
        self.connections = 0

    async def accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        self._writers.append(writer)
        await self._arrived.put((reader, writer))

    async def ask(self, request: bytes) -> Streams:
        reader, writer = await asyncio.open_unix_connection(str(self._front))
        self._writers.append(writer)
        writer.write(request)
        await writer.drain()
        return reader, writer

    async def arrival(self) -> Streams:
        return await self._arrived.get()

    async def close(self) -> None:
        for writer in self._writers:
            writer.close()
            with contextlib.suppress(ConnectionError):
                await writer.wait_closed()


@contextlib.asynccontextmanager
async def before_a_server(folder: Path, example: str) -> AsyncIterator[Proxied]:
    proxied = Proxied(folder)
    async with await asyncio.start_unix_server(proxied.accept, str(folder / "back")):
        command = [tool("nginx"), "-p", folder, "-e", "error.log", "-c", configure(folder, example)]
        run = functools.partial(
            subprocess.run, check=True, capture_output=True, timeout=patience(30)
        )
        await asyncio.to_thread(run, command)  # it returns when nginx, in the background, listens
        try:
            yield proxied
        finally:
            await proxied.close()
            await asyncio.to_thread(run, [*command, "-s", "stop"])


@pytest.fixture
async def proxied(tmp_path: Path) -> AsyncIterator[Proxied]:
    async with before_a_server(tmp_path, EXAMPLE.read_text()) as running:
        yield running


@pytest.fixture
async def buffering(tmp_path: Path) -> AsyncIterator[Proxied]:
    example = EXAMPLE.read_text().replace("proxy_buffering off;", "proxy_buffering on;")
    async with before_a_server(tmp_path, example) as running:
        yield running


GET = b"GET /generate?prompt=a HTTP/1.1\r\nHost: llm.example.org\r\n\r\n"
HEAD = (
    b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream; charset=utf-8\r\n"
    b"Transfer-Encoding: chunked\r\n\r\n"
)


def chunk(frame: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(frame), frame)


async def answer(to: Streams, body: bytes = b"{}") -> bytes:
    """Answer one request; its head."""
    reader, writer = to
    head = await reader.readuntil(b"\r\n\r\n")
    writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body))
    await writer.drain()
    return head


def test_nginx_takes_the_example(tmp_path: Path) -> None:
    configuration = configure(tmp_path, EXAMPLE.read_text())
    asked = ("-t", "-q", "-p", tmp_path, "-e", "error.log", "-c", configuration)
    assert complaints("nginx", *asked) == ""


@pytest.mark.parametrize(
    ("right", "wrong"),
    [
        ("proxy_buffering off;", "proxy_bufering off;"),
        ("proxy_read_timeout 3600s;", "proxy_read_timeout an hour;"),
        ("proxy_pass http://tickertape;", "proxy_pass tickertape;"),
    ],
)
def test_a_broken_example_would_be_found(tmp_path: Path, right: str, wrong: str) -> None:
    example = EXAMPLE.read_text()
    assert right in example
    configuration = configure(tmp_path, example.replace(right, wrong))
    asked = ("-t", "-q", "-p", tmp_path, "-e", "error.log", "-c", configuration)
    assert "[emerg]" in complaints("nginx", *asked)


async def test_each_frame_arrives_before_the_next_is_sent(proxied: Proxied) -> None:
    reader, _ = await proxied.ask(GET)
    _, server = await proxied.arrival()
    server.write(HEAD)
    for number in range(3):
        frame = b"id: tape:%d\n\n" % number
        server.write(chunk(frame))
        async with asyncio.timeout(patience(10)):
            await reader.readuntil(frame)


async def written_to_nobody(proxied: Proxied, most: int) -> int:
    """How many bytes, up to `most`, the server gets rid of to a client that reads none."""
    await proxied.ask(GET)
    _, server = await proxied.arrival()
    server.write(HEAD)
    written = 0
    with contextlib.suppress(TimeoutError):
        while written < most:
            server.write(chunk(b"a" * 2**16))
            async with asyncio.timeout(patience(0.5)):
                await server.drain()
            written += 2**16
    return written


async def test_a_reader_that_takes_nothing_holds_up_the_server(proxied: Proxied) -> None:
    """So the server sees it, cuts it off after --send-timeout, and lets its generation pause."""
    assert await written_to_nobody(proxied, 2**23) < 2**21


async def test_a_proxy_that_buffers_would_be_found(buffering: Proxied) -> None:
    """The negative control: it takes everything, and the server would never know."""
    assert await written_to_nobody(buffering, 2**23) == 2**23


async def test_what_the_server_is_told(proxied: Proxied) -> None:
    spoof = GET.replace(b"\r\n\r\n", b"\r\nX-Forwarded-For: 10.0.0.1\r\n\r\n")
    await proxied.ask(spoof)
    head = (await answer(await proxied.arrival())).decode()
    assert head.startswith("GET /generate?prompt=a HTTP/1.1\r\n")
    lines = {
        name.lower(): value for name, value in (x.split(": ") for x in head.split("\r\n")[1:-2])
    }
    assert lines["host"] == "llm.example.org"
    assert lines["x-forwarded-proto"] == "http"
    assert "10.0.0.1" not in lines["x-forwarded-for"]
    assert lines.get("connection") != "close"


async def test_connections_to_the_server_are_kept(proxied: Proxied) -> None:
    reader, writer = await proxied.ask(GET)
    upstream = await proxied.arrival()
    for _ in range(3):
        await answer(upstream)
        await reader.readuntil(b"{}")
        writer.write(GET)
    await answer(upstream)
    assert proxied.connections == 1


async def test_a_client_that_leaves_has_left_the_server_too(proxied: Proxied) -> None:
    reader, writer = await proxied.ask(GET)
    from_nginx, server = await proxied.arrival()
    await from_nginx.readuntil(b"\r\n\r\n")
    server.write(HEAD + chunk(b"id: tape:0\n\n"))
    await reader.readuntil(b"id: tape:0\n\n")
    writer.close()
    async with asyncio.timeout(patience(10)):
        assert await from_nginx.read() == b""


async def test_what_is_too_much_is_refused_by_the_server(proxied: Proxied) -> None:
    """A path just above --max-request-line, headers above --max-header-size, a body above 2 MiB."""
    line = b"GET /generate?prompt=%b HTTP/1.1\r\n" % (b"a" * 17_000)
    headers = b"".join(b"X-%d: %b\r\n" % (n, b"a" * 17_000) for n in range(4))
    length = 2 * 2**20 + 1
    big = b"POST /generate HTTP/1.1\r\nHost: llm.example.org\r\nContent-Length: %d\r\n\r\n" % length
    for request in (
        line + b"Host: llm.example.org\r\n\r\n",
        GET.replace(b"\r\n\r\n", b"\r\n" + headers + b"\r\n"),
        big + b"a" * length,
    ):
        reader, _ = await proxied.ask(request)
        upstream = await proxied.arrival()
        await upstream[0].readuntil(b"\r\n")
        upstream[1].write(b"HTTP/1.1 413 Mine\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
        upstream[
            1
        ].write_eof()  # as app/sockets/http_protocol.py does: closed, it would reset what comes in
        assert await reader.readuntil(b"\r\n") == b"HTTP/1.1 413 Mine\r\n"
        upstream[1].close()


@pytest.mark.parametrize(
    "path",
    [b"/metrics", b"/metrics/", b"//metrics//", b"/%6detrics/", b"/metrics%2f", b"/x/../metrics"],
)
async def test_metrics_are_not_for_everybody(proxied: Proxied, path: bytes) -> None:
    """However they are spelt so that the server would understand it."""
    reader, _ = await proxied.ask(b"GET %b HTTP/1.1\r\nHost: llm.example.org\r\n\r\n" % path)
    assert await reader.readuntil(b"\r\n") == b"HTTP/1.1 404 Not Found\r\n"
    assert proxied.connections == 0


def test_nginx_lets_go_of_connections_before_the_server_does() -> None:
    seconds = re.search(r"keepalive_timeout (\d+)s;", EXAMPLE.read_text())
    assert seconds
    assert int(seconds[1]) < Settings().keep_alive_timeout
