"""Under which name, from which page, with which key and how often a client may ask."""

import json
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from app.errors import APIError
from app.guard.api_keys import ApiKeys
from app.guard.hosts import own_names
from app.main import create_app
from app.settings import Settings
from tests.answers import typing
from tests.app.api.test_bad_input import error_of
from tests.app.guard.test_api_keys import bearer, url_of, walk
from tests.app.plain_http import exchange
from tests.server import RunningServer, running
from tests.speed import patience

ORIGIN = "https://app.example"
SHORT: dict[str, Any] = {"prompt": "x", "max_length": 1}
LONG: dict[str, Any] = {"prompt": "x", "max_length": 400, "ignore_eos": True, "grace": 60}


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("keys") / "keys"
    path.write_text("alice\nbusy\nhasty\n")
    return path


@pytest.fixture(scope="module")
def guarded(tiny_model: Path, keys: Path) -> Iterator[RunningServer]:
    flags = ["--model", str(tiny_model), "--api-key-file", str(keys)]
    flags += ["--cors-origins", f"{ORIGIN}, http://localhost:3000", "--allowed-hosts", "my.example"]
    flags += ["--rate-limit", "3/minute", "--max-concurrent", "2"]
    with running(keys.with_name("log"), *flags) as server:
        yield server
        assert server.stop() == 0, server.log.read_text()


@pytest.fixture
async def http(guarded: RunningServer) -> AsyncIterator[httpx.AsyncClient]:
    async with httpx.AsyncClient(base_url=guarded.url, timeout=patience(60)) as client:
        yield client


@pytest.fixture
async def plain(tiny_server: RunningServer) -> AsyncIterator[httpx.AsyncClient]:
    async with httpx.AsyncClient(base_url=tiny_server.url, timeout=patience(60)) as client:
        yield client


# ---- names


async def test_dns_rebinding_reaches_no_route_by_no_method(
    tiny_model: Path, plain: httpx.AsyncClient
) -> None:
    """CVE-2024-28224, CVE-2025-66416, CVE-2026-27482: the last for a method that was forgotten."""
    paths = {url_of(path) for _, path in walk(create_app(Settings(model=str(tiny_model))).routes)}
    for path in [*paths, "/static/app.js", "/nothing"]:
        for method in ("GET", "POST", "PUT", "DELETE", "HEAD", "OPTIONS", "PATCH", "TRACE"):
            for host in ("evil.example", "127.0.0.1.evil.example", "localhost@evil.example:8000"):
                answer = await plain.request(method, path, headers={"Host": host})
                assert answer.status_code == 421, (method, path, host)
                if method != "HEAD":
                    assert "--allowed-hosts" in error_of(answer)["message"]


@pytest.mark.parametrize(
    "host", ["localhost", "LOCALHOST:1", "127.0.0.1:80", "[::1]", "[::1]:8000", "127.0.0.1"]
)
async def test_every_name_of_this_machine_is_answered(plain: httpx.AsyncClient, host: str) -> None:
    assert (await plain.get("/health", headers={"Host": host})).status_code == 200


async def test_one_right_host_beside_a_wrong_one_is_wrong(tiny_server: RunningServer) -> None:
    end = b"Connection: close\r\n\r\n"
    for hosts, status in [
        (b"Host: localhost\r\nHost: evil.example\r\n", b"421"),
        (b"Host:\r\n", b"421"),
        (b"", b"200"),
    ]:
        raw = await exchange(tiny_server.port, b"GET /health HTTP/1.1\r\n" + hosts + end)
        assert raw.startswith(b"HTTP/1.1 " + status)
    raw = await exchange(
        tiny_server.port, b"GET http://evil.example/health HTTP/1.1\r\nHost: evil.example\r\n" + end
    )
    assert raw.startswith(b"HTTP/1.1 421")


async def test_allowed_hosts_are_answered_too(http: httpx.AsyncClient) -> None:
    for host, status in [("my.example", 200), ("My.Example:443", 200), ("your.example", 421)]:
        assert (await http.get("/health", headers={"Host": host})).status_code == status


@pytest.mark.parametrize(
    ("bound", "allowed", "names"),
    [
        ("127.0.0.1", [], {"localhost", "127.0.0.1", "[::1]"}),
        ("127.0.0.2", [], {"localhost", "127.0.0.1", "[::1]", "127.0.0.2"}),
        ("::1", [], {"localhost", "127.0.0.1", "[::1]"}),
        ("Localhost", ["A.b"], {"localhost", "127.0.0.1", "[::1]", "a.b"}),
        ("0.0.0.0", [], None),
        ("example.org", [], None),
        ("0.0.0.0", ["a.b"], {"localhost", "127.0.0.1", "[::1]", "0.0.0.0", "a.b"}),
        ("127.0.0.1", ["*"], None),
    ],
)
def test_which_names_are_ours(bound: str, allowed: list[str], names: set[str] | None) -> None:
    assert own_names(bound, allowed) == names


# ---- pages


async def test_other_pages_may_not_read_by_default(plain: httpx.AsyncClient) -> None:
    headers = {"Origin": ORIGIN, "Access-Control-Request-Method": "POST"}
    for method in ("GET", "OPTIONS"):
        answer = await plain.request(method, "/health", headers=headers)
        assert not any(name.startswith("access-control") for name in answer.headers)


async def test_pages_that_are_named_may(http: httpx.AsyncClient) -> None:
    asked = {
        "Access-Control-Request-Method": "DELETE",
        "Access-Control-Request-Headers": "authorization,last-event-id,idempotency-key",
    }
    preflight = await http.options("/v1/tapes/x", headers=asked | {"Origin": ORIGIN})
    assert preflight.status_code == 200
    assert "DELETE" in preflight.headers["Access-Control-Allow-Methods"]
    assert "idempotency-key" in preflight.headers["Access-Control-Allow-Headers"].lower()
    refused = await http.options("/v1/tapes/x", headers=asked | {"Origin": "https://evil.example"})
    assert "Access-Control-Allow-Origin" not in refused.headers
    for path, status in [("/health", 200), ("/v1/tapes/x", 401), ("/nothing", 404)]:
        answer = await http.get(path, headers={"Origin": ORIGIN})
        assert answer.status_code == status
        assert answer.headers["Access-Control-Allow-Origin"] == ORIGIN
        exposed = answer.headers["Access-Control-Expose-Headers"].lower()
        for name in ("x-tape", "content-location", "location", "retry-after", "x-request-id"):
            assert name in exposed
        assert "Access-Control-Allow-Credentials" not in answer.headers
    evil = await http.get("/health", headers={"Origin": "https://evil.example"})
    assert "Access-Control-Allow-Origin" not in evil.headers


async def test_pages_that_are_named_may_also_where_this_network_is_private(
    http: httpx.AsyncClient,
) -> None:
    asked = {
        "Access-Control-Request-Method": "POST",
        "Access-Control-Request-Private-Network": "true",
    }
    preflight = await http.options("/generate", headers=asked | {"Origin": ORIGIN})
    assert preflight.status_code == 200
    assert preflight.headers["Access-Control-Allow-Private-Network"] == "true"
    assert preflight.headers["Access-Control-Allow-Origin"] == ORIGIN
    refused = await http.options("/generate", headers=asked | {"Origin": "https://evil.example"})
    assert refused.status_code == 400
    assert "Access-Control-Allow-Private-Network" not in refused.headers


@pytest.mark.parametrize("path", ["/", "/dash", "/docs", "/static/app.js", "/static/style.css"])
async def test_pages_load_and_run_nothing_of_others(plain: httpx.AsyncClient, path: str) -> None:
    headers = (await plain.get(path)).headers
    policy = headers["Content-Security-Policy"]
    assert policy.startswith("default-src 'none';")
    assert "unsafe" not in policy
    assert "frame-ancestors 'none'" in policy
    assert headers["X-Content-Type-Options"] == "nosniff"
    assert headers["Referrer-Policy"] == "no-referrer"
    assert headers["Cross-Origin-Opener-Policy"] == "same-origin"


async def test_nobody_guesses_the_type_of_an_answer(plain: httpx.AsyncClient) -> None:
    for path in ("/health", "/nothing", "/generate?prompt=x&max_length=1", "/openapi.json"):
        assert (await plain.get(path)).headers.get_list("X-Content-Type-Options") == ["nosniff"]


# ---- keys


def test_keys_come_and_go_while_the_server_runs(guarded: RunningServer, keys: Path) -> None:
    """Also with a file that is no good: what is tried with it was another before."""

    def status(key: str) -> int:
        return httpx.get(f"{guarded.url}/v1/tapes/x", headers=bearer(key)).status_code

    before = keys.read_text()
    assert (status("alice"), status("carol")) == (404, 401)
    keys.write_text(before.replace("alice", "carol, once alice"))
    assert (status("alice"), status("carol, once alice")) == (401, 404)
    for break_it in (lambda: keys.write_text("# nobody\n"), keys.unlink):
        break_it()
        for _ in range(3):
            assert (status("alice"), status("carol, once alice")) == (401, 404)
    lines = map(json.loads, guarded.log.read_text().splitlines())
    errors = [line["event"] for line in lines if line["level"] == "error"]
    assert len(errors) == 2
    assert "holds no key; mend the file" in errors[0]
    keys.write_text(before)
    assert (status("alice"), status("carol, once alice")) == (404, 401)
    assert "carol" not in guarded.log.read_text()


@pytest.mark.parametrize(
    "content",
    [
        b"\xef\xbb\xbfkey\n",
        b"key\r\nother\r\n",
        b"  key \t\n",
        b"Bearer key",
        b"Authorization: Bearer key\n",
        b"# mine\n\nbearer  key\n",
        b"\xef\xbb\xbf# mine\nkey",
    ],
)
def test_a_key_is_found_however_its_file_was_saved(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "keys").write_bytes(content)
    keys = ApiKeys(tmp_path / "keys")
    assert keys.owner(b"key")
    for other in (b"Bearer key", b"mine", b"", b"\xef\xbb\xbfkey"):
        with pytest.raises(APIError):
            keys.owner(other)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("key\n".encode("utf-16"), "is UTF-16; save it as UTF-8"),
        ("key\n".encode("utf-16-le"), "is UTF-16-LE; save it as UTF-8"),
        ("key\n".encode("utf-32"), "is UTF-32; save it as UTF-8"),
        (b"a\nb\x01c\n", "line 2 of .* has a control character"),
        (b"a\nlonger-than-four\x00\n", "line 2 of .* has a control character"),
        (b"\xef\xbb\xbf\n", "holds no key"),
        (b"Bearer \n", "holds no key"),
    ],
)
def test_a_key_file_that_would_lock_out_is_refused(
    tmp_path: Path, content: bytes, words: str
) -> None:
    (tmp_path / "keys").write_bytes(content)
    with pytest.raises(ValueError, match=words):
        ApiKeys(tmp_path / "keys")


@pytest.mark.parametrize("key", [b"\xff\xfe", "ключ".encode(), b"x" * 60_000])
async def test_cve_2025_59425_keys_are_compared_as_bytes(
    http: httpx.AsyncClient, key: bytes
) -> None:
    headers = {b"Authorization": b"Bearer " + key}
    assert (await http.get("/v1/tapes/x", headers=headers)).status_code == 401


# ---- how much


async def test_who_starts_too_often_is_told_when_to_come_back(http: httpx.AsyncClient) -> None:
    hasty = bearer("hasty")
    again = {"Idempotency-Key": "one"}
    tapes = []
    for headers in (hasty | again, hasty | again, hasty, hasty):
        answer = await http.post("/generate", json=SHORT, headers=headers)
        assert answer.status_code == 200
        tapes.append(answer.json()["tape"])
    for method, path in [("POST", "/v1/tapes"), ("POST", "/generate"), ("GET", "/generate")]:
        body = {"json": SHORT} if method == "POST" else {"params": SHORT}
        answer = await http.request(method, path, headers=hasty, **body)
        assert (answer.status_code, error_of(answer)["code"]) == (429, "rate_limited")
        assert error_of(answer)["type"] == "rate_limit_error"
        assert 50 <= int(answer.headers["Retry-After"]) <= 60
        resumed = hasty | {"Last-Event-ID": f"{tapes[-1]}:0"}
        resume = await http.request(method, path, headers=resumed, **body)
        assert resume.status_code == 200
        assert resume.headers["X-Tape"] == tapes[-1]
    assert (await http.get(f"/v1/tapes/{tapes[-1]}", headers=hasty)).status_code == 200
    assert (await http.post("/generate", json=SHORT, headers=bearer("alice"))).status_code == 200


async def test_who_has_too_many_at_once_waits_for_one_to_end(
    guarded: RunningServer, http: httpx.AsyncClient
) -> None:
    http.headers.update(bearer("busy"))
    tapes = []
    for _ in range(2):
        async with typing(http, LONG) as (reading, _):
            tapes.append(reading.tape)
    await guarded.health_becomes(5, paused=2)
    answer = await http.post("/v1/tapes", json=SHORT)
    assert (answer.status_code, error_of(answer)["code"]) == (429, "too_many_concurrent")
    assert int(answer.headers["Retry-After"]) >= 1
    assert (await http.delete(f"/v1/tapes/{tapes[0]}")).status_code == 204
    assert (await http.post("/generate", json=SHORT)).status_code == 200
    assert (await http.delete(f"/v1/tapes/{tapes[1]}")).status_code == 204


@pytest.mark.parametrize(
    ("name", "value"),
    [("rate_limit", "many"), ("rate_limit", "5/lightyear"), ("allowed_hosts", "a,,b")],
)
def test_limits_that_are_none_are_told_at_the_start(name: str, value: str) -> None:
    with pytest.raises(ValueError, match=name):
        Settings(**{name: value})
