"""Readers that leave, all at once or without a word, and readers that take nothing."""

import asyncio
import contextlib
import socket
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import ExitStack
from pathlib import Path

import httpx
import pytest

from tests.answers import read_all, typing
from tests.raw import never_reading, post_generate
from tests.server import RunningServer, running
from tests.speed import patience

LEAVERS = 1000
IDLE = {"running": 0, "waiting": 0, "paused": 0, "kv_blocks_used": 0}
LONG = {"prompt": "Once", "max_length": 4000, "ignore_eos": True, "seed": 3, "temperature": 1.0}


@pytest.fixture(scope="module")
def own(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    """The default model; readers that take nothing are cut after a second."""
    log = tmp_path_factory.mktemp("leaving") / "log"
    flags = ("--send-timeout", "1", "--ping-interval", "1", "--max-waiting", str(2 * LEAVERS))
    with running(log, *flags, "--log-level", "warning") as server:
        yield server
        assert server.stop() == 0, log.read_text()


@pytest.fixture
async def http(own: RunningServer) -> AsyncIterator[httpx.AsyncClient]:
    limits = httpx.Limits(max_connections=None, max_keepalive_connections=10)
    async with httpx.AsyncClient(base_url=own.url, timeout=patience(90), limits=limits) as client:
        yield client


async def test_aborted_its_blocks_are_free_within_a_second(
    own: RunningServer, http: httpx.AsyncClient
) -> None:
    async with typing(http, LONG | {"on_disconnect": "abort"}) as (reading, _):
        assert own.health()["kv_blocks_used"] > 0
    await own.health_becomes(1, **IDLE)
    path = f"/v1/tapes/{reading.tape}"
    snapshot = (await http.get(path, headers={"Accept": "application/json"})).json()
    assert snapshot["finish_reason"] == "cancelled"


async def test_paused_it_computes_nothing_keeps_its_blocks_and_goes_on_the_same(
    own: RunningServer, http: httpx.AsyncClient
) -> None:
    body = LONG | {"max_length": 300}
    expected = await read_all(http, body)
    async with typing(http, body) as (reading, _):
        pass
    health = await own.health_becomes(1, running=0, paused=1)
    assert health["kv_blocks_used"] > 0
    path, headers = f"/v1/tapes/{reading.tape}", {"Accept": "application/json"}
    stopped = (await http.get(path, headers=headers)).json()["last_entry"]
    await read_all(http, {"prompt": "another", "max_length": 50, "ignore_eos": True})
    assert (await http.get(path, headers=headers)).json()["last_entry"] == stopped
    async with http.stream(
        "POST", "/generate", json=body, headers={"Last-Event-ID": reading.event_id}
    ) as response:
        await reading.read(response)
    assert reading.token_ids == expected.token_ids
    assert reading.text == expected.text
    await own.health_becomes(1, **IDLE)


async def test_left_to_go_on_it_can_be_fetched_later(
    own: RunningServer, http: httpx.AsyncClient
) -> None:
    body = LONG | {"max_length": 100, "on_disconnect": "continue"}
    async with typing(http, body) as (reading, _):
        pass
    await own.health_becomes(10, **IDLE)
    async with http.stream(
        "GET", f"/v1/tapes/{reading.tape}", headers={"Last-Event-ID": reading.event_id}
    ) as response:
        await reading.read(response)
    assert len(reading.token_ids) == 100


async def test_nobody_comes_back_within_its_grace(
    own: RunningServer, http: httpx.AsyncClient
) -> None:
    async with typing(http, LONG | {"grace": 0.2}) as (reading, _):
        pass
    await own.health_becomes(2, **IDLE)
    async with http.stream(
        "GET", f"/v1/tapes/{reading.tape}", headers={"Last-Event-ID": reading.event_id}
    ) as response:
        await reading.read(response)
    assert reading.done
    assert reading.done["finish_reason"] == "cancelled"


async def test_a_thousand_leave_at_once_and_a_bystander_notices_nothing(
    own: RunningServer, http: httpx.AsyncClient
) -> None:
    """64 of them run, the others wait; the bystander was there before them."""
    body = LONG | {"max_length": 600}
    expected = await read_all(http, body)
    bystander = asyncio.create_task(read_all(http, body | {"priority": -1}))
    await own.health_becomes(5, running=1)
    leavers = await asyncio.gather(*(leaver(own) for _ in range(LEAVERS)))
    await own.health_becomes(20, waiting=LEAVERS + 1 - 64)
    began = time.monotonic()
    for writer in leavers:
        writer.transport.abort()
    await own.health_becomes(5, running=1, waiting=0, paused=0)
    took = time.monotonic() - began
    reading = await bystander
    assert reading.token_ids == expected.token_ids
    assert reading.text == expected.text
    await own.health_becomes(5, **IDLE)
    print(f"{LEAVERS} gone after {took:.2f} s")


async def leaver(server: RunningServer) -> asyncio.StreamWriter:
    """A stream whose headers are there, on a connection of its own."""
    reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
    writer.write(post_generate(LONG | {"on_disconnect": "abort", "stream": True}))
    await reader.readuntil(b"\r\n\r\n")
    return writer


@pytest.mark.alone
async def test_readers_that_take_nothing_are_cut_and_cost_the_others_nothing(
    own: RunningServer, http: httpx.AsyncClient
) -> None:
    """Of 64 streams 8 never read. With log-probabilities a frame is large, so that buffers fill.

    The best of three rounds, as what else goes on on the machine only adds.
    """
    wordy = LONG | {"logprobs": 20, "stream": True}

    async def speed() -> float:
        """How many tokens a second 56 readers get together."""
        began = time.monotonic()
        readings = await asyncio.gather(
            *(read_all(http, LONG | {"max_length": 75, "seed": seed}) for seed in range(56))
        )
        tokens = sum(len(reading.token_ids) for reading in readings)
        return tokens / (time.monotonic() - began)

    async def take_all(seed: int) -> None:
        """Takes every byte and looks at none, so that it costs this process little."""
        body = wordy | {"seed": seed, "on_disconnect": "abort"}
        async with http.stream("POST", "/generate", json=body) as response:
            async for _ in response.aiter_raw():
                pass

    async def beside_takers() -> float:
        takers = [asyncio.create_task(take_all(seed)) for seed in range(8)]
        await own.health_becomes(5, running=8)
        found = await speed()
        for taker in takers:
            taker.cancel()
        await asyncio.gather(*takers, return_exceptions=True)
        await own.health_becomes(10, **IDLE)
        return found

    async def beside_stuck() -> float:
        with ExitStack() as stack:
            requests = [post_generate(wordy | {"seed": seed, "grace": 0.5}) for seed in range(8)]
            stuck = [stack.enter_context(never_reading(own.port, request)) for request in requests]
            await own.health_becomes(5, running=8)
            found = await speed()
            await own.health_becomes(30, **IDLE)  # none of the eight holds a seat or a block now
            for client in stuck:
                await asyncio.to_thread(until_closed, client)
        return found

    ratios: list[float] = []
    while len(ratios) < 3 and not (ratios and ratios[-1] >= 0.95):
        takers = await beside_takers()
        ratios.append(await beside_stuck() / takers)
    print(f"56 readers beside 8 that take nothing, to 8 that take all: {ratios}")
    assert max(ratios) >= 0.95


def until_closed(client: socket.socket) -> None:
    """Read what came before the server closed or reset it. Raises TimeoutError if it has not."""
    client.settimeout(patience(10))
    with contextlib.suppress(ConnectionError):
        while client.recv(1 << 16):
            pass


async def test_a_peer_that_vanishes_without_a_word_is_noticed(tmp_path: Path) -> None:
    """The network goes dark in a namespace of its own: nothing arrives, nothing is answered."""
    command = ["unshare", "--net", "--map-root-user"]
    script = [sys.executable, "-m", "tests.e2e.network_namespace", str(tmp_path / "log")]
    result = await asyncio.to_thread(
        subprocess.run, [*command, *script], capture_output=True, text=True, timeout=patience(100)
    )
    assert result.returncode == 0, result.stdout + result.stderr
    print(result.stdout)
