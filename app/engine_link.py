"""The API process's side of the process boundary: start and watch the engine, talk to it.

`generate` is the way to tokens: an async generator that yields what the engine reports of one
sequence, and cancels the sequence when it is closed early.
"""

import asyncio
import contextlib
import logging
import os
import socket
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Literal

from app.settings import EngineSettings
from model.messages import (
    Cancel,
    Command,
    Configure,
    Failed,
    Finished,
    Gauges,
    Generate,
    Pause,
    Ready,
    Report,
    Resume,
    Started,
    Step,
    Token,
    Unpacker,
    pack,
    report_decoder,
)

logger = logging.getLogger("tickertape.engine")

# OpenMP's threads wait for each other by spinning, and where anything else wants the processor each
# wait costs a time slice. Asleep they lose little on an idle machine: docs/decisions.md.
_WAIT_ASLEEP = {"OMP_WAIT_POLICY": "PASSIVE"}

_PAUSE_BEFORE_RESTART = 0.1  # seconds; an engine that dies at once must not fill the process table
_SECONDS_TO_GO = 2.0

Event = Started | Token | Finished
State = Literal["loading", "ready", "recovering", "draining"]


class EngineError(Exception):
    """The engine process ended while it was working on a request, or cannot take one."""


class EngineFailedError(EngineError):
    """The engine cannot serve at all; the message says why in one line."""


def configuration(settings: EngineSettings, path: Path) -> Configure:
    """What an engine process is told at its start."""
    return Configure(
        model_path=str(path),
        dtype=settings.dtype,
        max_num_seqs=settings.max_num_seqs,
        max_step_tokens=settings.max_step_tokens,
        max_model_len=settings.max_model_len,
        kv_cache_bytes=settings.kv_cache_memory,
    )


async def _end(process: asyncio.subprocess.Process) -> None:
    """It goes by itself when its socket closes; one that hangs is killed."""
    try:
        await asyncio.wait_for(process.wait(), _SECONDS_TO_GO)
    except TimeoutError:
        process.kill()
        await process.wait()


class EngineLink:
    """One engine process: started by `start`, started again when it dies, ended by `stop`."""

    def __init__(self, options: Configure) -> None:
        self._options = options
        self._inboxes: dict[str, asyncio.Queue[Event | EngineError]] = {}
        self._process: asyncio.subprocess.Process | None = None
        self._writer: asyncio.StreamWriter | None = None
        self._watcher: asyncio.Task[None] | None = None
        self._loaded = asyncio.Event()
        self._engine_state: Literal["loading", "ready", "recovering"] = "loading"
        self._draining = False
        self.info: Ready | None = None
        self.gauges = Gauges()
        self.failure: asyncio.Future[EngineFailedError] = asyncio.get_running_loop().create_future()

    @property
    def state(self) -> State:
        return "draining" if self._draining else self._engine_state

    @property
    def pid(self) -> int | None:
        return self._process.pid if self._process else None

    async def start(self) -> None:
        """Launch the engine; returns at once, `loaded` waits until it can work."""
        reader = await self._launch()
        self._watcher = asyncio.create_task(self._watch(reader))

    async def loaded(self) -> Ready:
        """Wait for the model. Raises EngineFailedError when it cannot be served."""
        loaded = asyncio.create_task(self._loaded.wait())
        await asyncio.wait((loaded, self.failure), return_when=asyncio.FIRST_COMPLETED)
        if self.failure.done():
            loaded.cancel()
            raise self.failure.result()
        assert self.info is not None
        return self.info

    async def stop(self) -> None:
        """End the engine process; whoever still waits for tokens gets EngineError."""
        if self._watcher:
            self._watcher.cancel()
            await asyncio.gather(self._watcher, return_exceptions=True)
        self._hang_up()
        if self._process:
            await _end(self._process)
        self._tell_all(EngineError("the engine was stopped"))

    def drain(self) -> None:
        """Take no more work; what runs goes on."""
        self._draining = True

    async def generate(self, request: Generate) -> AsyncIterator[Event]:
        """Yield Started, then each Token as it is made, then Finished.

        Closing the generator early cancels the sequence. Raises EngineError when the engine dies.
        """
        if not self._connected:
            raise EngineError("the engine is not there")
        inbox: asyncio.Queue[Event | EngineError] = asyncio.Queue()
        self._inboxes[request.id] = inbox
        finished = False
        try:
            self._send(request)
            while not finished:
                event = await inbox.get()
                if isinstance(event, EngineError):
                    finished = True
                    raise event
                finished = isinstance(event, Finished)
                yield event
        finally:
            del self._inboxes[request.id]
            if not finished:
                self._send(Cancel(request.id))

    def pause(self, request_id: str) -> None:
        self._send(Pause(request_id))

    def resume(self, request_id: str) -> None:
        self._send(Resume(request_id))

    @property
    def _connected(self) -> bool:
        return self._writer is not None and not self._writer.is_closing()

    def _send(self, command: Command) -> None:
        """To an engine that has gone nothing is sent: it has forgotten every request anyway."""
        if self._writer and self._connected:
            self._writer.write(pack(command))

    async def _launch(self) -> asyncio.StreamReader:
        ours, theirs = socket.socketpair()
        with theirs:
            self._process = await asyncio.create_subprocess_exec(
                sys.executable,
                "-P",  # a folder named model where the user stands is not ours
                "-m",
                "model.process",
                str(theirs.fileno()),
                pass_fds=[theirs.fileno()],
                env=_WAIT_ASLEEP | os.environ,
                stdin=asyncio.subprocess.DEVNULL,
            )
        reader, self._writer = await asyncio.open_connection(sock=ours)
        self._send(self._options)
        return reader

    async def _watch(self, reader: asyncio.StreamReader) -> None:
        """Take in reports for as long as an engine lives; start another when it dies at work."""
        try:
            while True:
                await self._receive(reader)
                code = await self._process.wait() if self._process else None
                self._tell_all(EngineError(f"the engine process ended (exit code {code})"))
                if self.info is None:
                    self._fail(f"the engine process ended while it loaded (exit code {code})")
                if self.failure.done():
                    return
                logger.error("the engine process ended (exit code %s); starting another", code)
                self._engine_state = "recovering"
                self._loaded.clear()
                await asyncio.sleep(_PAUSE_BEFORE_RESTART)
                reader = await self._launch()
        except Exception as error:
            logger.exception("watching the engine failed")
            self._tell_all(EngineError("the engine was lost"))
            self._fail(f"the engine was lost: {error}")

    async def _receive(self, reader: asyncio.StreamReader) -> None:
        """Act on every report until the engine's end of the socket closes."""
        unpacker = Unpacker()
        with contextlib.suppress(ConnectionError):
            while data := await reader.read(1 << 16):
                for body in unpacker.feed(data):
                    self._handle(report_decoder.decode(body))
        self._hang_up()

    def _handle(self, report: Report) -> None:
        match report:
            case Step():
                self.gauges = report.gauges
                self._deliver(report)
            case Ready():
                self.info = report
                self._engine_state = "ready"
                self._loaded.set()
            case Failed():
                self._fail(report.message)

    def _deliver(self, step: Step) -> None:
        """Each event to the generator that waits for it; those of cancelled sequences to nobody."""
        for events in (step.started, step.tokens, step.finished):
            for event in events:
                if inbox := self._inboxes.get(event.id):
                    inbox.put_nowait(event)

    def _tell_all(self, error: EngineError) -> None:
        self.gauges = Gauges()
        for inbox in self._inboxes.values():
            inbox.put_nowait(error)

    def _fail(self, message: str) -> None:
        if not self.failure.done():
            self.failure.set_result(EngineFailedError(message))

    def _hang_up(self) -> None:
        if self._writer:
            self._writer.close()
