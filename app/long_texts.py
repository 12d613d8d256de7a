"""Texts that take long to tokenize: by a process of its own, behind everybody's tokens."""

import asyncio
import contextlib
import sys
from asyncio.subprocess import PIPE, Process
from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar

from app.errors import try_later
from model.messages import LENGTH, LongText, id_array, pack


class LongTexts:
    """The process of one model's tokenizer: started by the first long text, ended by `stop`."""

    # -P: a folder named model where the user stands is not ours.
    command: ClassVar[Sequence[str]] = (sys.executable, "-P", "-m", "model.tokenizer_process")

    def __init__(self, model: Path) -> None:
        self._model = model
        self._process: Process | None = None
        self._turn = asyncio.Lock()

    async def encode(self, text: LongText) -> Sequence[int]:
        """Its token ids, when those of all texts before it are known.

        Raises APIError 503 when the process is lost: killed for memory, most likely.
        """
        async with self._turn:
            try:
                return await self._answer(text)
            except (OSError, asyncio.IncompleteReadError):
                raise try_later(
                    503,
                    "the process that tokenizes long texts was lost; try again, or send less",
                    code="tokenizer_lost",
                ) from None

    async def stop(self) -> None:
        """End the process, whatever it is doing."""
        if self._process:
            process, self._process = self._process, None
            with contextlib.suppress(ProcessLookupError):
                process.kill()
            await process.wait()

    async def _answer(self, text: LongText) -> Sequence[int]:
        answered = False
        try:
            process = self._process or await self._start()
            assert process.stdin
            assert process.stdout
            process.stdin.write(pack(text))
            await process.stdin.drain()
            (length,) = LENGTH.unpack(await process.stdout.readexactly(LENGTH.size))
            ids = id_array()
            ids.frombytes(await process.stdout.readexactly(length))
            answered = True
            return ids
        finally:
            if not answered:  # lost, or nobody waits any more: the next text gets a fresh one
                await self.stop()

    async def _start(self) -> Process:
        self._process = await asyncio.create_subprocess_exec(
            *self.command, str(self._model), stdin=PIPE, stdout=PIPE, close_fds=True
        )
        return self._process
