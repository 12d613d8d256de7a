"""Our own server, as `tickertape serve` starts it, for as long as it is measured."""

import contextlib
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx

from bench.dialects import Native
from bench.figures import BenchError
from bench.stream import Target
from model.native import library

START_SECONDS = 120
STOP_SECONDS = 15
_SERVE = "from app.cli import main; main()"

Flags = dict[str, str | bool]  # of the engine, by the names of its settings; switches are bools


@dataclass(frozen=True, slots=True)
class Server:
    target: Target
    process: subprocess.Popen[bytes]
    log: Path


def compile_kernels() -> None:
    """Compile them where it is possible: what serves until then is not to be measured."""
    if library.why_unavailable() is None and library.cached() is None:
        library.compile()


@contextlib.contextmanager
def starting(flags: Flags, log: Path) -> Iterator[Server]:
    """A server whose process has just been started; what it says goes to `log`."""
    port = _free_port()
    arguments = ["serve", "--port", str(port), *as_arguments(flags)]
    with log.open("wb") as output:
        process = subprocess.Popen(
            [sys.executable, "-P", "-c", _SERVE, *arguments],
            stdout=output,
            stderr=subprocess.STDOUT,
        )
    try:
        target = Target("tickertape", f"http://127.0.0.1:{port}", Native(), process.pid)
        yield Server(target, process, log)
    finally:
        _stop(process)


@contextlib.contextmanager
def serving(flags: Flags, log: Path) -> Iterator[Target]:
    """A server that takes work when the block begins. Raises BenchError when it does not."""
    with starting(flags, log) as server:
        deadline = time.monotonic() + START_SECONDS
        while not _ready(server.target):
            if server.process.poll() is not None or time.monotonic() > deadline:
                said = log.read_text().strip().splitlines() or ["it said nothing"]
                raise BenchError(f"the server does not start: {said[-1]}")
            time.sleep(0.05)
        yield server.target


def as_arguments(flags: Flags) -> list[str]:
    """{'port': '8', 'prefix_cache': False} -> ['--port', '8', '--no-prefix-cache']"""
    arguments = []
    for name, value in flags.items():
        flag = name.replace("_", "-")
        if isinstance(value, bool):
            arguments.append(f"--{flag}" if value else f"--no-{flag}")
        else:
            arguments += [f"--{flag}", value]
    return arguments


def _ready(target: Target) -> bool:
    with contextlib.suppress(httpx.TransportError):
        return httpx.get(f"{target.url}/ready").status_code == 200
    return False


def _stop(process: subprocess.Popen[bytes]) -> None:
    process.send_signal(signal.SIGTERM)
    try:
        process.wait(STOP_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
