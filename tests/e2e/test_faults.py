"""Faults made for real: the engine killed or stopped, the whole process group told to go."""

import asyncio
import json
import os
import select
import signal
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.server import RunningServer, read_stream, running

ENDLESS = {"prompt": "Once", "max_length": 4000, "ignore_eos": True, "stream": True}


@pytest.fixture
def own(tmp_path: Path) -> Iterator[RunningServer]:
    """A server of this test's own, to be harmed."""
    with running(tmp_path / "log", "--shutdown-grace", "0.5") as server:
        yield server


@asynccontextmanager
async def typing(server: RunningServer) -> AsyncIterator[AsyncIterator[Any]]:
    """The frames of an endless stream whose first token is there."""
    async with (
        httpx.AsyncClient(base_url=server.url, timeout=30) as http,
        http.stream("POST", "/generate", json=ENDLESS) as response,
    ):
        frames = read_stream(response)
        async for frame in frames:
            if frame.event == "token":
                break
        yield frames


async def reason(frames: AsyncIterator[Any]) -> str:
    """The finish_reason of the terminal frame, which must be the last."""
    rest = [frame async for frame in frames]
    assert rest[-1].event == "done"
    finish_reason: str = json.loads(rest[-1].data)["finish_reason"]
    return finish_reason


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


async def test_a_killed_engine_ends_its_streams_and_comes_back(own: RunningServer) -> None:
    """Twice, the second time while it is coming back."""
    async with typing(own) as frames:
        first = own.health()["engine_pid"]
        os.kill(first, signal.SIGKILL)
        assert await reason(frames) == "error"
    health = await own.health_becomes(10, engine="recovering")
    while health["engine_pid"] == first:
        health = await own.health_becomes(10)
    os.kill(health["engine_pid"], signal.SIGKILL)
    await asyncio.to_thread(gone, health["engine_pid"], 5)
    await own.health_becomes(30, engine="ready", running=0, kv_blocks_used=0)
    async with typing(own):
        pass
    assert own.stop() == 0


async def test_a_signal_to_the_whole_group_lets_streams_end_in_order(own: RunningServer) -> None:
    async with typing(own) as frames:
        os.killpg(own.process.pid, signal.SIGTERM)
        assert await reason(frames) == "shutdown"
    assert own.process.wait(timeout=10) == 0


async def test_an_engine_that_hangs_does_not_hold_up_the_end(own: RunningServer) -> None:
    async with typing(own) as frames:
        engine = own.health()["engine_pid"]
        os.kill(engine, signal.SIGSTOP)
        own.process.send_signal(signal.SIGTERM)
        assert await reason(frames) == "shutdown"
    assert own.process.wait(timeout=10) == 0
    assert gone(engine, 1)


async def test_the_engine_goes_though_its_reports_were_never_read(own: RunningServer) -> None:
    """The peer's socket is then reset, not closed in order."""
    async with typing(own):
        engine = own.health()["engine_pid"]
        own.process.send_signal(signal.SIGSTOP)
        works(engine, seconds=0.2)  # so that reports pile up unread
        own.process.kill()
        assert gone(engine, 5)
