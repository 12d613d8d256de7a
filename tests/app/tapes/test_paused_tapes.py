"""What waits for a reader has bounds, and takes nothing from other clients."""

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

import httpx
import pytest

from tests.app.guard.test_api_keys import bearer
from tests.server import RunningServer, read_stream, running
from tests.speed import patience
from tests.tiny import CHAT_TEMPLATE, tiny_llama

SEATS, WAITING, MAX_PAUSED, BUDGET = 2, 6, 5, 300_000
LONG: dict[str, Any] = {"prompt": "x", "max_length": 25_000, "ignore_eos": True, "grace": 3600}


@pytest.fixture(scope="module")
def narrow(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    """Two seats, and a model whose answers do not end while a test runs."""
    path = tiny_llama(tmp_path_factory.mktemp("long"), CHAT_TEMPLATE, context=32_768)
    keys = path / "keys"
    keys.write_text("alice\nmallory\n")
    flags = ["--model", str(path), "--api-key-file", str(keys), "--max-num-seqs", str(SEATS)]
    flags += ["--max-waiting", str(WAITING), "--max-paused", str(MAX_PAUSED)]
    with running(path / "log", *flags, "--tape-memory", str(BUDGET)) as server:
        yield server
        assert server.stop() == 0, server.log.read_text()


@asynccontextmanager
async def client_of(server: RunningServer, key: str) -> AsyncIterator[httpx.AsyncClient]:
    async with httpx.AsyncClient(
        base_url=server.url, headers=bearer(key), timeout=patience(60)
    ) as client:
        yield client


@pytest.fixture
async def alice(narrow: RunningServer) -> AsyncIterator[httpx.AsyncClient]:
    async with client_of(narrow, "alice") as client:
        yield client


@pytest.fixture
async def mallory(narrow: RunningServer) -> AsyncIterator[httpx.AsyncClient]:
    tapes: list[str] = []

    async def note(answer: httpx.Response) -> None:
        if tape := answer.headers.get("X-Tape"):
            tapes.append(tape)

    async with client_of(narrow, "mallory") as client:
        client.event_hooks = {"response": [note]}
        yield client
        for tape in tapes:
            await client.delete(f"/v1/tapes/{tape}")
    await narrow.health_becomes(10, running=0, waiting=0, paused=0)


async def leave(http: httpx.AsyncClient, **fields: Any) -> str:
    """Begin a stream and leave it at its headers; its tape."""
    async with http.stream("POST", "/generate", json=LONG | fields | {"stream": True}) as answer:
        assert answer.status_code == 200, await answer.aread()
        return answer.headers["X-Tape"]


async def paused(http: httpx.AsyncClient, tape: str) -> None:
    while (await snapshot(http, tape))["status"] not in ("paused", "done"):  # noqa: ASYNC110
        await asyncio.sleep(0.01)


async def snapshot(http: httpx.AsyncClient, tape: str) -> dict[str, Any]:
    answer = await http.get(f"/v1/tapes/{tape}", headers={"Accept": "application/json"})
    found: dict[str, Any] = answer.json()
    return found


async def left(http: httpx.AsyncClient, count: int, **fields: Any) -> list[str]:
    """So many tapes, each paused before the next begins."""
    tapes = []
    for _ in range(count):
        tapes.append(await leave(http, **fields))
        await paused(http, tapes[-1])
    return tapes


async def test_beyond_the_bound_the_oldest_of_who_has_most_is_cancelled_and_told_why(
    narrow: RunningServer, alice: httpx.AsyncClient, mallory: httpx.AsyncClient
) -> None:
    (kept,) = await left(alice, 1)
    tapes = await left(mallory, 2 * MAX_PAUSED)
    assert narrow.health()["paused"] <= MAX_PAUSED
    statuses = [(await snapshot(mallory, tape))["status"] for tape in tapes]
    assert statuses == ["done"] * (MAX_PAUSED + 1) + ["paused"] * (MAX_PAUSED - 1)
    assert (await snapshot(alice, kept))["status"] == "paused"
    async with mallory.stream("GET", f"/v1/tapes/{tapes[0]}") as answer:
        frames = [frame async for frame in read_stream(answer)]
    assert frames[-1].event == "done"
    assert "--max-paused" in str(frames[-1].data)
    assert '"cancelled"' in str(frames[-1].data)
    await alice.delete(f"/v1/tapes/{kept}")


async def test_a_tape_of_more_choices_than_may_wait_is_cancelled_itself(
    mallory: httpx.AsyncClient,
) -> None:
    body = {"prompt": "x", "max_tokens": 30_000, "ignore_eos": True, "n": MAX_PAUSED + 1}
    async with mallory.stream("POST", "/v1/completions", json=body | {"stream": True}) as answer:
        tape = answer.headers["X-Tape"]
    await paused(mallory, tape)
    assert (await snapshot(mallory, tape))["finish_reason"] == "cancelled"


async def test_what_one_client_resumes_keeps_nobody_else_out(
    narrow: RunningServer, alice: httpx.AsyncClient, mallory: httpx.AsyncClient
) -> None:
    """No resume is refused, so there are more sequences than places; all of them are one's own."""
    tapes = await left(mallory, MAX_PAUSED)
    for _ in range(SEATS + WAITING):
        assert (await mallory.post("/v1/tapes", json=LONG)).status_code == 201
    async with AsyncExitStack() as stack:
        for tape in tapes:
            answer = await stack.enter_async_context(mallory.stream("GET", f"/v1/tapes/{tape}"))
            assert answer.status_code == 200
        await narrow.health_becomes(10, paused=0)
        refused = await mallory.post("/v1/tapes", json=LONG)
        assert (refused.status_code, refused.json()["error"]["code"]) == (429, "queue_full")
        answers = [await alice.post("/v1/tapes", json=LONG) for _ in range(3)]
        assert [answer.status_code for answer in answers] == [201, 201, 429], "a quarter more"
    for answer in answers[:2]:
        await alice.delete(f"/v1/tapes/{answer.headers['X-Tape']}")


@pytest.mark.parametrize(
    "begin",
    [
        ("/v1/tapes", LONG),
        ("/v1/responses", {"input": "x", "background": True, "ignore_eos": True}),
        ("/generate", LONG | {"stream": True, "on_disconnect": "continue"}),
    ],
    ids=["unread", "background", "continue"],
)
async def test_what_runs_without_a_reader_counts_as_running(
    mallory: httpx.AsyncClient, begin: tuple[str, dict[str, Any]]
) -> None:
    path, body = begin
    statuses = []
    for _ in range(SEATS + WAITING + 1):
        async with mallory.stream("POST", path, json=body) as answer:
            statuses.append(answer.status_code)
    assert statuses[:-1] == [statuses[0]] * (SEATS + WAITING)
    assert statuses[-1] == 429


async def test_paused_prompts_count_towards_the_memory_of_all_tapes(
    narrow: RunningServer, alice: httpx.AsyncClient, mallory: httpx.AsyncClient
) -> None:
    """Three prompts of 100 kB fit; when more come, the first go."""
    (kept,) = await left(alice, 1)
    prompt = "x" * 3000
    tapes = await left(mallory, 4, prompt=prompt)
    done = [(await snapshot(mallory, tape)).get("status") != "paused" for tape in tapes]
    assert done[0]
    assert not done[-1]
    assert (await snapshot(alice, kept))["status"] == "paused"
    await alice.delete(f"/v1/tapes/{kept}")


async def test_who_holds_more_than_a_share_of_the_memory_is_refused_and_told_the_bound(
    alice: httpx.AsyncClient, mallory: httpx.AsyncClient
) -> None:
    running: list[str] = []
    for _ in range(5):
        answer = await mallory.post("/v1/tapes", json=LONG | {"prompt": "x" * 3000})
        if answer.status_code != 201:
            break
        running.append(answer.headers["X-Tape"])
    assert 1 < len(running) < 5
    error = answer.json()["error"]
    assert (answer.status_code, error["code"]) == (429, "tape_memory_full")
    assert "--tape-memory" in error["message"]
    assert int(answer.headers["Retry-After"]) >= 1
    let_in = await alice.post("/v1/tapes", json=LONG)
    assert let_in.status_code == 201
    await alice.delete(f"/v1/tapes/{let_in.headers['X-Tape']}")
