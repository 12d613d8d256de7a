"""The process that prepares requests: `python -m model.tokenizer_process MODEL LANE...`.

A LANE is `FD:NICE:SECONDS`: a socket, and for the worker that serves it how far it steps back
behind other processes, and the processor time that a job may take. On each socket frames of
messages.py come in, a Job each; one Result goes out for each.

A job runs what strangers have written: templates of model files, schemas, texts. Python cannot
bound their cost, so the kernel does. A worker is a fork of this process with a limit on its memory.
In each job a timer of processor time runs, whose signal ends the worker. Then this process answers
Stopped, and forks another worker, which has the loaded tokenizer from the start.
"""

import contextlib
import ctypes
import gc
import mmap
import os
import resource
import signal
import socket
import struct
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from model.checkpoints.checkpoint import open_checkpoint
from model.protocol.messages import LENGTH, MAX_FRAME, Job, Result, Stopped, job_decoder, pack
from model.text import grammar
from model.text.preparation import Preparation

MAX_MEMORY: Final = 512 << 20  # bytes that a worker may have beyond what it begins with
_GREW: Final = 32 << 20  # bytes of resident memory after which a worker makes room for a fresh one

_RENEWED: Final = 77  # the exit code of a worker that has grown
_PR_SET_PDEATHSIG: Final = 1

# What a worker is about to do, in a byte that its parent can read after its death.
_IDLE, _RECEIVING, _WORKING, _SENDING = range(4)


@dataclass(slots=True)
class Lane:
    """A socket, and the worker that serves it."""

    peer: socket.socket
    nice: int
    seconds: float
    state: mmap.mmap = field(default_factory=lambda: mmap.mmap(-1, 1))

    @classmethod
    def parse(cls, argument: str) -> "Lane":
        fd, nice, seconds = argument.split(":")
        return cls(socket.socket(fileno=int(fd)), int(nice), float(seconds))


def supervise(preparation: Preparation, lanes: Sequence[Lane]) -> None:
    """Keep a worker for each lane until their peers have closed."""
    workers = {_fork(preparation, lane): lane for lane in lanes}
    while workers:
        pid, status = os.wait()
        lane = workers.pop(pid)
        code = os.waitstatus_to_exitcode(status)
        if code == 0:  # the peer has closed
            continue
        if lane.state[0] in (_RECEIVING, _SENDING):  # in the middle of a frame: nothing can follow
            sys.exit(1)
        if lane.state[0] == _WORKING:
            lane.peer.sendall(pack(Stopped("time" if code == -signal.SIGPROF else "crash")))
        workers[_fork(preparation, lane)] = lane


def _fork(preparation: Preparation, lane: Lane) -> int:
    """The process id of a new worker."""
    lane.state[0] = _IDLE
    if pid := os.fork():
        return pid
    code = 1
    try:
        _bound(lane)
        code = serve(preparation, lane)
    finally:
        os._exit(code)


def _bound(lane: Lane) -> None:
    """The limits of a worker; it does not outlive its parent."""
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    os.nice(lane.nice)
    limit = _virtual_memory() + MAX_MEMORY
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def serve(preparation: Preparation, lane: Lane) -> int:
    """One job after the other; returns the exit code."""
    begun_with = _resident_memory()
    while True:
        try:
            frame = _frame(lane)
        except ConnectionError:
            return 0
        with _timer(lane.seconds):
            result = _do(preparation, frame)
        answer = pack(result)
        lane.state[0] = _SENDING
        lane.peer.sendall(answer)
        lane.state[0] = _IDLE
        del frame, result, answer
        if _resident_memory() - begun_with > _GREW:
            return _RENEWED


def _do(preparation: Preparation, frame: bytes) -> Result:
    try:
        job: Job = job_decoder.decode(frame)
        return preparation.do(job)
    except MemoryError:
        return Stopped("memory")


def _frame(lane: Lane) -> bytes:
    """The next frame's body. Raises ConnectionError where there is none."""
    (length,) = struct.unpack(LENGTH.format, _exactly(lane, LENGTH.size))
    if length > MAX_FRAME:
        raise ConnectionError("no frame")
    body = _exactly(lane, length)
    lane.state[0] = _WORKING
    return body


def _exactly(lane: Lane, size: int) -> bytes:
    read = bytearray()
    while len(read) < size:
        data = lane.peer.recv(min(size - len(read), 1 << 20))
        if not data:
            raise ConnectionError("closed")
        lane.state[0] = _RECEIVING
        read += data
    return bytes(read)


@contextlib.contextmanager
def _timer(seconds: float) -> Iterator[None]:
    """SIGPROF, which ends the process, after so much processor time in the block."""
    signal.setitimer(signal.ITIMER_PROF, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)


def _virtual_memory() -> int:
    return _pages(0)


def _resident_memory() -> int:
    return _pages(1)


def _pages(index: int) -> int:
    """A field of /proc/self/statm, in bytes; 0 where there is none."""
    try:
        return int(Path("/proc/self/statm").read_text().split()[index]) * mmap.PAGESIZE
    except OSError:
        return 0


def main(model: Path, lanes: Sequence[Lane]) -> None:
    # The API process closes the sockets when it is done: signals to the whole group are its own.
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    checkpoint = open_checkpoint(model)
    preparation = Preparation(checkpoint.tokenizer(), checkpoint.chat_template)
    del checkpoint
    grammar.check(grammar.json_object())  # what the library prepares is prepared once
    gc.collect()
    gc.freeze()  # a collection in a worker would copy every page that it shares
    supervise(preparation, lanes)


if __name__ == "__main__":
    main(Path(sys.argv[1]), [Lane.parse(argument) for argument in sys.argv[2:]])
