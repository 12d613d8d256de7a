"""A real Redis in a process of its own."""

import contextlib
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

from tests.server import START_SECONDS, free_port


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
                ],
                stdout=log,
            )
        deadline = time.monotonic() + START_SECONDS
        while True:
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", self._port)):
                return
            assert time.monotonic() < deadline, (self._folder / "redis.log").read_text()
            time.sleep(0.02)

    def stop(self) -> None:
        self._process.terminate()
        self._process.wait()


@contextlib.contextmanager
def redis(folder: Path) -> Iterator[Redis]:
    server = Redis(folder)
    try:
        yield server
    finally:
        server.stop()
