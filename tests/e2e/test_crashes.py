"""The engine process dies, and nobody who reads a stream can tell by what is in it."""

import asyncio
import contextlib
import os
import shutil
import signal
import sys
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

from tests.answers import Reading, read_all, read_into, to_the_end, typing
from tests.e2e.crashing_engine import AT, DEADLY, SPOILT
from tests.server import RunningServer, running
from tests.speed import Promised, patience

STREAMS = 32
DEADLY_SERVER = (sys.executable, "-m", "tests.e2e.crashing_engine")


# In float32 no company changes an answer, and torch is slow enough to be hit in the middle of one.
FLAGS = ("--dtype", "float32", "--shutdown-grace", "0.5")


@pytest.fixture(scope="module")
def own(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    """One server, to be harmed by all: it must be well after each of them."""
    with running(tmp_path_factory.mktemp("own") / "log", *FLAGS, command=DEADLY_SERVER) as server:
        yield server
        assert server.stop() == 0


@pytest.fixture(scope="module")
async def undisturbed(own: RunningServer) -> list[list[int]]:
    """The tokens of each of the requests, from an engine that lives."""
    async with httpx.AsyncClient(base_url=own.url, timeout=patience(60)) as http:
        readings = await asyncio.gather(*(read_all(http, body(n)) for n in range(STREAMS)))
    assert not any({"state": "recovering"} in reading.statuses for reading in readings)
    return [reading.token_ids for reading in readings]


@pytest.fixture
async def http(own: RunningServer) -> AsyncIterator[httpx.AsyncClient]:
    async with httpx.AsyncClient(base_url=own.url, timeout=patience(60)) as client:
        yield client
    await own.health_becomes(30, engine="ready", running=0, waiting=0, paused=0, kv_blocks_used=0)


def crashes(server: RunningServer) -> int:
    """How many engines have ended by a segmentation fault so far."""
    return server.log.read_text().count("exit code -11")


def body(number: int, length: int = 32) -> dict[str, Any]:
    """Half of them greedy, half of them drawn."""
    temperature = 1.0 if number % 2 else 0.0
    return {
        "prompt": f"{number} is a number",
        "max_length": length,
        "seed": number,
        "temperature": temperature,
        "ignore_eos": True,
    }


def kill(server: RunningServer) -> int:
    pid: int = server.health()["engine_pid"]
    os.kill(pid, signal.SIGKILL)
    return pid


async def replaced(server: RunningServer, pid: int, seconds: float = 10) -> None:
    """Another process is there, maybe loading."""
    async with asyncio.timeout(patience(seconds)):
        while server.health()["engine_pid"] == pid:  # noqa: ASYNC110
            await asyncio.sleep(0.01)


async def becomes(http: httpx.AsyncClient, status: int, seconds: float) -> float:
    """How long it takes /ready to answer so."""
    began = time.monotonic()
    async with asyncio.timeout(patience(seconds)):
        while (await http.get("/ready")).status_code != status:
            pass
    return time.monotonic() - began


async def test_killed_with_32_streams_running_all_end_as_if_nothing_had_been(
    own: RunningServer,
    http: httpx.AsyncClient,
    undisturbed: list[list[int]],
    promised: Promised,
) -> None:
    disturbed = [asyncio.create_task(read_all(http, body(n))) for n in range(STREAMS)]
    await own.health_becomes(10, running=STREAMS)
    kill(own)
    promised("/ready 503", await becomes(http, 503, 0.5), 0.5)
    up = await becomes(http, 200, 30)
    readings = await asyncio.gather(*disturbed)
    assert [reading.token_ids for reading in readings] == undisturbed
    for reading in readings:
        assert reading.done
        assert reading.done["finish_reason"] == "length"
        assert {"state": "recovering"} in reading.statuses
    print(f"/ready 200 after {up:.1f} s more")


@pytest.mark.long
async def test_kills_in_a_row_lose_nothing(
    own: RunningServer,
    http: httpx.AsyncClient,
    undisturbed: list[list[int]],
    pytestconfig: pytest.Config,
) -> None:
    """At any moment: at work, while it loads, as soon as it is there."""
    kills: int = pytestconfig.getoption("kills")
    readings = [Reading() for _ in range(16)]
    streams = [
        asyncio.create_task(read_into(reading, http, body(n))) for n, reading in enumerate(readings)
    ]
    for number in range(kills):
        if number % 3 == 0:
            await next_token(readings)
        killed = kill(own)
        await replaced(own, killed)
        if number % 3:
            await own.health_becomes(30, engine="ready")
    assert not any(stream.done() for stream in streams)
    await asyncio.gather(*streams)
    assert [reading.token_ids for reading in readings] == undisturbed[:16]


async def next_token(readings: Sequence[Reading]) -> None:
    """Of any of them."""
    before = sum(reading.last for reading in readings)
    async with asyncio.timeout(patience(30)):
        while sum(reading.last for reading in readings) == before:  # noqa: ASYNC110
            await asyncio.sleep(0.001)


async def test_a_request_that_kills_it_fails_alone(
    own: RunningServer, http: httpx.AsyncClient, undisturbed: list[list[int]]
) -> None:
    before = crashes(own)
    others = [asyncio.create_task(read_all(http, body(n))) for n in range(STREAMS - 1)]
    await own.health_becomes(10, running=len(others))
    guilty = await read_all(http, body(DEADLY))
    assert guilty.done
    assert guilty.done["finish_reason"] == "error"
    assert "died twice" in guilty.done["error"]["message"]
    assert len(guilty.token_ids) == AT
    readings = await asyncio.gather(*others)
    assert [reading.token_ids for reading in readings] == undisturbed[: STREAMS - 1]
    assert crashes(own) == before + 2
    answer = await http.post("/generate", json=body(DEADLY))
    assert answer.status_code == 500
    assert answer.json()["error"]["code"] == "engine_error"


@pytest.mark.long
async def test_an_engine_that_hangs_is_killed_and_the_streams_go_on(
    tmp_path: Path, undisturbed: list[list[int]]
) -> None:
    with running(tmp_path / "log", *FLAGS, "--engine-timeout", str(patience(1))) as server:
        async with httpx.AsyncClient(base_url=server.url, timeout=patience(60)) as http:
            engine = server.health()["engine_pid"]
            async with typing(http, body(1, length=100)) as (reading, frames):
                os.kill(engine, signal.SIGSTOP)
                await to_the_end(reading, frames)
            assert reading.token_ids[:32] == undisturbed[1]
            assert {"state": "recovering"} in reading.statuses
            idle = server.health()["engine_pid"]
            # Nothing is owed: an engine without work may be silent.
            await asyncio.sleep(1.5 * patience(1))
            assert server.health()["engine_pid"] == idle != engine
        assert server.stop() == 0


@pytest.mark.long
async def test_an_engine_that_stops_while_it_loads_is_replaced(
    tmp_path: Path, undisturbed: list[list[int]]
) -> None:
    """At the first load, and at the one after a crash while a stream waits."""
    log = tmp_path / "log"
    with running(log, *FLAGS, "--engine-timeout", "2", ready=False) as server:
        async with httpx.AsyncClient(base_url=server.url, timeout=patience(60)) as http:
            await stopped_while_it_loads(server)
            await server.health_becomes(60, engine="ready")
            async with typing(http, body(1)) as (reading, frames):
                killed = kill(server)
                await replaced(server, killed)
                await stopped_while_it_loads(server)
                assert (await to_the_end(reading, frames))["finish_reason"] == "length"
        assert reading.token_ids == undisturbed[1]
        assert log.read_text().count("has used no processor time") >= 2
        assert server.stop() == 0


async def stopped_while_it_loads(server: RunningServer) -> None:
    """SIGSTOP for an engine that is not ready; another one must come."""
    async with (
        asyncio.timeout(patience(30)),
        httpx.AsyncClient(base_url=server.url, timeout=patience(30)) as http,
    ):
        while True:
            with contextlib.suppress(httpx.TransportError):
                health = (await http.get("/health")).json()
                break
    assert health["engine"] in ("loading", "recovering")
    os.kill(health["engine_pid"], signal.SIGSTOP)
    await replaced(server, health["engine_pid"], seconds=60)


@pytest.mark.parametrize(
    "free", [1, *(pytest.param(free, marks=pytest.mark.long) for free in (0, 2))]
)
async def test_without_descriptors_the_streams_wait_and_go_on(
    own: RunningServer, http: httpx.AsyncClient, undisturbed: list[list[int]], free: int
) -> None:
    """The limit is that of the running process, and so are the failures, several in a row."""
    process = psutil.Process(own.process.pid)
    limits = process.rlimit(psutil.RLIMIT_NOFILE)
    failures = own.log.read_text().count("cannot be started")
    async with typing(http, body(1)) as (reading, frames):
        engine = own.health()["engine_pid"]
        # The lowest number that is free, after the engine's socket is closed, decides.
        process.rlimit(psutil.RLIMIT_NOFILE, (lowest_free(own.process.pid) + free, limits[1]))
        os.kill(engine, signal.SIGKILL)
        async with asyncio.timeout(patience(30)):
            while own.log.read_text().count("cannot be started") < failures + 3:  # noqa: ASYNC110
                await asyncio.sleep(0.05)
        assert own.process.poll() is None
        process.rlimit(psutil.RLIMIT_NOFILE, limits)
        assert (await to_the_end(reading, frames))["finish_reason"] == "length"
    assert reading.token_ids == undisturbed[1]


def lowest_free(pid: int) -> int:
    taken = {int(entry.name) for entry in Path(f"/proc/{pid}/fd").iterdir()}
    return next(number for number in range(1 << 16) if number not in taken)


async def test_a_row_of_nan_fails_alone(
    own: RunningServer, http: httpx.AsyncClient, undisturbed: list[list[int]]
) -> None:
    engine = own.health()["engine_pid"]
    *others, spoilt = await asyncio.gather(
        *(read_all(http, body(n)) for n in range(8)), read_all(http, body(SPOILT))
    )
    assert spoilt.done
    assert spoilt.done["finish_reason"] == "error"
    assert len(spoilt.token_ids) == AT
    assert [reading.token_ids for reading in others] == undisturbed[:8]
    assert own.health()["engine_pid"] == engine


async def test_while_it_recovers_new_work_is_refused_and_readers_are_not(
    own: RunningServer, http: httpx.AsyncClient
) -> None:
    async with typing(http, body(1)) as (reading, frames):
        kill(own)
        await becomes(http, 503, 0.5)
        async with http.stream("GET", f"/v1/tapes/{reading.tape}") as response:
            refused = await http.post("/generate", json=body(2))
            second = Reading()
            await asyncio.gather(to_the_end(reading, frames), second.read(response))
        assert (refused.status_code, refused.json()["error"]["code"]) == (503, "recovering")
        assert int(refused.headers["Retry-After"]) >= 1
    assert second.token_ids == reading.token_ids
    assert {"state": "recovering"} in second.statuses, "who comes later is told too"


async def test_an_engine_that_cannot_come_back_ends_the_server_in_order(
    model_path: Path, tmp_path: Path
) -> None:
    """The model has gone from the disk. Whoever restarts the server must learn of it."""
    model = Path(shutil.copy(model_path, tmp_path))
    with running(tmp_path / "log", "--model", str(model), "--dtype", "float32") as server:
        async with (
            httpx.AsyncClient(base_url=server.url, timeout=patience(60)) as http,
            typing(http, body(0)) as (reading, frames),
        ):
            model.unlink()  # noqa: ASYNC240
            kill(server)
            assert (await to_the_end(reading, frames))["finish_reason"] == "shutdown"
        assert await asyncio.to_thread(server.process.wait, patience(10)) == 1
        assert str(model) in server.log.read_text().splitlines()[-1]


async def test_a_paused_generation_survives_too(
    own: RunningServer, http: httpx.AsyncClient, undisturbed: list[list[int]]
) -> None:
    async with typing(http, body(1) | {"grace": 60}) as (reading, _):
        pass
    await own.health_becomes(5, paused=1)
    kill(own)
    await becomes(http, 503, 0.5)
    await becomes(http, 200, 30)
    path, headers = f"/v1/tapes/{reading.tape}", {"Last-Event-ID": reading.event_id}
    snapshot = (await http.get(path, headers={"Accept": "application/json"})).json()
    assert snapshot["status"] == "paused"
    async with http.stream("GET", path, headers=headers) as response:
        await reading.read(response)
    assert reading.token_ids == undisturbed[1]
