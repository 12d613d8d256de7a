"""The client's way to its server: addresses as users write them, proxies, certificates, keys."""

import asyncio

import pytest

from tests.server import RunningServer, free_port
from tickertape import Client, RefusedError, TickertapeError
from tickertape.server_address import authorization, base_url, is_loopback

VARIABLES = ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY", "SSL_CERT_FILE", "SSL_CERT_DIR")
DEAD = "http://127.0.0.1:9"


@pytest.fixture(autouse=True)
def _clean(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.lower(), raising=False)


async def ask(url: str, api_key: str | None = None) -> int:
    async with Client(url, api_key=api_key, max_retries=0) as client:
        answer = await client.complete("x", max_length=2)
        return answer.usage["completion_tokens"]


async def refusal(url: str, api_key: str | None = None) -> str:
    """One line, which says what to do."""
    with pytest.raises(TickertapeError) as caught:
        await ask(url, api_key)
    assert "\n" not in str(caught.value)
    assert ";" in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize(
    ("variable", "value"),
    [
        ("HTTP_PROXY", DEAD),
        ("http_proxy", DEAD),
        ("ALL_PROXY", DEAD),
        ("ALL_PROXY", "socks5://127.0.0.1:9"),
        ("HTTP_PROXY", "foo://127.0.0.1"),
        ("HTTPS_PROXY", "not a url"),
        ("NO_PROXY", "[::1]"),
        ("NO_PROXY", "localhost,127.0.0.1,[::1]"),
        ("SSL_CERT_FILE", "/none/such"),
    ],
)
async def test_loopback_is_direct_whatever_the_environment_says(
    tiny_server: RunningServer, monkeypatch: pytest.MonkeyPatch, variable: str, value: str
) -> None:
    monkeypatch.setenv(variable, value)
    for host in ("127.0.0.1", "localhost", "LocalHost.", "[::ffff:127.0.0.1]", "0.0.0.0"):
        assert is_loopback(base_url(f"http://{host}:1").host)
    for host in ("127.0.0.1", "localhost"):
        try:
            assert await ask(f"http://{host}:{tiny_server.port}") == 2
        except RefusedError as error:
            raise AssertionError(host) from error


@pytest.mark.parametrize(
    ("variable", "value", "words"),
    [
        ("HTTP_PROXY", "socks9://127.0.0.1:9", "HTTP_PROXY"),
        ("ALL_PROXY", "socks5://127.0.0.1:9", "socks"),
        ("NO_PROXY", "[::1]", "NO_PROXY"),
        ("SSL_CERT_FILE", "/none/such", "SSL_CERT_FILE"),
        ("HTTP_PROXY", DEAD, "not reached by the proxy of HTTP_PROXY"),
    ],
)
async def test_what_is_wrong_with_the_environment_is_one_line(
    monkeypatch: pytest.MonkeyPatch, variable: str, value: str, words: str
) -> None:
    monkeypatch.setenv(variable, value)
    assert words in await refusal("http://tickertape.invalid")


async def test_another_machine_is_asked_by_the_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    async def proxy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        asked.append(await reader.readline())
        writer.write(b"HTTP/1.1 403 No\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
        writer.close()

    async with await asyncio.start_server(proxy, "127.0.0.1", 0) as listening:
        port = listening.sockets[0].getsockname()[1]
        monkeypatch.setenv("HTTP_PROXY", f"http://127.0.0.1:{port}")
        with pytest.raises(RefusedError):
            await ask("http://tickertape.invalid")
    assert asked == [b"POST http://tickertape.invalid/generate HTTP/1.1\r\n"]


async def test_addresses_as_users_write_them(tiny_server: RunningServer) -> None:
    port = tiny_server.port
    for url in (
        f"127.0.0.1:{port}",
        f"localhost:{port}",
        f"http://127.0.0.1:{port}/",
        f" HTTP://LOCALHOST:{port}// ",
    ):
        assert await ask(url) == 2, url
    assert str(base_url("[::1]:8000")) == "http://[::1]:8000"
    assert str(base_url("https://my.example/prefix/")) == "https://my.example/prefix/"


@pytest.mark.parametrize(
    "url",
    ["", "http://", "ftp://my.example", "::1", "http://[::1", "http://a:b", "http://a:99999", "/"],
)
async def test_addresses_that_are_none(url: str) -> None:
    assert "give one such as http://127.0.0.1:8000" in await refusal(url)


async def test_nobody_at_an_address() -> None:
    assert "nothing answers" in await refusal(f"http://127.0.0.1:{free_port()}")


def test_keys() -> None:
    name = b"Authorization"
    assert authorization(None) == authorization("") == authorization(" \n") == {}
    assert authorization("key \n") == {name: b"Bearer key"}
    assert authorization("schlüssel-ключ") == {name: "Bearer schlüssel-ключ".encode()}
    assert authorization("k\udcff") == {name: b"Bearer k\xff"}
    for key in ("a\nb", "a\x00b", "a\x7fb", "a\u2028b", "\ufeffkey"):
        with pytest.raises(ValueError, match="control character"):
            authorization(key)


async def test_a_key_that_no_header_carries_is_one_line(tiny_server: RunningServer) -> None:
    assert "control character" in await refusal(tiny_server.url, "a\r\nX: b")
