"""More work than there are seats: who waits is told where, who must come back is told when."""

import asyncio
import statistics
import time
from collections.abc import AsyncIterator, Iterator
from functools import partial
from typing import Any

import httpx
import pytest

from tests.answers import Reading, read_all, read_into, typing
from tests.server import RunningServer, running
from tests.speed import Promised, in_turn, patience
from tickertape import Client, Done

SEATS, WAITING = 2, 3
FULL = SEATS + WAITING
LONG: dict[str, Any] = {"prompt": "Once", "max_length": 4000, "ignore_eos": True}


@pytest.fixture(scope="module")
def narrow(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    log = tmp_path_factory.mktemp("narrow") / "log"
    flags = ("--max-num-seqs", str(SEATS), "--max-waiting", str(WAITING), "--grace", "0")
    with running(log, *flags, "--queue-timeout", "4") as server:
        yield server
        assert server.stop() == 0, log.read_text()


@pytest.fixture
async def http(narrow: RunningServer) -> AsyncIterator[httpx.AsyncClient]:
    async with httpx.AsyncClient(base_url=narrow.url, timeout=patience(60)) as client:
        yield client
    await narrow.health_becomes(5, running=0, waiting=0, paused=0)


async def fill(server: RunningServer, http: httpx.AsyncClient) -> list[asyncio.Task[Reading]]:
    streams = [asyncio.create_task(read_all(http, LONG)) for _ in range(FULL)]
    await server.health_becomes(10, running=SEATS, waiting=WAITING)
    return streams


async def leave(streams: list[asyncio.Task[Reading]]) -> None:
    for stream in streams:
        stream.cancel()
    await asyncio.gather(*streams, return_exceptions=True)


async def test_a_full_queue_refuses_at_once_and_resumes_all_the_same(
    narrow: RunningServer, http: httpx.AsyncClient, promised: Promised
) -> None:
    async with typing(http, LONG) as (reading, _):
        streams = [asyncio.create_task(read_all(http, LONG)) for _ in range(FULL - 1)]
        await narrow.health_becomes(10, running=SEATS, waiting=WAITING)

        async def refused() -> None:
            answer = await http.post("/generate", json=LONG)
            assert answer.status_code == 429
            assert answer.json()["error"]["code"] == "queue_full"
            assert 1 <= int(answer.headers["Retry-After"]) <= 60

        took, health = await in_turn(20, refused, partial(http.get, "/health"))
        assert statistics.median(took) < 2 * max(health), (took, health)
        promised("429, median", statistics.median(took), 0.01)
        headers = {"Last-Event-ID": reading.event_id}
        for method, url in [("GET", f"/v1/tapes/{reading.tape}"), ("POST", "/generate")]:
            body = LONG if method == "POST" else None
            async with http.stream(method, url, headers=headers, json=body) as response:
                assert response.status_code == 200
        await leave(streams)


async def test_retry_after_follows_how_fast_places_become_free(
    narrow: RunningServer, http: httpx.AsyncClient
) -> None:
    """Nothing has ended for some seconds, so it will take as many more."""
    streams = await fill(narrow, http)
    began = time.monotonic()

    async def seconds() -> int:
        return int((await http.post("/generate", json=LONG)).headers["Retry-After"])

    first = await seconds()
    while (later := await seconds()) <= first + 1:
        assert time.monotonic() - began < patience(10)
        await asyncio.sleep(0.1)
    assert later <= time.monotonic() - began + first + 2, "as many seconds as it has been waited"
    await leave(streams)


async def test_who_waits_is_told_the_place_and_then_gets_the_answer(
    narrow: RunningServer, http: httpx.AsyncClient
) -> None:
    body = {"prompt": "Hello", "max_length": 5, "ignore_eos": True}
    streams = [asyncio.create_task(read_all(http, LONG)) for _ in range(SEATS)]
    await narrow.health_becomes(10, running=SEATS)
    readings = [Reading() for _ in range(WAITING)]
    waiting = []
    for number, reading in enumerate(readings, start=1):
        waiting.append(asyncio.create_task(read_into(reading, http, body)))
        await narrow.health_becomes(10, waiting=number)
    while not all(reading.statuses for reading in readings):  # noqa: ASYNC110
        await asyncio.sleep(0.01)
    await leave(streams)
    await asyncio.gather(*waiting)
    places = [[status["position"] for status in reading.statuses] for reading in readings]
    assert [place[0] for place in places] == [1, 2, 3]
    assert all(place == sorted(place, reverse=True) for place in places)
    assert all(len(reading.token_ids) == 5 for reading in readings)


async def test_a_long_prompt_shows_how_far_it_is(http: httpx.AsyncClient) -> None:
    body = {"prompt": "word " * 3000, "max_length": 2}
    reading = await read_all(http, body)
    done = [status["done"] for status in reading.statuses if status["state"] == "prefill"]
    assert done
    assert done == sorted(set(done))
    assert reading.done
    prompt_tokens = reading.done["usage"]["prompt_tokens"]
    assert all(status.get("total", prompt_tokens) == prompt_tokens for status in reading.statuses)
    assert done[-1] < prompt_tokens


async def test_who_waits_too_long_is_let_go(narrow: RunningServer, http: httpx.AsyncClient) -> None:
    streams = [asyncio.create_task(read_all(http, LONG)) for _ in range(SEATS)]
    await narrow.health_becomes(10, running=SEATS)
    streamed, whole = await asyncio.gather(read_all(http, LONG), http.post("/generate", json=LONG))
    assert streamed.done
    assert streamed.done["finish_reason"] == "timeout"
    assert "waited 4 s" in streamed.done["error"]["message"]
    assert streamed.done["error"]["type"] == "timeout_error"
    assert (whole.status_code, whole.json()["error"]["code"]) == (503, "timeout")
    assert not any(stream.done() for stream in streams), "who has a seat is not asked to leave"
    await leave(streams)


async def test_a_request_ends_at_its_own_timeout_with_what_there_is(
    http: httpx.AsyncClient,
) -> None:
    timeout = min(patience(0.5), 5)  # time for a token, not for all
    body = LONG | {"timeout": timeout}
    reading, whole = await asyncio.gather(read_all(http, body), http.post("/generate", json=body))
    assert reading.done
    assert reading.done["finish_reason"] == "timeout"
    assert reading.done["timings"]["total_ms"] > 0.9 * timeout * 1000
    assert 0 < len(reading.token_ids) < 4000
    answer = whole.json()
    assert (whole.status_code, answer["finish_reason"]) == (200, "timeout")
    assert answer["generated_text"]


async def test_our_client_comes_back_by_itself(
    narrow: RunningServer, http: httpx.AsyncClient
) -> None:
    streams = await fill(narrow, http)

    async def ask(client: Client) -> Done:
        events = [event async for event in client.generate("Hi", max_length=3, ignore_eos=True)]
        assert isinstance(events[-1], Done)
        return events[-1]

    async with Client(narrow.url) as client:
        answer = asyncio.create_task(ask(client))
        refused = 0
        while not refused:
            await asyncio.sleep(0.01)
            refused = narrow.log.read_text().count('"status": 429')
        await leave(streams)
        assert (await answer).usage["completion_tokens"] == 3
