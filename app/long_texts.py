"""Texts that take long to tokenize: by a process of its own, behind everybody's tokens."""

import asyncio
import contextlib
import socket
import sys
from asyncio.subprocess import DEVNULL, Process
from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar

from app.errors import try_later
from model.messages import LongText, Unpacker, id_array, pack


class LongTexts:
    """The process of one model's tokenizer: started by the first long text, ended by `stop`."""

    # -P: a folder named model where the user stands is not ours. Its socket's number comes last.
    command: ClassVar[Sequence[str]] = (sys.executable, "-P", "-m", "model.tokenizer_process")

    def __init__(self, model: Path) -> None:
        self._model = model
        self._worker: _Worker | None = None
        self._turn = asyncio.Lock()

    async def encode(self, text: LongText) -> Sequence[int]:
        """Its token ids, when those of all texts before it are known.

        Raises APIError 503 when the process is lost: killed for memory, most likely.
        """
        async with self._turn:
            try:
                return await self._answer(text)
            except (OSError, EOFError):
                raise try_later(
                    503,
                    "the process that tokenizes long texts was lost; try again, or send less",
                    code="tokenizer_lost",
                ) from None

    async def stop(self) -> None:
        """End the process, whatever it is doing."""
        if self._worker:
            worker, self._worker = self._worker, None
            await worker.end()

    async def _answer(self, text: LongText) -> Sequence[int]:
        answered = False
        worker = self._worker = self._worker or await self._start()
        try:
            ids = id_array()
            ids.frombytes(await worker.ask(pack(text)))
            answered = True
            return ids
        finally:
            if not answered:  # lost, or nobody waits any more: the next text gets a fresh one
                await self.stop()

    async def _start(self) -> "_Worker":
        ours, theirs = socket.socketpair()
        with theirs:
            process = await asyncio.create_subprocess_exec(
                *(*self.command, str(self._model), str(theirs.fileno())),
                pass_fds=[theirs.fileno()],
                stdin=DEVNULL,
            )
        loop = asyncio.get_running_loop()
        transport, answers = await loop.create_connection(_Answers, sock=ours)
        return _Worker(process, transport, answers)


class _Worker:
    """The process, and the socket to it."""

    def __init__(self, process: Process, transport: asyncio.Transport, answers: "_Answers") -> None:
        self.process = process
        self.transport = transport
        self._answers = answers

    async def ask(self, frame: bytes) -> bytes:
        """The body of the frame that answers this one. Raises EOFError when the process ends."""
        answer = self._answers.expect()
        self.transport.write(frame)
        return await answer

    async def end(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            self.process.kill()
        self.transport.abort()
        await self.process.wait()


class _Answers(asyncio.Protocol):
    """One frame for each that was sent."""

    def __init__(self) -> None:
        self._unpacker = Unpacker()
        self._answer: asyncio.Future[bytes] | None = None
        self._lost = False

    def expect(self) -> asyncio.Future[bytes]:
        self._answer = asyncio.get_running_loop().create_future()
        if self._lost:
            self._answer.set_exception(EOFError())
        return self._answer

    def data_received(self, data: bytes) -> None:
        for body in self._unpacker.feed(data):
            if self._answer and not self._answer.done():
                self._answer.set_result(body)

    def connection_lost(self, exc: Exception | None) -> None:
        self._lost = True
        if self._answer and not self._answer.done():
            self._answer.set_exception(EOFError())
