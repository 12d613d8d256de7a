"""What a streamed token costs the API process: Linux, no model, no torch.

    python -m bench.api [--streams 1 64] [--pace 40] [--tokens 400]

The real server, started as ever, but its engine process computes nothing: it speaks the protocol
of model/protocol/messages.py and gives every sequence a token `pace` times a second. Plain sockets
read the streams. The figures are of the API process alone, while every stream runs; `us per token`
is that of the best half second, because whatever else runs on the machine only adds to it. `to
engine` is from the first byte of a POST until its command is in the engine process. The last line
is the same as JSON.
"""

import argparse
import json
import selectors
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, astuple, dataclass, field
from functools import partial
from itertools import pairwise
from pathlib import Path

import httpx
from rich.console import Console
from rich.table import Table

from model.protocol.messages import (
    Cancel,
    Configure,
    Finished,
    Gauges,
    Generate,
    Ready,
    Started,
    StepReport,
    Token,
    Unpacker,
    command_decoder,
    pack,
)

TEXT = " tick"  # of every token; nothing else on the wire holds it
PROMPT = "tape " * 64
WINDOW = 0.5  # seconds
PROBES = 60  # requests of one token each, one after another


# ---- the engine process


@dataclass(slots=True)
class FakeEngine:
    """Takes Generate and Cancel; a sequence that arrives gets its first token in the next step."""

    socket: socket.socket
    pace: float
    _unpacker: Unpacker = field(default_factory=Unpacker)
    _left: dict[str, int] = field(default_factory=dict)
    _started: list[Started] = field(default_factory=list)

    def run(self) -> None:
        """Until the API process hangs up."""
        due = time.monotonic()
        while self._take_in(due if self._left else None):
            if time.monotonic() >= due or self._started:
                self.socket.sendall(pack(self._step()))
                due = max(due + 1 / self.pace, time.monotonic())

    def _take_in(self, due: float | None) -> bool:
        """Wait for commands until `due`; False when there will be none any more."""
        wait = None if due is None else max(due - time.monotonic(), 1e-6)
        self.socket.settimeout(wait)
        try:
            data = self.socket.recv(1 << 16)
        except TimeoutError:
            return True
        finally:
            self.socket.settimeout(None)
        for body in self._unpacker.feed(data):
            self._obey(command_decoder.decode(body))
        return bool(data)

    def _obey(self, command: object) -> None:
        match command:
            case Configure():
                self.socket.sendall(pack(Ready("none", "none", 8192, 1, 0.0, "none")))
            case Generate():
                self._left[command.id] = command.params.max_tokens
                # Not the time in the queue but the clock itself, which both processes share:
                # it comes out at the client, who knows when the request began.
                self._started.append(Started(command.id, time.monotonic() * 1000, 0))
            case Cancel():
                self._left.pop(command.id, None)

    def _step(self) -> StepReport:
        tokens = [Token(id, 11, TEXT) for id in self._left]
        self._left = {id: left - 1 for id, left in self._left.items()}
        ended = [id for id, left in self._left.items() if not left]
        for id in ended:
            del self._left[id]
        started, self._started = self._started, []
        finished = [Finished(id, "length") for id in ended]
        return StepReport(Gauges(len(self._left)), started, tokens, finished)


# ---- the API process


def serve(port: int, pace: float) -> None:
    from app import start
    from app.processes.engine_client import EngineClient
    from app.settings import Settings

    EngineClient.command = [sys.executable, "-m", "bench.api", "--engine", "--pace", str(pace)]
    start.run(Settings(port=port, log_level="warning"))


@dataclass(frozen=True, slots=True)
class Server:
    """The API process as seen from outside."""

    port: int
    pid: int

    def cpu(self) -> float:
        """Seconds of processor time so far, of all its threads, to the nanosecond."""
        return time.clock_gettime(~self.pid << 3 | 2)  # Linux's clock id for another process

    def wakeups(self) -> int:
        """How often its main thread has slept."""
        status = Path(f"/proc/{self.pid}/status").read_text()
        return int(status.partition("\nvoluntary_ctxt_switches:")[2].split()[0])


@contextmanager
def running(pace: float) -> Iterator[Server]:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "bench.api", "--port", str(port), "--pace", str(pace)]
    process = subprocess.Popen(command)
    try:
        while not _ready(port):
            time.sleep(0.05)
        yield Server(port, process.pid)
    finally:
        process.terminate()
        process.wait()


def _ready(port: int) -> bool:
    try:
        return httpx.get(f"http://127.0.0.1:{port}/ready").status_code == 200
    except httpx.TransportError:
        return False


# ---- the readers


@dataclass(slots=True)
class BenchStream:
    """One POST /generate, read from a plain socket."""

    socket: socket.socket
    sent_at: float = 0.0
    tokens: int = 0
    frames: int = 0
    received: bytearray = field(default_factory=bytearray)

    def send(self, tokens: int) -> None:
        body = {"prompt": PROMPT, "max_length": tokens, "stream": True, "ignore_eos": True}
        data = json.dumps(body).encode()
        head = "POST /generate HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
        self.sent_at = time.monotonic()
        self.socket.sendall(f"{head}Content-Length: {len(data)}\r\n\r\n".encode() + data)

    def read(self) -> bool:
        """Take in what is there; False at the end of the stream."""
        self.received += self.socket.recv(1 << 16)
        whole = self.received.rfind(b"\n\n") + 2
        self.tokens += self.received.count(TEXT.encode(), 0, whole)
        self.frames += self.received.count(b"event: token", 0, whole)
        ended = b"event: done" in self.received[:whole]
        if not ended:
            del self.received[:whole]
        return not ended


def open_stream(port: int) -> BenchStream:
    return BenchStream(socket.create_connection(("127.0.0.1", port)))


@dataclass(frozen=True, slots=True)
class Row:
    streams: int
    tokens_per_second: float
    tokens_per_frame: float
    us_per_token: float
    us_per_token_mean: float
    wakeups_per_step: float
    ms_per_request: float


@dataclass(frozen=True, slots=True)
class Sample:
    """What has been used and read so far."""

    clock: float
    cpu: float
    wakeups: int
    tokens: int
    frames: int

    def since(self, earlier: "Sample") -> "Sample":
        pairs = zip(astuple(self), astuple(earlier), strict=True)
        return Sample(*(now - then for now, then in pairs))


def measure(server: Server, streams: int, tokens: int, pace: float) -> Row:
    """Read that many streams at once; count while all of them run, window by window."""
    selector = selectors.DefaultSelector()
    cpu_before = server.cpu()
    readers = [open_stream(server.port) for _ in range(streams)]
    for reader in readers:
        selector.register(reader.socket, selectors.EVENT_READ, reader)
        reader.send(tokens)
    _read_until(selector, lambda: all(reader.tokens > 4 for reader in readers))
    start_cpu = server.cpu() - cpu_before
    samples = [_sample(server, readers)]
    while samples[-1].tokens + WINDOW * pace * streams < tokens * streams:
        _read_until(selector, partial(_is_past, time.monotonic() + WINDOW))
        samples.append(_sample(server, readers))
    _read_until(selector, lambda: not selector.get_map())
    windows = [late.since(early) for early, late in pairwise(samples)]
    best = min(windows, key=lambda window: window.cpu / window.tokens)
    whole = samples[-1].since(samples[0])
    return Row(
        streams=streams,
        tokens_per_second=whole.tokens / whole.clock,
        tokens_per_frame=whole.tokens / whole.frames,
        us_per_token=best.cpu / best.tokens * 1e6,
        us_per_token_mean=whole.cpu / whole.tokens * 1e6,
        wakeups_per_step=whole.wakeups / (whole.clock * pace),
        ms_per_request=start_cpu / streams * 1000,
    )


def _is_past(moment: float) -> bool:
    return time.monotonic() >= moment


def _sample(server: Server, readers: list[BenchStream]) -> Sample:
    return Sample(
        time.monotonic(),
        server.cpu(),
        server.wakeups(),
        sum(reader.tokens for reader in readers),
        sum(reader.frames for reader in readers),
    )


def _read_until(selector: selectors.BaseSelector, done: Callable[[], bool]) -> None:
    while not done():
        for key, _ in selector.select():
            if not key.data.read():
                selector.unregister(key.fileobj)
                key.data.socket.close()


@dataclass(frozen=True, slots=True)
class Latency:
    """Milliseconds at the median of requests that follow each other."""

    to_engine_ms: float
    first_token_ms: float


def probe(server: Server) -> Latency:
    to_engine, first = [], []
    for _ in range(PROBES):
        stream = open_stream(server.port)
        stream.send(1)
        while not stream.tokens and stream.read():
            pass
        first.append((time.monotonic() - stream.sent_at) * 1000)
        while b"queue_ms" not in stream.received and stream.read():
            pass
        stream.socket.close()
        queue_ms = float(stream.received.partition(b'"queue_ms":')[2].partition(b",")[0])
        to_engine.append(queue_ms - stream.sent_at * 1000)
    return Latency(statistics.median(to_engine), statistics.median(first))


def show(rows: list[Row], latency: Latency) -> None:
    table = Table(title="Processor time of the API process")
    for heading in Row.__slots__:
        table.add_column(heading.replace("_", " "), justify="right")
    for row in rows:
        table.add_row(*(f"{value:.4g}" for value in asdict(row).values()))
    Console().print(table)
    Console().print(f"POST to engine {latency.to_engine_ms:.2f} ms (median of {PROBES})")
    print(json.dumps({"rows": [asdict(row) for row in rows]} | asdict(latency)))


def main() -> None:
    parser = argparse.ArgumentParser(description="What a token costs the API process.")
    parser.add_argument("--streams", type=int, nargs="+", default=[1, 64])
    parser.add_argument("--pace", type=float, default=40, help="tokens a second and stream")
    parser.add_argument("--tokens", type=int, default=400, help="tokens of each stream")
    parser.add_argument("--port", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--engine", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("fd", type=int, nargs="?", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.engine:
        FakeEngine(socket.socket(fileno=options.fd), options.pace).run()
    elif options.port:
        serve(options.port, options.pace)
    else:
        with running(options.pace) as server:
            latency = probe(server)
            rows = [measure(server, n, options.tokens, options.pace) for n in options.streams]
        show(rows, latency)


if __name__ == "__main__":
    main()
