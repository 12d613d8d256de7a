"""Random faults of every kind, for as long as one likes: no entry is lost, and none comes twice.

Clients of every kind ask for answers that are known beforehand, through a network that is cut,
from an engine that is killed, beside requests that kill it. Each entry is checked as it comes.
"""

import asyncio
import os
import random
import secrets
import signal
import sys
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from statistics import linear_regression
from typing import Any

import httpx
import pytest

from bench.memory import alone
from tests.answers import Reading, read_all
from tests.e2e.crashing_engine import AT, DEADLY, SPOILT
from tests.proxy import Proxy
from tests.raw import never_reading, post_generate
from tests.server import RunningServer, running
from tests.speed import patience
from tests.tiny import tiny_llama
from tickertape import Client, Done, Token

AT_ONCE = 24
KNOWN = 24  # different requests
DEADLY_SERVER = (sys.executable, "-m", "tests.e2e.crashing_engine")
FLAGS = ("--dtype", "float32", "--tape-ttl", "20", "--send-timeout", "2", "--ping-interval", "1")


@pytest.fixture
def own(tmp_path: Path) -> Iterator[RunningServer]:
    path = tiny_llama(tmp_path)
    with running(tmp_path / "log", "--model", str(path), *FLAGS, command=DEADLY_SERVER) as server:
        yield server
        assert server.stop() == 0


@dataclass
class Soak:
    server: RunningServer
    proxy: Proxy
    direct: httpx.AsyncClient
    shaky: httpx.AsyncClient
    client: Client
    seconds: float
    expected: list[list[int]] = field(default_factory=list)  # token ids, by seed
    count: Counter[str] = field(default_factory=Counter)
    memory: list[tuple[int, int]] = field(default_factory=list)  # requests, bytes
    draw: random.Random = field(default_factory=lambda: random.Random(0))

    async def run(self) -> None:
        bodies = [self.body(seed) for seed in range(KNOWN)]
        undisturbed = await asyncio.gather(*(read_all(self.direct, body) for body in bodies))
        self.expected = [reading.token_ids for reading in undisturbed]
        faults = [
            asyncio.create_task(fault())
            for fault in (self.kill, self.poison, self.cut, self.report)
        ]
        deadline = time.monotonic() + self.seconds

        async def worker() -> None:
            while time.monotonic() < deadline:
                await self.ask()

        await asyncio.gather(*(worker() for _ in range(AT_ONCE)))
        for fault in faults:
            fault.cancel()
        await asyncio.gather(*faults, return_exceptions=True)

    def body(self, seed: int) -> dict[str, Any]:
        return {
            "prompt": f"soak {seed}",
            "max_length": 20 + 8 * (seed % 20),
            "seed": seed,
            "temperature": float(seed % 2),
            "ignore_eos": True,
            "grace": 60,  # longer than any outage here: only `leave` lets it pass
        }

    # ---- faults

    async def kill(self) -> None:
        while True:
            await asyncio.sleep(self.draw.uniform(2, 8))
            os.kill(self.server.health()["engine_pid"], signal.SIGKILL)
            self.count["engine kills"] += 1

    async def poison(self) -> None:
        while True:
            await asyncio.sleep(self.draw.uniform(5, 15))
            await self.fails(DEADLY)
            self.count["requests that kill the engine"] += 1

    async def cut(self) -> None:
        while True:
            await asyncio.sleep(self.draw.uniform(0.1, 1))
            self.proxy.cut()
            self.count["cuts of all connections"] += 1
            if self.draw.random() < 0.1:
                self.proxy.refuses = True
                await asyncio.sleep(0.5)
                self.proxy.refuses = False

    async def report(self) -> None:
        while True:
            await asyncio.sleep(self.seconds / 60)
            self.memory.append((self.count["requests"], alone(self.server.process.pid)))
            print(f"{dict(self.count)}, {self.memory[-1][1] >> 20} MiB", flush=True)

    # ---- clients

    async def ask(self) -> None:
        kinds: list[tuple[Callable[[int], Awaitable[None]], int]] = [
            (self.by_our_client, 30),
            (self.by_hand, 30),
            (self.twice_at_once, 10),
            (self.unstreamed, 10),
            (self.fetched_later, 8),
            (self.aborted, 8),
            (self.left, 4),
            (self.cancelled, 4),
            (self.never_read, 2),
            (self.spoilt, 2),
        ]
        (kind,) = self.draw.choices([k for k, _ in kinds], [weight for _, weight in kinds])
        await kind(self.draw.randrange(KNOWN))
        self.count["requests"] += 1
        self.count[kind.__name__] += 1

    def check(self, seed: int, token_ids: list[int]) -> None:
        wanted = self.expected[seed]
        if token_ids != wanted:
            self.count["duplicated" if len(token_ids) > len(wanted) else "lost"] += 1

    async def by_our_client(self, seed: int) -> None:
        """It resumes by itself."""
        options = self.body(seed)
        prompt = options.pop("prompt")
        token_ids: list[int] = []
        async for event in self.client.generate(prompt, **options):
            if isinstance(event, Token):
                token_ids += event.token_ids
        assert isinstance(event, Done)
        self.check(seed, token_ids)

    async def by_hand(self, seed: int) -> None:
        self.check(seed, (await self.read(self.body(seed))).token_ids)

    async def twice_at_once(self, seed: int) -> None:
        """Two readers of one tape."""
        location = await self.start(self.body(seed))
        for reading in await asyncio.gather(self.resume(location), self.resume(location)):
            self.check(seed, reading.token_ids)

    async def unstreamed(self, seed: int) -> None:
        """Asked again with the same key until the answer has come through."""
        answer = await self.post("/generate", self.body(seed))
        path = f"/v1/tapes/{answer.json()['tape']}"
        self.check(seed, (await self.resume(path)).token_ids)

    async def fetched_later(self, seed: int) -> None:
        location = await self.start(self.body(seed) | {"on_disconnect": "continue"})
        await self.glance(location)
        self.check(seed, (await self.resume(location)).token_ids)

    async def aborted(self, seed: int) -> None:
        location = await self.start(self.body(seed) | {"on_disconnect": "abort"})
        await self.glance(location)

    async def left(self, seed: int) -> None:
        location = await self.start(self.body(seed) | {"grace": 0.2})
        await self.glance(location)

    async def glance(self, location: str) -> None:
        """Read a little and go."""
        try:
            async with self.shaky.stream("GET", location) as response:
                async for _ in response.aiter_bytes():
                    break
        except httpx.TransportError:
            pass

    async def cancelled(self, seed: int) -> None:
        location = await self.start(self.body(seed))
        await self.direct.delete(location)
        reading = await self.resume(location)
        assert reading.done
        assert reading.done["finish_reason"] in ("cancelled", "length")
        assert reading.token_ids == self.expected[seed][: len(reading.token_ids)]

    async def never_read(self, seed: int) -> None:
        body = self.body(seed) | {"logprobs": 20, "max_length": 400, "grace": 0.2, "stream": True}
        with never_reading(self.server.port, post_generate(body)):
            await asyncio.sleep(self.draw.uniform(0.5, 3))

    async def spoilt(self, _: int) -> None:
        await self.fails(SPOILT)

    async def fails(self, seed: int) -> None:
        reading = await self.read(self.body(seed))
        assert reading.done
        assert (reading.done["finish_reason"], len(reading.token_ids)) == ("error", AT)

    # ---- how they get through

    async def read(self, body: dict[str, Any]) -> Reading:
        """Cut and resumed, by GET or by POST, until the end is there."""
        return await self.resume(await self.start(body), body)

    async def start(self, body: dict[str, Any]) -> str:
        return str((await self.post("/v1/tapes", body)).headers["Location"])

    async def post(self, path: str, body: dict[str, Any]) -> httpx.Response:
        """Until it comes through; the key makes that one request."""
        headers = {"Idempotency-Key": secrets.token_urlsafe(8)}
        while True:
            try:
                response = await self.shaky.post(path, json=body, headers=headers)
            except httpx.TransportError:
                self.count["posts sent again"] += 1
                await asyncio.sleep(0.05)
                continue
            if response.status_code in (429, 503):
                self.count["told to come back"] += 1
                await asyncio.sleep(0.2)
                continue
            assert response.status_code in (200, 201), response.text
            return response

    async def resume(self, location: str, body: dict[str, Any] | None = None) -> Reading:
        reading = Reading(tape=location.rpartition("/")[2])
        while reading.done is None:
            headers = {"Last-Event-ID": reading.event_id}
            by_post = body is not None and self.draw.random() < 0.5
            method, path = ("POST", "/generate") if by_post else ("GET", location)
            wanted = body if by_post else None
            try:
                async with self.shaky.stream(
                    method, path, json=wanted, headers=headers
                ) as response:
                    await reading.read(response)
            except httpx.TransportError:
                self.count["resumed"] += 1
                await asyncio.sleep(0.02)
        self.count["recovered"] += {"state": "recovering"} in reading.statuses
        return reading


@pytest.mark.long
@pytest.mark.timeout(3600)
async def test_soak(own: RunningServer, pytestconfig: pytest.Config) -> None:
    seconds = 60 * float(pytestconfig.getoption("minutes"))
    limits = httpx.Limits(max_connections=None, max_keepalive_connections=0)
    async with (
        Proxy(own.url) as proxy,
        httpx.AsyncClient(base_url=own.url, timeout=patience(60)) as direct,
        httpx.AsyncClient(base_url=proxy.url, timeout=patience(60), limits=limits) as shaky,
        Client(proxy.url, max_retries=1000) as client,
    ):
        soak = Soak(own, proxy, direct, shaky, client, seconds)
        await soak.run()
        await own.health_becomes(
            60, engine="ready", running=0, waiting=0, paused=0, kv_blocks_used=0
        )
    looks = soak.memory[len(soak.memory) // 3 :]
    slope, _ = linear_regression(*zip(*looks, strict=True))
    soak.count.update(lost=0, duplicated=0)
    print("\n".join(f"{name:<32}{count:>8}" for name, count in sorted(soak.count.items())))
    print(f"API process: {slope:+.0f} bytes a request, {looks[-1][1] / 2**20:.0f} MiB at the end")
    assert soak.count["lost"] == soak.count["duplicated"] == 0
    assert soak.count["resumed"] > 0
    assert soak.count["recovered"] > 0
    assert slope * (looks[-1][0] - looks[0][0]) < 16 << 20
