"""`tickertape cluster`: Ray, replicas, a Redis, and streams that none of what happens breaks.

Started by `make cluster-test` only.
"""

import asyncio
import contextlib
import os
import secrets
import signal
import subprocess
import time
from collections.abc import AsyncIterator, Collection, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

from tests.answers import Reading, read_all, typing
from tests.server import TICKERTAPE, free_port
from tests.speed import patience
from tests.tiny import CHAT_TEMPLATE, tiny_llama

pytestmark = [pytest.mark.alone, pytest.mark.timeout(300)]

STREAMS = 32
LONG = 1500  # tokens: a fast machine must not be done before the kill
LASTING = 600
SECONDS = 90  # for what Ray takes its time for


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_llama(tmp_path_factory.mktemp("model"), CHAT_TEMPLATE, context=4096)


@dataclass
class Cluster:
    url: str
    process: subprocess.Popen[bytes]
    log: Path
    mark: str

    def processes(self) -> list[int]:
        """All that it has started, directly or not: they have its environment."""
        found = []
        for entry in Path("/proc").iterdir():
            with contextlib.suppress(OSError):
                if entry.name.isdigit() and self.mark.encode() in (entry / "environ").read_bytes():
                    found.append(int(entry.name))
        return found

    async def replicas(self, http: httpx.AsyncClient) -> dict[str, int]:
        """Those that answer, and the pids of their engines."""
        found = {}
        for number in range(24):  # of sessions; that one replica gets none has a chance of 1e-7
            answer = await http.get("/health", headers={"X-Session-Id": f"probe {number}"})
            assert answer.status_code == 200, answer.text
            found[answer.headers["X-Replica"]] = answer.json()["engine_pid"]
        return found

    async def replicas_become(
        self, http: httpx.AsyncClient, count: int, *, other_than: Collection[str] = ()
    ) -> dict[str, int]:
        async with asyncio.timeout(patience(SECONDS)):
            while True:
                with contextlib.suppress(httpx.TransportError, AssertionError):
                    found = await self.replicas(http)
                    if len(found) == count and found.keys().isdisjoint(other_than):
                        return found


@contextmanager
def running(log: Path, *flags: str) -> Iterator[Cluster]:
    """A cluster until the block ends; then Ctrl-C leaves nothing of it."""
    port, mark = free_port(), f"CLUSTER_OF_A_TEST={secrets.token_hex(8)}"
    name, _, value = mark.partition("=")
    with log.open("wb") as output:
        process = subprocess.Popen(
            [TICKERTAPE, "cluster", "--port", str(port), "--dtype", "float32", *flags],
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            env=os.environ | {name: value, "PYTHONUNBUFFERED": "1"},
        )
    cluster = Cluster(f"http://127.0.0.1:{port}", process, log, mark)
    try:
        _wait_ready(cluster)
        yield cluster
        os.killpg(process.pid, signal.SIGINT)
        assert process.wait(patience(60)) == 0, log.read_text()
        assert cluster.processes() == []
    finally:
        for pid in cluster.processes():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        process.wait()


def _wait_ready(cluster: Cluster) -> None:
    deadline = time.monotonic() + patience(SECONDS)
    while time.monotonic() < deadline:
        assert cluster.process.poll() is None, cluster.log.read_text()
        with contextlib.suppress(httpx.TransportError):
            if httpx.get(f"{cluster.url}/ready").status_code == 200:
                return
        time.sleep(0.1)
    raise TimeoutError(f"the cluster is not ready:\n{cluster.log.read_text()}")


@pytest.fixture(scope="module")
def cluster(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    log = tmp_path_factory.mktemp("cluster") / "log"
    with running(log, "--model", str(model), "--replicas", "2") as cluster:
        yield cluster


@asynccontextmanager
async def client(cluster: Cluster) -> AsyncIterator[httpx.AsyncClient]:
    limits = httpx.Limits(max_connections=None)
    async with httpx.AsyncClient(base_url=cluster.url, timeout=patience(60), limits=limits) as http:
        yield http


@pytest.fixture
async def http(cluster: Cluster) -> AsyncIterator[httpx.AsyncClient]:
    async with client(cluster) as http:
        await cluster.replicas_become(http, 2)
        yield http


def body(seed: int, length: int = LONG) -> dict[str, Any]:
    asked = {"prompt": f"{seed} is", "max_length": length, "seed": seed, "ignore_eos": True}
    return asked | {"temperature": float(seed % 2)}


@dataclass
class Reader:
    """One who reads a stream to its end, over as many connections as it takes."""

    seed: int
    reading: Reading = field(default_factory=Reading)
    answered_by: list[str] = field(default_factory=list)

    async def read(self, http: httpx.AsyncClient) -> None:
        async with asyncio.timeout(patience(SECONDS)):
            while not self.reading.done:
                with contextlib.suppress(httpx.TransportError):
                    await self._connect(http)

    async def _connect(self, http: httpx.AsyncClient) -> None:
        asked = body(self.seed) | {"stream": True}
        # A resume: the body is not looked at.
        headers = {"Last-Event-ID": self.reading.event_id} if self.reading.last else {}
        async with http.stream("POST", "/generate", json=asked, headers=headers) as response:
            if response.status_code < 500:  # else Ray has not noticed yet that the replica is gone
                self.answered_by.append(response.headers["X-Replica"])
                await self.reading.read(response)


async def have(readers: list[Reader], count: int) -> None:
    async with asyncio.timeout(patience(60)):
        while any(len(reader.reading.token_ids) < count for reader in readers):  # noqa: ASYNC110
            await asyncio.sleep(0.005)


async def test_turns_of_a_conversation_go_to_the_replica_that_has_it(
    http: httpx.AsyncClient,
) -> None:
    homes = set()
    model = (await http.get("/v1/models")).json()["data"][0]["id"]
    for number in range(12):
        messages = [{"role": "user", "content": f"Conversation {number}: how are you today?"}]
        asked = {"model": model, "messages": messages, "max_tokens": 8}
        first = await http.post("/v1/chat/completions", json=asked)
        messages += [{"role": "assistant", "content": "Well."}, {"role": "user", "content": "So?"}]
        second = await http.post("/v1/chat/completions", json=asked)
        assert first.headers["X-Replica"] == second.headers["X-Replica"]
        assert second.json()["usage"]["prompt_tokens_details"]["cached_tokens"] > 16
        homes.add(first.headers["X-Replica"])
    assert len(homes) == 2


async def test_an_answer_has_one_request_id(http: httpx.AsyncClient) -> None:
    answer = await http.get("/health", headers={"X-Request-Id": "given"})
    assert answer.headers["X-Request-Id"] == "given"


async def test_a_stream_whose_reader_leaves_pauses(http: httpx.AsyncClient) -> None:
    http.headers["X-Session-Id"] = "mine"
    async with typing(http, body(1, LASTING)) as (reading, _):
        pass
    async with asyncio.timeout(patience(30)):
        while (await http.get("/health")).json()["paused"] != 1:
            pass
    assert (await http.delete(f"/v1/tapes/{reading.tape}")).status_code == 204


async def test_a_replica_is_killed_and_all_streams_end_whole(
    cluster: Cluster, http: httpx.AsyncClient
) -> None:
    calm = await asyncio.gather(*(read_all(http, body(seed)) for seed in range(STREAMS)))
    before = await cluster.replicas(http)
    readers = [Reader(seed) for seed in range(STREAMS)]
    tasks = [asyncio.create_task(reader.read(http)) for reader in readers]
    await have(readers, 10)
    victim = readers[0].answered_by[0]
    hit = [reader for reader in readers if reader.answered_by == [victim]]
    unhurt = [reader for reader in readers if reader not in hit]
    assert hit
    assert unhurt
    assert not any(reader.reading.done for reader in readers)
    engine = psutil.Process(before[victim])
    for process in (engine.parent(), engine):
        process.kill()
    killed = time.monotonic()
    await asyncio.gather(*tasks)
    print(
        f"{len(hit)} of {STREAMS} streams were cut; "
        f"all ended {time.monotonic() - killed:.1f} s after the kill"
    )
    for reader, expected in zip(readers, calm, strict=True):
        assert reader.reading.token_ids == expected.token_ids
        assert reader.reading.done
        assert reader.reading.done["usage"]["completion_tokens"] == LONG
    for reader in hit:
        assert len(reader.answered_by) > 1
        assert victim not in reader.answered_by[1:]
    for reader in unhurt:
        assert len(reader.answered_by) == 1
    after = await cluster.replicas_become(http, 2, other_than={victim})
    print(f"two replicas again {time.monotonic() - killed:.1f} s after the kill")
    assert before.keys() - {victim} <= after.keys()


class Traffic:
    """Readers who ask for one stream after the other, each over one connection, and compare."""

    def __init__(self, http: httpx.AsyncClient, calm: list[Reading]) -> None:
        self._http = http
        self._calm = calm
        self._tasks: list[asyncio.Task[None]] = []
        self.num_streams = 0

    def grow(self, count: int) -> None:
        first = len(self._tasks)
        self._tasks += [asyncio.create_task(self._ask(first + n)) for n in range(count)]

    async def _ask(self, number: int) -> None:
        while number < len(self._tasks):
            seed = (number + self.num_streams) % len(self._calm)
            reading = await read_all(self._http, body(seed, LASTING))
            assert reading.token_ids == self._calm[seed].token_ids
            assert reading.done
            self.num_streams += 1

    async def shrink(self, count: int) -> None:
        """Whoever goes reads the last stream to its end."""
        self._tasks, going = self._tasks[:count], self._tasks[count:]
        await asyncio.gather(*going)

    def check(self) -> None:
        """Raises what a reader has met."""
        for task in self._tasks:
            if task.done():
                task.result()


async def calm_readings(http: httpx.AsyncClient, count: int) -> list[Reading]:
    return await asyncio.gather(*(read_all(http, body(seed, LASTING)) for seed in range(count)))


async def test_rolling_update(cluster: Cluster, http: httpx.AsyncClient) -> None:
    before = await cluster.replicas_become(http, 2)
    calm = await calm_readings(http, 8)
    alone = body(3, LASTING) | {"on_disconnect": "continue"}
    traffic = Traffic(http, calm)
    traffic.grow(8)
    async with typing(http, alone) as (reading, _):
        pass
    cluster.process.send_signal(signal.SIGHUP)
    began = time.monotonic()
    await cluster.replicas_become(http, 2, other_than=before)
    print(f"two other replicas answer {time.monotonic() - began:.1f} s after SIGHUP")
    await _gone(list(before.values()))
    print(f"the old ones have gone {time.monotonic() - began:.1f} s after SIGHUP")
    traffic.check()
    await traffic.shrink(0)
    print(f"{traffic.num_streams} streams, none broken")
    whole = Reading(tape=reading.tape)
    async with http.stream("GET", f"/v1/tapes/{whole.tape}") as response:
        await whole.read(response)
    assert whole.token_ids == calm[3].token_ids


async def _gone(pids: list[int]) -> None:
    async with asyncio.timeout(patience(SECONDS)):
        while any(map(psutil.pid_exists, pids)):  # noqa: ASYNC110
            await asyncio.sleep(0.05)


async def test_scaling_breaks_no_stream(model: Path, tmp_path: Path) -> None:
    flags = ("--replicas", "1", "--max-replicas", "2", "--target-streams", "4")
    delays = ("--scale-up-after", "1", "--scale-down-after", "2")
    with running(tmp_path / "log", "--model", str(model), *flags, *delays) as cluster:
        async with client(cluster) as http:
            calm = await calm_readings(http, 8)
            traffic = Traffic(http, calm)
            traffic.grow(12)
            began = time.monotonic()
            both = await cluster.replicas_become(http, 2)
            print(f"a second replica answers {time.monotonic() - began:.1f} s after the load came")
            await traffic.shrink(2)
            began = time.monotonic()
            left = await cluster.replicas_become(http, 1)
            await _gone([pid for name, pid in both.items() if name not in left])
            print(f"one has gone {time.monotonic() - began:.1f} s after the load went")
            traffic.check()
            await traffic.shrink(0)
            print(f"{traffic.num_streams} streams, none broken")
