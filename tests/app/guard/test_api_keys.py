"""API keys: every route wants one or is on the list of those that do not; tapes are their key's."""

import re
from collections.abc import AsyncIterator, Iterable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from app.guard.api_keys import ApiKeys
from app.main import create_app
from app.settings import Settings, SettingsError
from tests.answers import Reading
from tests.server import RunningServer, running
from tests.speed import patience
from tests.tiny import tiny_llama
from tickertape import Client, Done, RefusedError

ALICE, BOB = "alice's key", "bob-ключ"
BODY: dict[str, Any] = {"prompt": "x" * 100, "max_length": 5, "ignore_eos": True}

# What everybody may see.
OPEN = {"/", "/favicon.ico", "/dash", "/docs", "/openapi.json", "/static"}
OPEN |= {"/health", "/ready", "/metrics", "/version"}


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_llama(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="module")
def locked(tiny: Path) -> Iterator[RunningServer]:
    keys = tiny / "keys"
    keys.write_text(f"# who may ask\n\n{ALICE}\n  {BOB}  \n")
    with running(tiny / "log", "--model", str(tiny), "--api-key-file", str(keys)) as server:
        yield server
        assert server.stop() == 0


def walk(routes: Iterable[Any]) -> Iterator[tuple[str, str]]:
    """Every method and path, those of included routers and of mounts too."""
    for route in routes:
        if router := getattr(route, "original_router", None):
            yield from walk(router.routes)
        else:
            for method in getattr(route, "methods", None) or ["GET"]:
                yield method, route.path


def url_of(path: str) -> str:
    """A path that a route takes: something of the right form for each of its parameters."""
    return re.sub(r"\{[^}]+\}", "A" * 22, path)


def bearer(key: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {key}"}


@pytest.fixture
async def http(locked: RunningServer) -> AsyncIterator[httpx.AsyncClient]:
    async with httpx.AsyncClient(base_url=locked.url, timeout=patience(60)) as client:
        yield client


async def test_every_route_wants_a_key_or_is_on_the_list(
    tiny: Path, http: httpx.AsyncClient
) -> None:
    paths = set(walk(create_app(Settings(model=str(tiny))).routes))
    assert {path for _, path in paths} >= OPEN
    guarded = {(method, path) for method, path in paths if path not in OPEN}
    assert ("DELETE", "/v1/tapes/{tape_id}") in guarded
    for method, path in guarded:
        for headers in ({}, bearer("nobody's"), {"Authorization": f"Basic {ALICE}"}):
            json = BODY if method == "POST" else None
            answer = await http.request(method, url_of(path), headers=headers, json=json)
            assert answer.status_code == 401, (method, path, headers)
            assert answer.headers["WWW-Authenticate"] == "Bearer"
            assert answer.json()["error"]["type"] == "authentication_error"
    for path in OPEN - {"/static"}:
        assert (await http.get(path)).status_code == 200


async def test_nothing_of_a_stranger_is_read(http: httpx.AsyncClient) -> None:
    """Neither the body nor what it claims to be: a megabyte that is no JSON is 401, too."""
    for body, kind in [(b"[" * (1 << 20), "application/json"), (b"x", "text/plain")]:
        headers = {"Content-Type": kind}
        for path in ("/generate", "/v1/chat/completions", "/tokenize"):
            assert (await http.post(path, content=body, headers=headers)).status_code == 401


@pytest.mark.parametrize("owner", [ALICE, BOB])
async def test_a_tape_does_not_exist_for_another_key(http: httpx.AsyncClient, owner: str) -> None:
    other = BOB if owner == ALICE else ALICE
    tape = (await http.post("/generate", json=BODY, headers=raw(owner))).json()["tape"]
    path, resumed = f"/v1/tapes/{tape}", {b"Last-Event-ID": f"{tape}:2".encode()}
    for method, url, json in [
        ("GET", path, None),
        ("DELETE", path, None),
        ("GET", "/generate?prompt=x", None),
        ("POST", "/generate", BODY),
        ("POST", "/v1/tapes", BODY),
    ]:
        headers = raw(other) | resumed
        refused = await http.request(method, url, json=json, headers=headers)
        assert (refused.status_code, refused.json()["error"]["code"]) == (404, "tape_not_found")
        assert (await http.request(method, url, json=json, headers=resumed)).status_code == 401
    reading = Reading(tape, 2)
    async with http.stream("GET", path, headers=raw(owner) | resumed) as response:
        await reading.read(response)


def raw(key: str) -> dict[bytes, bytes]:
    """Headers are bytes: a key may be any."""
    return {b"Authorization": f"Bearer {key}".encode()}


async def test_idempotency_keys_and_cached_prompts_are_a_keys_own(http: httpx.AsyncClient) -> None:
    again = {b"Idempotency-Key": b"one"}
    body = BODY | {"prompt": "shared " * 20}
    first = (await http.post("/generate", json=body, headers=raw(ALICE) | again)).json()
    second = (await http.post("/generate", json=body, headers=raw(BOB) | again)).json()
    assert first["tape"] != second["tape"]
    assert second["usage"]["cached_tokens"] == 0
    third = (await http.post("/generate", json=body, headers=raw(BOB))).json()
    assert third["usage"]["cached_tokens"] > 0


async def test_our_client_carries_its_key(locked: RunningServer) -> None:
    async with Client(locked.url, api_key=ALICE) as client:
        events = [event async for event in client.generate("x", max_length=2)]
        done = events[-1]
        assert isinstance(done, Done)
        assert (await client.snapshot(done.tape))["status"] == "done"
    async with Client(locked.url) as client:
        with pytest.raises(RefusedError, match="Authorization: Bearer") as refusal:
            await client.complete("x")
        assert refusal.value.status == 401


def test_files_that_hold_no_key(tiny: Path) -> None:
    empty = tiny / "empty"
    empty.write_text("# none\n")
    for path in (empty, tiny / "missing", tiny):
        with pytest.raises(SettingsError, match="--api-key-file"):
            create_app(Settings(model=str(tiny), api_key_file=path))


def test_without_keys_everybody_is_the_same() -> None:
    assert ApiKeys().owner(None) == ApiKeys().owner(b"anything") == ""
