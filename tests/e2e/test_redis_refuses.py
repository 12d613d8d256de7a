"""Redis is full, read-only, without disk or killed: nothing is lost, changed or shown unstored."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.answers import Reading, read_all
from tests.e2e.test_replicas import Replicas, begun, body, has, two
from tests.redis import Redis, redis
from tests.speed import patience
from tests.tiny import tiny_llama

TAPES = 16

_SPOILT = "redis.call('DEL', KEYS[1]); redis.call('SET', KEYS[1], 'no stream')"

Fault = Callable[[Redis], AbstractContextManager[None]]
FAULTS = [
    pytest.param(Redis.full, "maxmemory", id="full"),
    pytest.param(Redis.read_only, "read only", id="read-only", marks=pytest.mark.long),
    pytest.param(Redis.without_disk, "MISCONF", id="without disk", marks=pytest.mark.long),
    pytest.param(Redis.killed, "", id="killed"),
]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_llama(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Any:
    with redis(tmp_path_factory.mktemp("redis")) as store:
        yield store


@pytest.fixture(scope="module")
async def pair(
    model: Path, store: Redis, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[Replicas]:
    async with two(model, store, tmp_path_factory.mktemp("pair")) as replicas:
        yield replicas


@pytest.fixture
async def mortal(model: Path, store: Redis, tmp_path: Path) -> AsyncIterator[Replicas]:
    async with two(model, store, tmp_path) as replicas:
        yield replicas


async def answers(http: httpx.AsyncClient) -> list[list[int]]:
    """Undisturbed."""
    return [
        reading.token_ids
        for reading in await asyncio.gather(*(read_all(http, body(n)) for n in range(TAPES)))
    ]


async def refuses(http: httpx.AsyncClient, why: str) -> None:
    """/ready says that tapes cannot be kept, and why."""
    async with asyncio.timeout(patience(60)):
        while True:
            answer = await http.get("/ready")
            if answer.status_code == 503 and why in answer.json()["error"]["message"]:
                break
            await asyncio.sleep(0.02)
    assert answer.json()["error"]["code"] == "store_unreachable"


async def accepts(http: httpx.AsyncClient) -> None:
    async with asyncio.timeout(patience(60)):
        while (await http.get("/ready")).status_code != 200:  # noqa: ASYNC110
            await asyncio.sleep(0.02)


def stored(store: Redis, reading: Reading) -> int:
    """The number of the newest entry that Redis has."""
    newest = store.do("XREVRANGE", f"tickertape:log:{reading.tape}", "+", "-", "COUNT", "1")
    return int(newest.split()[0].partition("-")[2])


@pytest.mark.parametrize(("fault", "why"), FAULTS)
async def test_answers_are_those_of_an_undisturbed_redis(
    pair: Replicas, store: Redis, fault: Fault, why: str, pytestconfig: pytest.Config
) -> None:
    calm = await answers(pair.http[0])
    for _ in range(pytestconfig.option.redis_rounds):
        await disturbed(pair, store, fault, why, calm, pytestconfig.option.redis_seconds)


async def disturbed(
    pair: Replicas, store: Redis, fault: Fault, why: str, calm: list[list[int]], seconds: float
) -> None:
    """Every tape has a reader at both replicas."""
    here = [await begun(pair.http[0], body(n)) for n in range(TAPES)]
    there = [Reading(tape=reading.tape) for reading in here]
    unread = await begun(pair.http[0], body(0))
    tasks = [
        asyncio.create_task(pair.read(reading, number))
        for number, readings in enumerate((here, there))
        for reading in readings
    ]
    for reading in (*here, *there):  # one that comes while Redis is away is refused
        await has(reading, 10)
    with fault(store):
        for http in pair.http:
            await refuses(http, why)
        refused = await pair.http[0].post("/v1/tapes", json=body(0))
        assert refused.status_code == 503
        if why:
            for reading in (*here, *there):
                assert reading.last <= stored(store, reading), "shown, and not stored"
            # Who comes now to another replica is shown what is stored, and waits for the rest.
            tasks.append(asyncio.create_task(pair.read(unread, 1)))
        await asyncio.sleep(seconds)
    await asyncio.gather(*tasks)
    assert unread.token_ids == calm[0] or not why
    assert [reading.token_ids for reading in here] == calm
    assert [reading.token_ids for reading in there] == calm
    for http in pair.http:
        await accepts(http)


@pytest.mark.parametrize(("fault", "why"), FAULTS)
async def test_what_was_shown_survives_the_writers_death_meanwhile(
    mortal: Replicas, store: Redis, fault: Fault, why: str
) -> None:
    calm = await answers(mortal.http[0])
    readings = [await begun(mortal.http[0], body(n)) for n in range(TAPES)]
    tasks = [
        asyncio.create_task(mortal.read(reading, number % 2, 1))
        for number, reading in enumerate(readings)
    ]
    for reading in readings:
        await has(reading, 10)
    with fault(store):
        await refuses(mortal.http[1], why)
        mortal.kill(0)
    await asyncio.gather(*tasks)
    assert [reading.token_ids for reading in readings] == calm


async def test_a_tape_that_redis_cannot_keep_ends_alone(pair: Replicas, store: Redis) -> None:
    await accepts(pair.http[0])  # again, after the test before
    calm = await answers(pair.http[0])
    readings = [await begun(pair.http[0], body(n)) for n in range(TAPES)]
    tasks = [asyncio.create_task(pair.read(reading, 0)) for reading in readings]
    await has(readings[-1], 3)
    store.do("EVAL", _SPOILT, "1", f"tickertape:log:{readings[-1].tape}")
    await asyncio.gather(*tasks)
    assert readings[-1].done
    assert readings[-1].done["finish_reason"] == "error"
    assert [reading.token_ids for reading in readings[:-1]] == calm[:-1]


async def test_a_key_used_again_after_its_tape_has_gone(
    model: Path, store: Redis, tmp_path: Path
) -> None:
    """The other replica has a copy of the first tape when the second one comes."""
    async with two(model, store, tmp_path, "--tape-ttl", "0.3") as replicas:
        for http in replicas.http:
            await accepts(http)
        here, there = replicas.http
        headers = {"Idempotency-Key": "again"}
        for http in (here, there, here, there):
            tape = (await http.post("/v1/tapes", json=body(1, 3), headers=headers)).json()["tape"]
            for replica in (here, there):
                async with replica.stream("GET", f"/v1/tapes/{tape}") as response:
                    reading = Reading()
                    await reading.read(response)
            path = f"/v1/tapes/{tape}"
            for replica in (here, there):
                async with asyncio.timeout(patience(60)):
                    while (await replica.get(path)).status_code != 404:  # noqa: ASYNC110
                        await asyncio.sleep(0.05)
        for number in (0, 1):
            assert replicas.servers[number].process.poll() is None
            assert replicas.servers[number].health()["engine"] == "ready"


async def test_entries_that_redis_has_lost_are_a_gap_for_readers_elsewhere(
    pair: Replicas, store: Redis
) -> None:
    """An entry never gets the number of another."""
    await accepts(pair.http[0])
    whole = await read_all(pair.http[0], body(2, 30))
    log = f"tickertape:log:{whole.tape}"
    ended = f"/v1/tapes/{whole.tape}"
    store.do("XDEL", log, "0-5")
    answer = await pair.http[1].get(ended)
    assert f"id: {whole.tape}:5\n" not in answer.text
    assert 'event: gap\ndata: {"from":1,"to":5}' in answer.text
    snapshot = await pair.http[1].get(ended, headers={"Accept": "application/json"})
    assert snapshot.json()["last_entry"] == whole.last
