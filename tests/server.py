"""A real Tickertape in a process of its own, as `tickertape serve` starts it."""

import asyncio
import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

from tests.speed import patience

TICKERTAPE = Path(sys.executable).with_name("tickertape")
START_SECONDS = 60


@dataclass
class RunningServer:
    url: str
    process: subprocess.Popen[bytes]
    log: Path

    @property
    def port(self) -> int:
        return int(self.url.rpartition(":")[2])

    def health(self) -> dict[str, Any]:
        answer: dict[str, Any] = httpx.get(f"{self.url}/health", timeout=patience(5)).json()
        return answer

    async def health_becomes(self, seconds: float, **wanted: Any) -> dict[str, Any]:
        """/health once it says what is wanted. Raises TimeoutError after `patience(seconds)`."""
        limit = patience(seconds)
        async with (
            asyncio.timeout(limit),
            httpx.AsyncClient(base_url=self.url, timeout=limit) as http,
        ):
            while True:
                health: dict[str, Any] = (await http.get("/health")).json()
                if wanted.items() <= health.items():
                    return health
                await asyncio.sleep(0.01)

    def stop(self) -> int:
        """SIGTERM; its exit code."""
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(timeout=patience(30))


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


@contextlib.contextmanager
def running(
    log: Path, *flags: str, ready: bool = True, command: Sequence[str | Path] = (TICKERTAPE,)
) -> Iterator[RunningServer]:
    """A server until the block ends; with `ready`, its model is loaded when the block begins."""
    port = free_port()
    with log.open("wb") as output:
        process = subprocess.Popen(
            [*command, "serve", "--port", str(port), *flags],
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,  # a process group of its own, to signal as a whole
            env=os.environ | {"PYTHONUNBUFFERED": "1"},
        )
    server = RunningServer(f"http://127.0.0.1:{port}", process, log)
    try:
        if ready:
            _wait_ready(server)
        yield server
    finally:
        if process.poll() is None:
            process.kill()
            process.wait()


def _wait_ready(server: RunningServer) -> None:
    deadline = time.monotonic() + patience(START_SECONDS)
    while time.monotonic() < deadline:
        if server.process.poll() is not None:
            raise RuntimeError(f"the server ended:\n{server.log.read_text()}")
        with contextlib.suppress(httpx.TransportError):
            if httpx.get(f"{server.url}/ready", timeout=patience(5)).status_code == 200:
                return
        time.sleep(0.05)
    raise TimeoutError(f"the server is not ready:\n{server.log.read_text()}")


@dataclass(frozen=True)
class Frame:
    """One SSE block, parsed by hand: tests must not trust the client that they test."""

    id: str | None
    event: str | None
    data: str | None
    retry: str | None
    comment: str | None


def parse_frames(raw: str) -> list[Frame]:
    assert "\r" not in raw
    assert raw.endswith("\n\n")
    return [_frame(block) for block in raw[:-2].split("\n\n")]


def _frame(block: str) -> Frame:
    fields: dict[str, str] = {}
    for line in block.split("\n"):
        name, _, value = line.partition(":")
        fields[name or "comment"] = value.removeprefix(" ")
    return Frame(**{name: fields.get(name) for name in Frame.__dataclass_fields__})


async def read_stream(response: httpx.Response) -> AsyncIterator[Frame]:
    """Frames as their last byte arrives."""
    buffer = ""
    async for text in response.aiter_text():
        buffer += text
        while "\n\n" in buffer:
            block, _, buffer = buffer.partition("\n\n")
            yield _frame(block)
    assert buffer == "", "the stream ended inside a frame"


async def line_with(server: RunningServer, **wanted: Any) -> dict[str, Any]:
    """The one line of the log that says this, once it is there. Raises TimeoutError.

    A line about a request is written after its answer, so no test may look for it only once.
    """
    async with asyncio.timeout(patience(10)):
        while True:
            lines = map(json.loads, server.log.read_text().rpartition("\n")[0].splitlines())
            found = [line for line in lines if wanted.items() <= line.items()]
            if found:
                assert len(found) == 1
                return found[0]
            await asyncio.sleep(0.01)
