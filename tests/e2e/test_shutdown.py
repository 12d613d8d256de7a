"""The server is told to go, or goes: every stream gets its end, and no process stays behind."""

import asyncio
import os
import select
import signal
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import httpx
import pytest

from tests.answers import read_all, to_the_end, typing
from tests.server import RunningServer, running

ENDLESS = {"prompt": "Once", "max_length": 4000, "ignore_eos": True}
GRACE = 1.0


@pytest.fixture
def own(tmp_path: Path) -> Iterator[RunningServer]:
    """A server of this test's own, to be ended."""
    with running(tmp_path / "log", "--shutdown-grace", str(GRACE)) as server:
        yield server


@pytest.fixture
async def http(own: RunningServer) -> AsyncIterator[httpx.AsyncClient]:
    async with httpx.AsyncClient(base_url=own.url, timeout=30) as client:
        yield client


def gone(pid: int, seconds: float) -> bool:
    """Whether the process ends within that time."""
    try:
        handle = os.pidfd_open(pid)
    except ProcessLookupError:
        return True
    readable, _, _ = select.select([handle], [], [], seconds)
    os.close(handle)
    return bool(readable)


def works(pid: int, seconds: float) -> None:
    """Return when the process has used that much more processor time."""

    def used() -> float:
        user, system = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[11:13]
        return (int(user) + int(system)) / os.sysconf("SC_CLK_TCK")

    wanted, deadline = used() + seconds, time.monotonic() + 30
    while used() < wanted:
        assert time.monotonic() < deadline, "the process does not work"
        time.sleep(0.01)


async def shut_down(http: httpx.AsyncClient) -> str:
    """How an endless stream ends."""
    reading = await read_all(http, ENDLESS)
    assert reading.done
    return str(reading.done["finish_reason"])


@pytest.mark.alone
async def test_sigterm_ends_50_streams_in_order(
    own: RunningServer, http: httpx.AsyncClient
) -> None:
    """Those that are short enough to end by themselves in time, do."""
    short = [asyncio.create_task(read_all(http, {"prompt": "Hi", "max_length": 2})) for _ in "ab"]
    streams = [asyncio.create_task(shut_down(http)) for _ in range(50)]
    await own.health_becomes(20, running=50)
    told = time.monotonic()
    own.process.send_signal(signal.SIGTERM)
    while (ready := await http.get("/ready")).status_code == 200:
        assert time.monotonic() < told + 0.2
    assert ready.json()["error"]["code"] == "draining"
    assert "Retry-After" in ready.headers
    unready = time.monotonic() - told
    refused = await http.post("/generate", json=ENDLESS)
    assert (refused.status_code, refused.json()["error"]["code"]) == (503, "draining")
    assert await asyncio.gather(*streams) == ["shutdown"] * 50
    assert all(reading.done for reading in await asyncio.gather(*short))
    assert await asyncio.to_thread(own.process.wait, 10) == 0
    took = time.monotonic() - told
    print(f"/ready 503 after {unready:.3f} s, exit code 0 after {took:.2f} s, grace {GRACE} s")
    assert took < GRACE + 2


async def test_a_stream_can_be_resumed_while_the_server_drains(
    own: RunningServer, http: httpx.AsyncClient
) -> None:
    async with typing(http, ENDLESS) as (reading, _):
        own.process.send_signal(signal.SIGTERM)
        headers = {"Last-Event-ID": reading.event_id}
        async with http.stream("GET", "/generate?prompt=x", headers=headers) as response:
            await reading.read(response)
    assert reading.done
    assert reading.done["finish_reason"] == "shutdown"


@pytest.mark.alone
async def test_a_second_sigterm_ends_it_at_once(tmp_path: Path) -> None:
    with running(tmp_path / "log", "--shutdown-grace", "60") as server:
        async with httpx.AsyncClient(base_url=server.url, timeout=30) as http:
            stream = asyncio.create_task(shut_down(http))
            await server.health_becomes(20, running=1)
            engine = server.health()["engine_pid"]
            server.process.send_signal(signal.SIGTERM)
            await server.health_becomes(1, engine="draining")
            told = time.monotonic()
            server.process.send_signal(signal.SIGTERM)
            assert await stream == "shutdown"
            await asyncio.to_thread(server.process.wait, 10)
            assert time.monotonic() - told < 1
            assert gone(engine, 5)


async def test_a_signal_to_the_whole_group_lets_streams_end_in_order(
    own: RunningServer, http: httpx.AsyncClient
) -> None:
    async with typing(http, ENDLESS) as (reading, frames):
        os.killpg(own.process.pid, signal.SIGTERM)
        assert (await to_the_end(reading, frames))["finish_reason"] == "shutdown"
    assert own.process.wait(timeout=10) == 0


async def test_a_signal_to_the_whole_group_while_it_loads_is_no_failure(tmp_path: Path) -> None:
    """The engine does not ignore signals yet, and dies of it."""
    with running(tmp_path / "log", ready=False) as server:
        async with asyncio.timeout(30):
            while "Uvicorn running" not in server.log.read_text():  # noqa: ASYNC110
                await asyncio.sleep(0.01)
        assert server.health()["engine"] == "loading"
        os.killpg(server.process.pid, signal.SIGTERM)
        assert await asyncio.to_thread(server.process.wait, 10) == 0, server.log.read_text()


def test_ctrl_c_before_there_is_a_server_says_nothing(tmp_path: Path) -> None:
    """The engine is there already, the application is being imported."""
    with running(tmp_path / "log", ready=False) as server:
        children = Path(f"/proc/{server.process.pid}/task/{server.process.pid}/children")
        deadline = time.monotonic() + 30
        while not (engine := children.read_text()):
            assert time.monotonic() < deadline, "no engine was started"
            time.sleep(0.001)
        server.process.send_signal(signal.SIGINT)
        assert server.process.wait(10) == 130
        assert server.log.read_text() == ""
        assert gone(int(engine), 5)


async def test_an_engine_that_hangs_does_not_hold_up_the_end(
    own: RunningServer, http: httpx.AsyncClient
) -> None:
    async with typing(http, ENDLESS) as (reading, frames):
        engine = own.health()["engine_pid"]
        os.kill(engine, signal.SIGSTOP)
        own.process.send_signal(signal.SIGTERM)
        assert (await to_the_end(reading, frames))["finish_reason"] == "shutdown"
    assert own.process.wait(timeout=10) == 0
    assert gone(engine, 1)


async def test_the_engine_goes_when_the_api_process_is_killed(
    own: RunningServer, http: httpx.AsyncClient
) -> None:
    """Though its reports were never read: the peer's socket is then reset, not closed in order."""
    async with typing(http, ENDLESS):
        engine = own.health()["engine_pid"]
        own.process.send_signal(signal.SIGSTOP)
        works(engine, seconds=0.2)  # so that reports pile up unread
        own.process.kill()
        assert gone(engine, 5)


async def test_a_signal_while_it_recovers_ends_the_streams(
    own: RunningServer, http: httpx.AsyncClient
) -> None:
    async with typing(http, ENDLESS) as (reading, frames):
        engine = own.health()["engine_pid"]
        os.kill(engine, signal.SIGKILL)
        own.process.send_signal(signal.SIGTERM)
        done = await to_the_end(reading, frames)
    assert done["finish_reason"] == "shutdown"
    assert own.process.wait(timeout=10) == 0
