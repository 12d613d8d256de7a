"""Servers and clients for tests of clients that others have written."""

import sys
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
from openai import AsyncOpenAI

from tests.server import RunningServer, running
from tests.speed import patience
from tests.tiny import HERMES, tiny_llama

MODEL = "smollm2-135m"
SEATS, WAITING = 1, 2  # of `calling`
PING = 0.05
KEY = "a-key-of-the-file"


def sdk(
    server: RunningServer, api_key: str = "any", max_retries: int = 0, *, strict: bool = True
) -> AsyncOpenAI:
    """A strict one checks every answer against its own types, as openai-python does not else."""
    return AsyncOpenAI(
        base_url=f"{server.url}/v1",
        api_key=api_key,
        max_retries=max_retries,
        timeout=patience(60),
        _strict_response_validation=strict,
    )


@pytest.fixture
async def client(server: RunningServer) -> AsyncIterator[AsyncOpenAI]:
    """Of the default server: answers with some sense."""
    async with sdk(server) as client:
        yield client


@pytest.fixture(scope="session")
def calling(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    """A tiny model that is shown tools. One seat, pings all the time, and some seeds hurt it.

    In torch, for that is what they can hurt.
    """
    path = tiny_llama(tmp_path_factory.mktemp("calling"), HERMES, context=4096)
    flags = ["--model", str(path), "--dtype", "float32", "--ping-interval", str(PING)]
    flags += ["--max-num-seqs", str(SEATS), "--max-waiting", str(WAITING)]
    deadly = (sys.executable, "-m", "tests.e2e.crashing_engine")
    with running(path / "log", *flags, command=deadly) as server:
        yield server
        assert server.stop() == 0, server.log.read_text()


@pytest.fixture
async def caller(calling: RunningServer) -> AsyncIterator[AsyncOpenAI]:
    """Of the server with tools; leaves it without work."""
    async with sdk(calling) as client:
        yield client
    await calling.health_becomes(10, running=0, waiting=0, paused=0)


@pytest.fixture(scope="session")
def guarded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    """It wants a key, and lets a key start one generation an hour."""
    path: Path = tiny_llama(tmp_path_factory.mktemp("guarded"))
    keys = path / "keys"
    keys.write_text(KEY)
    flags = ("--model", str(path), "--api-key-file", str(keys), "--rate-limit", "1/hour")
    with running(path / "log", *flags) as server:
        yield server
        assert server.stop() == 0, server.log.read_text()
