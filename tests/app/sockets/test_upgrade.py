"""Requests for another protocol, as Java's HttpClient and `curl --http2` send them: RFC 9110, 7.8.

They are answered as if nothing had been asked for.
"""

import asyncio
import json
import shutil
import subprocess

import pytest

from tests.app.plain_http import GET, Script, connection, exchange, refusal, serving
from tests.speed import patience

H2C = b"Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAEAAEAAAAIAAAAB\r\n"
WEBSOCKET = (
    b"Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n"
    b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n"
)
WISHES = [H2C, WEBSOCKET, b"upgrade: foo/2, bar\r\nconnection: keep-alive, upgrade\r\n"]
LENGTH = b"Content-Length: 5\r\n\r\nhello"
CHUNKS = b"Transfer-Encoding: chunked\r\n\r\n2\r\nhe\r\n3\r\nllo\r\n0\r\n\r\n"
HEAD = b"POST /body HTTP/1.1\r\nHost: localhost\r\n"
END = b"\r\n0\r\n\r\n"


@pytest.mark.parametrize("wish", WISHES, ids=["h2c", "websocket", "foo"])
@pytest.mark.parametrize("body", [LENGTH, CHUNKS], ids=["length", "chunks"])
@pytest.mark.parametrize("size", [1, 7, 1 << 16])
async def test_the_body_is_read_and_the_connection_kept(
    wish: bytes, body: bytes, size: int
) -> None:
    """Whatever comes together in one packet."""
    script = Script()
    async with (
        serving(script) as port,
        connection(port) as (reader, writer),
        asyncio.timeout(patience(20)),
    ):
        request = HEAD + wish + body
        for _ in range(2):
            for start in range(0, len(request), size):
                writer.write(request[start : start + size])
                await writer.drain()
                await asyncio.sleep(0)
            head = await reader.readuntil(b"\r\n\r\n")
            assert head.startswith(b"HTTP/1.1 200 ")
            assert b"upgrade" not in head.lower()
            assert (await reader.readuntil(END)).endswith(b"end of /body: hello" + END)
        writer.write(GET % b"next")
        await reader.readuntil(b"end of /next" + END)
    assert script.begun == ["/body", "/body", "/next"]


async def test_a_get_and_all_that_waits_behind_it() -> None:
    script = Script()
    asking = b"GET /asking HTTP/1.1\r\nHost: localhost\r\n" + H2C + b"\r\n"
    async with (
        serving(script) as port,
        connection(port) as (reader, writer),
        asyncio.timeout(patience(20)),
    ):
        writer.write(asking + GET % b"second" + HEAD + H2C + LENGTH + asking * 1500 + GET % b"last")
        raw = b""
        while not raw.endswith(b"end of /last" + END):
            raw += await reader.read(1 << 16)
    assert raw.count(b"HTTP/1.1 200 ") == len(script.begun) == 1504
    assert b"end of /body: hello" in raw


async def test_other_forms_of_a_request() -> None:
    async with serving(Script()) as port:
        raw = await exchange(port, HEAD.replace(b"1.1", b"1.0") + H2C + LENGTH)
        assert raw.endswith(b"\r\n\r\nend of /body: hello")
        closing = H2C.replace(b"Connection: ", b"Connection: close, ")
        raw = await exchange(port, HEAD + closing + LENGTH)
        assert raw.count(b"HTTP/1.1") == 1
        assert raw.endswith(b"end of /body: hello" + END)
        async with connection(port) as (reader, writer), asyncio.timeout(patience(20)):
            writer.write(HEAD + H2C + b"Expect: 100-continue\r\nContent-Length: 5\r\n\r\n")
            await reader.readuntil(b"HTTP/1.1 100 Continue\r\n\r\n")
            writer.write(b"hello")
            await reader.readuntil(b"end of /body: hello" + END)


@pytest.mark.parametrize(
    ("request_", "answer"),
    [
        (HEAD + H2C + b"Content-Length: 3000000\r\n\r\n", (413, "body_too_large")),
        (HEAD + H2C + b"X: " + b"x" * 70_000 + b"\r\n\r\n", (431, "headers_too_large")),
        (HEAD + H2C + LENGTH.replace(b"\r\n\r\n", b"\r\n" + CHUNKS), (400, "malformed_request")),
        (b"CONNECT localhost:80 HTTP/1.1\r\nHost: localhost\r\n\r\nx", (501, "no_proxy")),
    ],
    ids=["large body", "large head", "two lengths", "connect"],
)
async def test_the_limits_hold(request_: bytes, answer: tuple[int, str]) -> None:
    script = Script()
    async with serving(script) as port:
        assert refusal(await exchange(port, request_)) == answer
    assert script.begun == []


async def test_a_body_that_does_not_come_is_refused_all_the_same() -> None:
    async with serving(Script(), body_timeout=0.2) as port:
        raw = await exchange(port, HEAD + H2C + b"Content-Length: 5\r\n\r\nhell")
        assert refusal(raw) == (408, "body_too_slow")


def _curl_asks_for_http2() -> bool:
    if not (curl := shutil.which("curl")):
        return False
    told = subprocess.run([curl, "--version"], capture_output=True, text=True, check=True)
    return "HTTP2" in told.stdout


@pytest.mark.skipif(not _curl_asks_for_http2(), reason="no curl that knows HTTP/2")
async def test_curl_with_http2() -> None:
    async with serving(Script()) as port, asyncio.timeout(patience(30)):
        url = f"http://127.0.0.1:{port}"
        body = json.dumps({"prompt": "x" * 5000})
        process = await asyncio.create_subprocess_exec(
            *("curl", "-sS", "--http2", "--noproxy", "*"),
            *("-d", body, f"{url}/body", f"{url}/body", "--next", "-sS", f"{url}/after"),
            stdout=asyncio.subprocess.PIPE,
        )
        told, _ = await process.communicate()
    assert process.returncode == 0
    assert told.decode() == f"end of /body: {body}" * 2 + "end of /after"
