"""Thousands of requests that come, end and leave as they like: nothing of them stays."""

import asyncio
import random
import string
from collections import Counter
from collections.abc import Iterator
from itertools import repeat
from statistics import linear_regression
from typing import Any

import httpx
import pytest

from bench.memory import memory
from tests.server import RunningServer, running
from tests.speed import patience
from tests.tiny import tiny_llama

AT_ONCE = 64
LOOKS = 40  # at the memory; the first third, while pools and arenas fill, does not count


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    """A small model in a cache that 64 of its requests overflow; ended tapes go at once."""
    path = tiny_llama(tmp_path_factory.mktemp("tiny"))
    log = path / "log"
    flags = ("--model", str(path), "--tape-ttl", "0", "--kv-cache-memory", "1MiB")
    with running(log, *flags, "--log-level", "warning") as server:
        yield server
        assert server.stop() == 0, log.read_text()


class Crowd:
    """Clients that ask for random lengths, and leave at random: early, late, or not at all."""

    def __init__(self, server: RunningServer, http: httpx.AsyncClient, requests: int) -> None:
        self.requests = requests
        self.server = server
        self.http = http
        self.draw = random.Random(0)
        self.ends: Counter[str] = Counter()
        self.memory: list[tuple[int, int]] = []  # requests, bytes of all processes

    async def ask(self) -> None:
        draw = self.draw
        beginning = string.ascii_letters[: draw.randrange(52)]
        body: dict[str, Any] = {
            "prompt": beginning + "".join(draw.choices(string.printable, k=draw.randrange(1, 60))),
            "max_length": draw.randrange(1, 24),
            "ignore_eos": True,
            "temperature": draw.choice([0, 1.0]),
            "on_disconnect": "abort",
        }
        match draw.randrange(4):
            case 0:
                await self.leave(body, after=draw.randrange(6))
            case 1:
                await self.cancel(body)
            case 2:
                await self.read(body | {"stream": True})
            case _:
                answer = await self.http.post("/generate", json=body)
                self.ends[answer.json()["finish_reason"]] += 1
        self.look()

    async def leave(self, body: dict[str, Any], after: int) -> None:
        """Close the connection after so many lines."""
        stream = self.http.stream("POST", "/generate", json=body | {"stream": True})
        async with stream as response:
            lines = response.aiter_lines()
            for _ in range(after):
                await anext(lines)
        self.ends["left"] += 1

    async def cancel(self, body: dict[str, Any]) -> None:
        """Start it without reading, and end it by name."""
        started = await self.http.post("/v1/tapes", json=body)
        await self.http.delete(started.headers["location"])
        self.ends["cancelled"] += 1

    async def read(self, body: dict[str, Any]) -> None:
        async with self.http.stream("POST", "/generate", json=body) as response:
            text = "".join([part async for part in response.aiter_text()])
        assert text.count("event: done") == 1
        self.ends["read"] += 1

    def look(self) -> None:
        done = self.ends.total()
        if done % (self.requests // LOOKS) == 0:
            taken = memory(self.server.process.pid)
            assert taken
            self.memory.append((done, taken.pss))


@pytest.mark.timeout(300)
async def test_many_requests_leave_nothing_behind(
    small: RunningServer, pytestconfig: pytest.Config
) -> None:
    requests: int = pytestconfig.getoption("requests")
    async with httpx.AsyncClient(
        base_url=small.url, timeout=patience(60), limits=httpx.Limits(max_connections=AT_ONCE)
    ) as http:
        crowd = Crowd(small, http, requests)
        left = iter(repeat(None, requests))

        async def one_after_another() -> None:
            for _ in left:
                await crowd.ask()

        await asyncio.gather(*(one_after_another() for _ in range(AT_ONCE)))
    print(dict(crowd.ends))
    assert crowd.ends.total() == requests
    assert all(crowd.ends[end] > requests / 8 for end in ("left", "cancelled", "read", "length"))
    await small.health_becomes(
        5, engine="ready", running=0, waiting=0, paused=0, tapes=0, kv_blocks_used=0
    )
    done, taken = zip(*crowd.memory[LOOKS // 3 :], strict=True)
    slope, _ = linear_regression(done, taken)
    print(f"{slope:+.0f} bytes a request, {taken[-1] / 2**20:.0f} MiB at the end")
    # Of 10,000 requests a kilobyte each; the short form sees arenas still fill.
    assert slope * (done[-1] - done[0]) < 8 << 20
