"""Several servers and one Redis: any replica serves any reader, and none is needed to go on."""

import asyncio
import json
import os
import signal
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, ExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from openai import AsyncOpenAI

from tests.answers import Reading, read_all, read_into, to_the_end, typing
from tests.redis import Redis, redis
from tests.server import RunningServer, read_stream, running
from tests.speed import patience
from tests.tiny import CHAT_TEMPLATE, tiny_llama
from tickertape import Client

STREAMS = 32
LONG = 400


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_llama(tmp_path_factory.mktemp("model"), CHAT_TEMPLATE)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Redis]:
    with redis(tmp_path_factory.mktemp("redis")) as store:
        yield store


class Replicas:
    """Servers of one model with one store, each with a client of its own."""

    def __init__(self, model: Path, store: Redis, folder: Path, *flags: str) -> None:
        self._flags = ("--model", str(model), "--dtype", "float32", "--tapes", store.url, *flags)
        self._folder = folder
        self._servers = ExitStack()
        self._clients = AsyncExitStack()
        self.servers: list[RunningServer] = []
        self.http: list[httpx.AsyncClient] = []

    async def add(self) -> None:
        log = self._folder / f"log{len(self.servers)}"
        server = await asyncio.to_thread(
            self._servers.enter_context, running(log, *self._flags, "--shutdown-grace", "1")
        )
        client = httpx.AsyncClient(base_url=server.url, timeout=patience(60))
        self.servers.append(server)
        self.http.append(await self._clients.enter_async_context(client))

    async def close(self) -> None:
        await self._clients.aclose()
        self._servers.close()

    def kill(self, number: int) -> None:
        """The API process and its engine, at once."""
        os.killpg(self.servers[number].process.pid, signal.SIGKILL)

    async def read(self, reading: Reading, *numbers: int) -> None:
        """To the end, at the first of these replicas; at the next when a connection is lost."""
        lost = []
        for number in numbers:
            headers = {"Last-Event-ID": reading.event_id} if reading.last else {}
            path = f"/v1/tapes/{reading.tape}"
            try:
                async with self.http[number].stream("GET", path, headers=headers) as response:
                    return await reading.read(response)
            except httpx.TransportError as error:
                lost.append(error)
        raise AssertionError(f"no replica has brought it to its end: {lost!r}")


@asynccontextmanager
async def two(model: Path, store: Redis, folder: Path, *flags: str) -> AsyncIterator[Replicas]:
    replicas = Replicas(model, store, folder, *flags)
    try:
        await asyncio.gather(replicas.add(), replicas.add())
        yield replicas
    finally:
        await replicas.close()


@pytest.fixture(scope="module")
async def pair(
    model: Path, store: Redis, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[Replicas]:
    """For tests that leave them as they are."""
    async with two(model, store, tmp_path_factory.mktemp("pair")) as replicas:
        yield replicas


@pytest.fixture
async def mortal(model: Path, store: Redis, tmp_path: Path) -> AsyncIterator[Replicas]:
    """For tests that do not."""
    async with two(model, store, tmp_path) as replicas:
        yield replicas


def body(seed: int, length: int = LONG) -> dict[str, Any]:
    temperature = float(seed % 2)
    asked = {"prompt": f"{seed} is", "max_length": length, "seed": seed, "ignore_eos": True}
    return asked | {"temperature": temperature}


async def begun(http: httpx.AsyncClient, wanted: dict[str, Any]) -> Reading:
    return Reading(tape=(await http.post("/v1/tapes", json=wanted)).json()["tape"])


async def has(reading: Reading, count: int) -> None:
    async with asyncio.timeout(patience(30)):
        while len(reading.token_ids) < count:  # noqa: ASYNC110
            await asyncio.sleep(0.005)


async def test_any_replica_serves_any_reader(pair: Replicas) -> None:
    here, there = pair.http
    reading, ended = await begun(here, body(1)), await read_all(here, body(1))
    assert ended.done
    await pair.read(reading, 1)
    assert reading.token_ids == ended.token_ids
    again = Reading(tape=ended.tape)
    await pair.read(again, 1)
    assert (again.token_ids, again.done) == (ended.token_ids, ended.done)
    snapshots = [
        (await http.get(f"/v1/tapes/{ended.tape}", headers={"Accept": "application/json"})).json()
        for http in pair.http
    ]
    assert snapshots[0] == snapshots[1]
    resumed = Reading(tape=ended.tape, last=7)
    headers = {"Last-Event-ID": resumed.event_id}
    async with there.stream("POST", "/generate", json=body(2), headers=headers) as response:
        await resumed.read(response)
    assert resumed.token_ids == ended.token_ids[7:]
    after_the_end = await there.get(
        f"/v1/tapes/{ended.tape}", headers={"Last-Event-ID": ended.event_id}
    )
    assert after_the_end.status_code == 204
    assert (await there.get("/v1/tapes/AAAAAAAAAAAAAAAAAAAAAA")).status_code == 404


async def test_cancelled_at_another_replica(pair: Replicas) -> None:
    here, there = pair.http
    async with typing(here, body(3)) as (reading, frames):
        assert (await there.delete(f"/v1/tapes/{reading.tape}")).status_code == 204
        assert (await to_the_end(reading, frames))["finish_reason"] == "cancelled"


async def test_a_reader_elsewhere_keeps_it_running_and_its_leaving_pauses_it(
    pair: Replicas,
) -> None:
    here, there = pair.http
    whole = await read_all(here, body(4))
    async with typing(here, body(4)) as (reading, _):
        pass
    await pair.servers[0].health_becomes(5, paused=1)
    async with there.stream(
        "GET", f"/v1/tapes/{reading.tape}", headers={"Last-Event-ID": reading.event_id}
    ) as response:
        await pair.servers[0].health_becomes(5, running=1)
        await reading.read(response, until=20)
    await pair.servers[0].health_becomes(5, paused=1)
    await pair.read(reading, 1)
    assert reading.token_ids == whole.token_ids


async def test_one_key_is_one_tape_at_both(pair: Replicas) -> None:
    headers = {"Idempotency-Key": "once"}
    answers = await asyncio.gather(
        *(http.post("/v1/tapes", json=body(5), headers=headers) for http in pair.http * 3)
    )
    assert len({answer.json()["tape"] for answer in answers}) == 1
    other = await pair.http[1].post("/v1/tapes", json=body(6), headers=headers)
    assert other.status_code == 409


async def test_a_response_is_retrieved_and_continued_elsewhere(pair: Replicas) -> None:
    here, there = (AsyncOpenAI(base_url=f"{s.url}/v1", api_key="-") for s in pair.servers)
    async with here, there:
        (model,) = [model.id async for model in here.models.list()]
        first = await here.responses.create(model=model, input="Hi", max_output_tokens=9)
        assert (await there.responses.retrieve(first.id)).output_text == first.output_text
        second = await there.responses.create(
            model=model, input="And?", previous_response_id=first.id, max_output_tokens=9
        )
        assert second.previous_response_id == first.id


async def test_a_tape_is_forked_elsewhere_and_the_fork_outlives_its_writer(
    mortal: Replicas,
) -> None:
    """More entries are copied than Redis is given at once."""
    here, there = mortal.http
    whole = await read_all(here, body(9))
    for after in (0, 300):
        forked = await there.post(f"/v1/tapes/{whole.tape}/fork", json={"after": after})
        assert forked.status_code == 201
        reading = Reading(tape=forked.json()["tape"])
        await mortal.read(reading, 0)
        assert reading.token_ids == whole.token_ids
        accept = {"Accept": "application/json"}
        snapshot = await here.get(f"/v1/tapes/{reading.tape}", headers=accept)
        assert (snapshot.json()["parent"], snapshot.json()["forked_at"]) == (whole.tape, after)
    last = Reading(
        tape=(await there.post(f"/v1/tapes/{whole.tape}/fork", json={"after": 100})).json()["tape"]
    )
    task = asyncio.create_task(mortal.read(last, 0))
    await has(last, 120)
    mortal.kill(1)
    await task
    assert last.token_ids == whole.token_ids


async def test_a_replica_is_killed_and_the_other_goes_on(mortal: Replicas) -> None:
    """Half of the readers lose their connection, the others do not notice."""
    here, _ = mortal.http
    undisturbed = await asyncio.gather(*(read_all(here, body(n)) for n in range(STREAMS)))
    readings = [await begun(here, body(n)) for n in range(STREAMS)]
    reading = [
        asyncio.create_task(mortal.read(reading, n % 2, 1)) for n, reading in enumerate(readings)
    ]
    await has(readings[-1], 10)
    mortal.kill(0)
    began = time.monotonic()
    await asyncio.gather(*reading)
    print(f"all {STREAMS} ended {time.monotonic() - began:.1f} s after the kill")
    for disturbed, calm in zip(readings, undisturbed, strict=True):
        assert disturbed.token_ids == calm.token_ids
        assert disturbed.done
        assert disturbed.done["finish_reason"] == "length"
        assert disturbed.done["usage"]["completion_tokens"] == LONG


@pytest.mark.long
async def test_several_choices_survive_their_replica(mortal: Replicas) -> None:
    here, there = mortal.http
    model = (await here.get("/v1/models")).json()["data"][0]["id"]
    fields = {"model": model, "prompt": "Three", "n": 3, "seed": 7, "max_tokens": LONG}
    calm = (await here.post("/v1/completions", json=fields)).json()["choices"]
    asked = fields | {"stream": True, "on_disconnect": "continue"}
    async with here.stream("POST", "/v1/completions", json=asked) as response:
        tape = response.headers["X-Tape"]
        await anext(response.aiter_text())
        mortal.kill(0)
    texts = ["", "", ""]
    async with there.stream("GET", f"/v1/tapes/{tape}") as response:
        async for frame in read_stream(response):
            if frame.event == "token":
                data = json.loads(frame.data or "")
                texts[data["index"]] += data["text"]
    assert texts == [choice["text"] for choice in calm]


@pytest.mark.long
async def test_a_replica_that_was_taken_for_dead_steps_back(mortal: Replicas) -> None:
    """It stands still for longer than its lease, and its streams go on as the other writes them."""
    here, _ = mortal.http
    calm = await read_all(here, body(8))
    async with typing(here, body(8)) as (reading, frames):
        elsewhere = Reading(tape=reading.tape)
        follower = asyncio.create_task(mortal.read(elsewhere, 1))
        await has(elsewhere, 5)
        os.kill(mortal.servers[0].process.pid, signal.SIGSTOP)
        await follower
        os.kill(mortal.servers[0].process.pid, signal.SIGCONT)
        await to_the_end(reading, frames)
    assert elsewhere.token_ids == reading.token_ids == calm.token_ids
    await mortal.servers[0].health_becomes(5, running=0, paused=0, kv_blocks_used=0)


async def test_rolling_update(mortal: Replicas) -> None:
    """One after the other is replaced; a client that resumes has its whole answer."""
    calm = await read_all(mortal.http[0], body(9))
    reading = await begun(mortal.http[0], body(9))
    task = asyncio.create_task(mortal.read(reading, 0, 1, 2))
    await has(reading, 5)
    await mortal.add()
    for number in (0, 1):
        mortal.servers[number].process.send_signal(signal.SIGTERM)
        assert await asyncio.to_thread(mortal.servers[number].process.wait, patience(20)) == 0
    await task
    assert reading.token_ids == calm.token_ids


@pytest.mark.parametrize(
    ("seconds", "empty"),
    [
        pytest.param(0, False, id="as it was"),
        pytest.param(5, False, id="after longer than a lease", marks=pytest.mark.long),
        pytest.param(0, True, id="without its data", marks=pytest.mark.long),
    ],
)
async def test_redis_goes_and_comes_back(
    model: Path, tmp_path: Path, seconds: float, *, empty: bool
) -> None:
    """Streams pause and go on; what begins meanwhile is told to come back."""
    with redis(tmp_path) as store:
        async with two(model, store, tmp_path) as replicas:
            http = replicas.http[0]
            calm = await asyncio.gather(*(read_all(http, body(n)) for n in range(8)))
            readings = [Reading() for _ in range(8)]
            tasks = [
                asyncio.create_task(read_into(reading, http, body(n)))
                for n, reading in enumerate(readings)
            ]
            # What is written anew is more than Redis is given at once of what is new.
            await has(readings[-1], 200 if empty else 10)
            await asyncio.to_thread(store.stop)
            refused = await http.post("/generate", json=body(0))
            assert refused.status_code == 503
            assert "Retry-After" in refused.headers
            assert (await http.get("/ready")).status_code == 503
            await asyncio.sleep(seconds)
            store.start(empty=empty)
            await asyncio.gather(*tasks)
            assert [reading.token_ids for reading in readings] == [r.token_ids for r in calm]
            async with Client(replicas.servers[1].url) as client:
                later = [event async for event in client.generate("x", max_length=3)]
            assert later
