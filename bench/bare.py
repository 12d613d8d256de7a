"""The bare engine as the benchmark sees it: bench/engine.py in a process of its own."""

import contextlib
import os
import subprocess
import sys
from collections.abc import Iterator

import msgspec

from bench.figures import BenchError, Figures
from bench.load import Load
from bench.server import Flags, as_arguments
from model.protocol.messages import Ready


class BareRun(msgspec.Struct, frozen=True):
    """`step_ms`: the median decode step of the full batch, `step_bytes` what it must read.

    That is every weight once, and the keys and values of all positions; None where no step had
    the whole batch.
    """

    figures: Figures
    step_ms: float | None
    step_bytes: float | None


@contextlib.contextmanager
def bare_engine(flags: Flags) -> Iterator["BareEngine"]:
    """An engine with its model loaded. It takes no processor time between runs."""
    process = subprocess.Popen(
        [sys.executable, "-P", "-m", "bench.engine", "--pipe", *as_arguments(flags)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env={"OMP_WAIT_POLICY": "PASSIVE"} | os.environ,  # as app/processes/engine_client.py does
    )
    with process:
        try:
            yield BareEngine(process)
        finally:
            process.kill()


class BareEngine:
    """The near end of the pipe. Every method raises BenchError when the engine has ended."""

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        self._process = process
        self.ready: Ready = msgspec.json.decode(self._line(), type=Ready)

    def run(self, load: Load) -> BareRun:
        """The same requests in the same closed loop."""
        return msgspec.json.decode(self._ask(msgspec.json.encode(load)), type=BareRun)

    def bandwidth(self) -> dict[int, float]:
        """Bytes of a tensor -> bytes a second at which all cores read it."""
        return msgspec.json.decode(self._ask(b""), type=dict[int, float], strict=False)

    def _ask(self, line: bytes) -> bytes:
        assert self._process.stdin
        self._process.stdin.write(line + b"\n")
        self._process.stdin.flush()
        return self._line()

    def _line(self) -> bytes:
        assert self._process.stdout
        if line := self._process.stdout.readline():
            return line
        raise BenchError("the bare engine ended; its last words are above")
