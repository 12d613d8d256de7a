"""`python -m tests.adversarial.bystander PORT [KEY]`: a client that does nothing wrong.

It reads a stream and asks for /health every 20 ms. For each line of its input it writes what it has
measured since the line before, as JSON. From the line "newcomers" to the line "quiet" it also sends
one-token requests and texts to tokenize. A process of its own waits for no other.
"""

import contextlib
import http.client
import json
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
EVERY_SECONDS = 0.02
STREAM_TOKENS = 600  # then another begins: late tokens take longer than early ones
LONG_TEXT = "the quick brown fox " * 3300  # 66 kB
PATIENCE = 300.0


@dataclass
class Window:
    """All in milliseconds; what has begun and not ended counts as far as it is."""

    health: list[float] = field(default_factory=list)
    gaps: list[float] = field(default_factory=list)
    newcomers: list[float] = field(default_factory=list)
    texts: list[float] = field(default_factory=list)
    faults: list[str] = field(default_factory=list)

    @property
    def slowest_health(self) -> float:
        return max(self.health, default=0.0)

    @property
    def longest_gap(self) -> float:
        return max(self.gaps, default=0.0)

    def add(self, other: "Window") -> None:
        for name in self.__dataclass_fields__:
            getattr(self, name).extend(getattr(other, name))


class Bystander:
    """To be asked from the process that attacks."""

    def __init__(self, port: int, key: str | None = None) -> None:
        command = [sys.executable, "-m", "tests.adversarial.bystander", str(port)]
        self._process = subprocess.Popen(
            [*command, *([key] if key else [])],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def window(self, line: str = "") -> Window:
        """What has happened since it was last asked."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(line + "\n")
        self._process.stdin.flush()
        return Window(**json.loads(self._process.stdout.readline()))

    def close(self) -> None:
        self._process.kill()
        self._process.communicate()


@contextlib.contextmanager
def watching(port: int, key: str | None = None) -> Iterator[Bystander]:
    """From when its stream runs."""
    bystander = Bystander(port, key)
    try:
        while len(bystander.window().gaps) < 3:
            time.sleep(EVERY_SECONDS)
        yield bystander
    finally:
        bystander.close()


class Watch:
    """Threads that measure."""

    def __init__(self, port: int, key: str | None) -> None:
        self._port = port
        self._headers = {"Content-Type": "application/json"}
        if key:
            self._headers["Authorization"] = f"Bearer {key}"
        self._lock = threading.Lock()
        self._window = Window()
        self._since: dict[str, float] = {}  # what has begun and not ended
        self._coming = threading.Event()

    def run(self) -> None:
        for task in (self._health, self._stream, self._newcomer, self._tokenizer):
            threading.Thread(target=self._forever, args=(task,), daemon=True).start()
        for line in sys.stdin:
            if line.strip() == "newcomers":
                self._coming.set()
            elif line.strip() == "quiet":
                self._coming.clear()
            print(json.dumps(self._taken().__dict__), flush=True)

    def _taken(self) -> Window:
        now = time.perf_counter()
        with self._lock:
            taken, self._window = self._window, Window()
            for name, began in self._since.items():
                getattr(taken, name).append((now - began) * 1000)
        return taken

    # ---- tasks

    def _forever(self, task: Callable[[http.client.HTTPConnection], None]) -> None:
        """With a connection of its own each time."""
        while True:
            connection = http.client.HTTPConnection("127.0.0.1", self._port, timeout=PATIENCE)
            try:
                task(connection)
            except (OSError, http.client.HTTPException, AssertionError) as error:
                with self._lock:
                    self._window.faults.append(f"{task.__name__[1:]}: {error!r}")
                time.sleep(EVERY_SECONDS)
            finally:
                connection.close()

    def _health(self, connection: http.client.HTTPConnection) -> None:
        while True:
            with self._timed("health"):
                connection.request("GET", "/health")
                _expect_ok(connection.getresponse())
            time.sleep(EVERY_SECONDS)

    def _stream(self, connection: http.client.HTTPConnection) -> None:
        body = {"prompt": "Once upon a time", "max_length": STREAM_TOKENS, "ignore_eos": True}
        self._post(connection, "/generate", body | {"stream": True, "on_disconnect": "abort"})
        response = connection.getresponse()
        assert response.status == 200, response.read()
        try:
            ended = self._read(response)
        finally:
            with self._lock:
                self._since.pop("gaps", None)
        assert ended, "the stream ended without its end"

    def _read(self, response: http.client.HTTPResponse) -> bool:
        event = b""
        for line in response:
            if line.startswith(b"event:"):
                event = line[6:].strip()
            elif line.startswith(b"data:") and event == b"token":
                self._token()
            elif line.startswith(b"data:") and event == b"done":
                reason = json.loads(line[5:])["finish_reason"]
                assert reason == "length", f"the stream ended with {reason}"
                return True
        return False

    def _token(self) -> None:
        now = time.perf_counter()
        with self._lock:
            if (last := self._since.get("gaps")) is not None:
                self._window.gaps.append((now - last) * 1000)
            self._since["gaps"] = now

    def _newcomer(self, connection: http.client.HTTPConnection) -> None:
        self._coming.wait()
        with self._timed("newcomers"):
            self._post(connection, "/generate", {"prompt": "Hello", "max_length": 1})
            _expect_ok(connection.getresponse())
        time.sleep(0.2)

    def _tokenizer(self, connection: http.client.HTTPConnection) -> None:
        self._coming.wait()
        with self._timed("texts"):
            self._post(connection, "/tokenize", {"prompt": LONG_TEXT})
            _expect_ok(connection.getresponse())
        time.sleep(0.5)

    # ---- what they share

    def _post(
        self, connection: http.client.HTTPConnection, path: str, body: dict[str, Any]
    ) -> None:
        connection.request("POST", path, json.dumps(body), self._headers)

    @contextlib.contextmanager
    def _timed(self, name: str) -> Iterator[None]:
        began = time.perf_counter()
        with self._lock:
            self._since[name] = began
        try:
            yield
        finally:
            with self._lock:
                del self._since[name]
                getattr(self._window, name).append((time.perf_counter() - began) * 1000)


def _expect_ok(response: http.client.HTTPResponse) -> None:
    body = response.read()
    assert response.status == 200, f"{response.status} {body[:200]!r}"


if __name__ == "__main__":
    Watch(int(sys.argv[1]), sys.argv[2] if len(sys.argv) > 2 else None).run()
