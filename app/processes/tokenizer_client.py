"""Has requests made ready for the engine, by the process of model/tokenizer_process.py.

That process has a worker for each lane: one is for short jobs, one for grammars, one for texts and
one for long texts. All but the first step back behind the engine. In each lane clients take turns,
and a job is dropped when its client has left.
"""

import asyncio
import contextlib
import hashlib
import logging
import os
import signal
import socket
import sys
from asyncio.subprocess import DEVNULL, Process
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar, Final, TypeVar

from app.errors import APIError, out_of_range, try_later
from app.guard.fair_share import FairQueue
from model.protocol.messages import (
    Decode,
    Decoded,
    Encode,
    Encoded,
    ForcedCalls,
    Grammar,
    Job,
    JSONSchema,
    MakeGrammar,
    Refused,
    Result,
    Stopped,
    Tokenize,
    Tokenized,
    Unpacker,
    pack,
    result_decoder,
)
from model.text.grammar import MAX_GRAMMAR_BYTES

R = TypeVar("R", bound=Result)

logger = logging.getLogger("tickertape.preparation")

_CAPACITY: Final = 256  # jobs that may wait in a lane
# Bytes of a job. A short one takes a few milliseconds, one of the greatest body two seconds: it
# must not be what others' jobs wait for.
_SHORT: Final = 64 << 10
_LONG_FROM: Final = 512 << 10
_MAX_SCHEMA: Final = 2 * MAX_GRAMMAR_BYTES  # bytes; the grammar of a larger one would be too large
_KEPT_GRAMMARS: Final = 64
_PATIENCE: Final = 120.0  # seconds of wall clock for one job, also on a busy machine


@dataclass(frozen=True, slots=True)
class _Kind:
    """How the worker of a lane steps back behind other processes, and its processor seconds."""

    name: str
    nice: int
    seconds: float


_QUICK: Final = _Kind("quick", 0, 1.0)
_GRAMMARS: Final = _Kind("grammars", 5, 2.0)
_TEXTS: Final = _Kind("texts", 5, 5.0)
_LONG: Final = _Kind("long", 10, 10.0)
_KINDS: Final = (_QUICK, _GRAMMARS, _TEXTS, _LONG)


def _lane_for(size: int) -> _Kind:
    """Of a job of so many bytes."""
    if size <= _SHORT:
        return _QUICK
    return _TEXTS if size <= _LONG_FROM else _LONG


@dataclass(slots=True, eq=False)
class _Waiting:
    """A job's frame, and where its result goes."""

    frame: bytes
    result: asyncio.Future[Result] = field(
        default_factory=lambda: asyncio.get_running_loop().create_future()
    )


class TokenizerClient:
    """Has the jobs of all clients done. Every method raises APIError.

    422: the job cannot be done, or takes too much; 429: too many wait; 503: the process was lost.
    """

    # -P: a folder named model where the user stands is not ours. The lanes come last.
    command: ClassVar[Sequence[str]] = (sys.executable, "-P", "-m", "model.tokenizer_process")

    def __init__(self, model: Path) -> None:
        self._model = model
        self._queues = {kind: FairQueue[_Waiting](_CAPACITY) for kind in _KINDS}
        self._grammars: OrderedDict[bytes, str] = OrderedDict()  # checked ones, by their schema
        self._process: _Process | None = None
        self._starting = asyncio.Lock()
        self._tasks: list[asyncio.Task[None]] = []

    async def start(self) -> None:
        """Load the tokenizer, so that the first request need not wait for it."""
        self._tasks = [asyncio.create_task(self._work(kind)) for kind in _KINDS]
        with contextlib.suppress(OSError):  # the first job tries again
            await self._running()

    async def stop(self) -> None:
        """End the process, whatever it is doing."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._lose(self._process)

    # ---- jobs

    async def encode(self, job: Encode, client: str, name: str = "prompt") -> Encoded:
        """`name`: of the field that the prompts come from."""
        return await self._done(job, Encoded, client, name)

    async def tokenize(self, job: Tokenize, client: str, name: str = "prompt") -> Tokenized:
        return await self._done(job, Tokenized, client, name)

    async def decode(self, job: Decode, client: str, name: str = "prompt") -> Decoded:
        return await self._done(job, Decoded, client, name)

    async def grammar(
        self, wanted: JSONSchema | ForcedCalls, client: str, name: str = "response_format"
    ) -> str:
        """The grammar, checked. One that was made a short while ago is not made again."""
        frame = pack(MakeGrammar(wanted))
        if len(frame) > _MAX_SCHEMA:
            raise out_of_range(name, f"has more than {_MAX_SCHEMA} bytes; send a shorter schema")
        key = hashlib.sha256(frame).digest()
        if (made := self._grammars.get(key)) is None:
            made = (await self._done_by(_GRAMMARS, frame, Grammar, client, name)).text
            if len(self._grammars) >= _KEPT_GRAMMARS:
                self._grammars.popitem(last=False)
        self._grammars[key] = made
        self._grammars.move_to_end(key)
        return made

    async def _done(self, job: Job, kind: type[R], client: str, name: str) -> R:
        frame = pack(job)
        return await self._done_by(_lane_for(len(frame)), frame, kind, client, name)

    async def _done_by(self, lane: _Kind, frame: bytes, kind: type[R], client: str, name: str) -> R:
        job = _Waiting(frame)
        queue = self._queues[lane]
        if not queue.put(client, job):
            raise _too_many()
        try:
            result = await job.result
        finally:
            queue.discard(client, job)
        if not isinstance(result, kind):
            raise _why_not(result, name)
        return result

    # ---- the process

    async def _work(self, kind: _Kind) -> None:
        """One job of this lane after the other."""
        queue = self._queues[kind]
        while True:
            job = await queue.get()
            try:
                process = await self._running()
                result = await process.lanes[kind].ask(job.frame)
            except (OSError, EOFError) as error:  # TimeoutError is one
                logger.error("the process that prepares requests was lost (%r)", error)
                await self._lose(self._process)
                if not job.result.done():
                    job.result.set_exception(_lost())
            else:
                if not job.result.done():  # its client is still there
                    job.result.set_result(result)

    async def _running(self) -> "_Process":
        """Raises OSError where it cannot be started now."""
        async with self._starting:
            if self._process is None:
                self._process = await _Process.start(self.command, self._model)
            return self._process

    async def _lose(self, process: "_Process | None") -> None:
        """The next job gets a fresh one."""
        if process and process is self._process:
            self._process = None
            await process.end()


class _Process:
    """The process, and a socket for each lane."""

    def __init__(self, process: Process, lanes: dict[_Kind, "_Lane"]) -> None:
        self._process = process
        self.lanes = lanes

    @classmethod
    async def start(cls, command: Sequence[str], model: Path) -> "_Process":
        with contextlib.ExitStack() as opened:
            ours: dict[_Kind, socket.socket] = {}
            theirs: dict[_Kind, socket.socket] = {}
            for kind in _KINDS:
                ours[kind], theirs[kind] = map(opened.enter_context, socket.socketpair())
            process = await asyncio.create_subprocess_exec(
                *command,
                str(model),
                *(f"{theirs[kind].fileno()}:{kind.nice}:{kind.seconds}" for kind in _KINDS),
                pass_fds=[peer.fileno() for peer in theirs.values()],
                stdin=DEVNULL,
                start_new_session=True,  # to be ended with its workers
            )
            loop = asyncio.get_running_loop()
            lanes = {}
            for kind in _KINDS:
                transport, lane = await loop.create_connection(_Lane, sock=ours[kind].dup())
                lane.transport = transport
                lanes[kind] = lane
        return cls(process, lanes)

    async def end(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        for lane in self.lanes.values():
            lane.close()
        await self._process.wait()


class _Lane(asyncio.Protocol):
    """One result for each job that was sent."""

    def __init__(self) -> None:
        self._unpacker = Unpacker()
        self.transport: asyncio.Transport | None = None
        self._result: asyncio.Future[Result] | None = None

    async def ask(self, frame: bytes) -> Result:
        """Raises EOFError when the process ends, TimeoutError when it does nothing for too long."""
        if self.transport is None or self.transport.is_closing():
            raise EOFError("its socket has closed")
        self._result = asyncio.get_running_loop().create_future()
        self.transport.write(frame)
        async with asyncio.timeout(_PATIENCE):
            return await self._result

    def close(self) -> None:
        if self.transport:
            self.transport.abort()

    def data_received(self, data: bytes) -> None:
        for body in self._unpacker.feed(data):
            if self._result and not self._result.done():
                self._result.set_result(result_decoder.decode(body))

    def connection_lost(self, exc: Exception | None) -> None:
        self.transport = None
        if self._result and not self._result.done():
            self._result.set_exception(EOFError("its socket has closed"))


def _why_not(result: Result, name: str) -> APIError:
    match result:
        case Refused(message):
            return out_of_range(name, message)
        case Stopped("crash"):
            return _lost()
        case Stopped(reason):
            what = "processor time" if reason == "time" else "memory"
            return out_of_range(name, f"takes too much {what} to prepare; send less or simpler")
        case _:
            raise TypeError(f"{type(result).__name__} answers another job")


def _too_many() -> APIError:
    return try_later(
        429,
        f"too many requests of yours wait to be prepared (at most {_CAPACITY} of all clients may); "
        "try again when one is answered",
        code="preparation_full",
    )


def _lost() -> APIError:
    return try_later(
        503,
        "the process that prepares requests was lost; try again, or send less",
        code="preparation_lost",
    )
