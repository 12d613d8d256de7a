"""A real Redis in a process of its own."""

import contextlib
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

from tests.server import START_SECONDS, free_port
from tests.speed import patience


class Redis:
    """Started at once; `stop` and `start` are for faults. What it has been told survives both,
    unless it is started anew `empty`."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._port = free_port()
        self.url = f"redis://127.0.0.1:{self._port}/0"
        self.start()

    def start(self, *, empty: bool = False) -> None:
        if empty:
            for file in (self._folder / "appendonlydir").iterdir():
                file.unlink()
        with (self._folder / "redis.log").open("ab") as log:
            self._process = subprocess.Popen(
                [
                    *("redis-server", "--port", str(self._port), "--bind", "127.0.0.1"),
                    *("--dir", str(self._folder), "--save", "", "--appendonly", "yes"),
                    *("--enable-protected-configs", "local"),  # `dir` is one
                ],
                stdout=log,
            )
        deadline = time.monotonic() + patience(START_SECONDS)
        while True:
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", self._port)):
                return
            assert time.monotonic() < deadline, (self._folder / "redis.log").read_text()
            time.sleep(0.02)

    def stop(self) -> None:
        self._process.terminate()
        self._process.wait()

    def kill(self) -> None:
        self._process.kill()
        self._process.wait()

    def do(self, *command: str) -> str:
        """What redis-cli prints for a command."""
        asked = ["redis-cli", "-p", str(self._port), *command]
        asked_of = subprocess.run(asked, capture_output=True, check=True)
        said = asked_of.stdout.decode(errors="replace").strip()
        assert not said.startswith("ERR"), said
        return said

    @contextlib.contextmanager
    def full(self) -> Iterator[None]:
        """It has no memory left, and may evict nothing: OOM."""
        self.do("CONFIG", "SET", "maxmemory-policy", "noeviction")
        self.do("CONFIG", "SET", "maxmemory", "1")
        try:
            yield
        finally:
            self.do("CONFIG", "SET", "maxmemory", "0")

    @contextlib.contextmanager
    def read_only(self) -> Iterator[None]:
        """Another server is the primary now, as in a fail-over: READONLY."""
        self.do("REPLICAOF", "127.0.0.1", "1")
        try:
            yield
        finally:
            self.do("REPLICAOF", "NO", "ONE")

    @contextlib.contextmanager
    def without_disk(self) -> Iterator[None]:
        """It could not save what it has: MISCONF."""
        lost = self._folder / "lost"
        lost.mkdir()
        self.do("CONFIG", "SET", "dir", str(lost))
        self.do("CONFIG", "SET", "save", "3600 1000000")
        lost.rmdir()
        while "rdb_last_bgsave_status:err" not in self.do("INFO", "persistence"):
            with contextlib.suppress(AssertionError):  # one may be under way
                self.do("BGSAVE")
            time.sleep(0.02)
        try:
            yield
        finally:
            self.do("CONFIG", "SET", "dir", str(self._folder))
            self.do("CONFIG", "SET", "save", "")
            self.do("BGSAVE")

    @contextlib.contextmanager
    def killed(self) -> Iterator[None]:
        """It is gone, and comes back with what it had."""
        self.kill()
        try:
            yield
        finally:
            self.start()


@contextlib.contextmanager
def redis(folder: Path) -> Iterator[Redis]:
    server = Redis(folder)
    try:
        yield server
    finally:
        server.stop()
