"""The API process's side of the process boundary: start and watch the engine, talk to it.

`submit` is the way to tokens: what the engine reports of a sequence is handed on as it arrives,
with no task and no queue between. `generate` is the same as an async generator.
"""

import asyncio
import contextlib
import logging
import math
import os
import signal
import socket
import sys
import time
from collections.abc import AsyncIterator, Callable, Sequence
from pathlib import Path
from typing import ClassVar, Literal, Protocol

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
    Prefilling,
    Queued,
    Ready,
    Report,
    Resume,
    Started,
    Step,
    Token,
    Totals,
    Unpacker,
    pack,
    report_decoder,
)

logger = logging.getLogger("tickertape.engine")

# OpenMP's threads wait for each other by spinning, and where anything else wants the processor each
# wait costs a time slice. Asleep they lose little on an idle machine: docs/decisions.md.
_WAIT_ASLEEP = {"OMP_WAIT_POLICY": "PASSIVE"}

# Seconds before another engine is started: more each time that one dies before it is ready.
_FIRST_PAUSE, _LONGEST_PAUSE = 0.1, 5.0
_SECONDS_TO_GO = 2.0

_SENT_FROM_OUTSIDE = {-signal.SIGKILL, -signal.SIGTERM, -signal.SIGINT, -signal.SIGHUP}

State = Literal["loading", "ready", "recovering", "draining"]


class EngineError(Exception):
    """The engine process ended while it was working on a request, or cannot take one."""


class EngineFailedError(EngineError):
    """The engine cannot serve at all; the message says why in one line."""


class EngineWatcher(Protocol):
    """Who wants to know how the engine is."""

    def engine_died(self, *, crashed: bool) -> None:
        """All its sequences are lost, and their sinks were told.

        `crashed` is False when somebody killed it: then none of them is to blame.
        """

    def engine_ready(self) -> None:
        """Another one takes work."""


Event = Started | Queued | Prefilling | Token | Finished
Sink = Callable[[Event | EngineError], None]


def configuration(settings: EngineSettings, path: Path) -> Configure:
    """What an engine process is told at its start."""
    return Configure(
        model_path=str(path),
        dtype=settings.dtype,
        max_num_seqs=settings.max_num_seqs,
        max_step_tokens=settings.max_step_tokens,
        max_model_len=settings.max_model_len,
        kv_cache_bytes=settings.kv_cache_memory,
        threads=settings.threads,
        prefix_cache=settings.prefix_cache,
    )


async def _end(process: asyncio.subprocess.Process) -> int:
    """Its exit code. It goes by itself when its socket closes; one that hangs is killed."""
    try:
        return await asyncio.wait_for(process.wait(), _SECONDS_TO_GO)
    except TimeoutError:
        process.kill()
        return await process.wait()


def _killed_for_memory() -> int:
    """How many processes of this machine the kernel has killed for want of memory."""
    try:
        lines = Path("/proc/vmstat").read_text().splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) for line in lines if line.startswith("oom_kill ")), 0)


class _Reports(asyncio.Protocol):
    """What the engine sends. `closed` is done when nothing more can come, however that came about.

    Not a StreamReader: with it, and a task that waits for it, a wake-up costs more than twice as
    much.
    """

    def __init__(self, handle: Callable[[Report], None]) -> None:
        self._handle = handle
        self._unpacker = Unpacker()
        self.closed: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def data_received(self, data: bytes) -> None:
        try:
            for body in self._unpacker.feed(data):
                self._handle(report_decoder.decode(body))
        except Exception as error:
            self._close(error)

    def connection_lost(self, exc: Exception | None) -> None:
        self._close(None)

    def _close(self, error: Exception | None) -> None:
        if self.closed.done():
            return
        if error:
            self.closed.set_exception(error)
        else:
            self.closed.set_result(None)


class EngineLink:
    """One engine process: started by `start`, started again when it dies, ended by `stop`."""

    # -P: a folder named model where the user stands is not ours. Its socket's number comes last.
    command: ClassVar[Sequence[str]] = (sys.executable, "-P", "-m", "model.process")

    def __init__(self, options: Configure, patience: float = math.inf) -> None:
        """An engine that owes a report for `patience` seconds hangs, and is killed."""
        self._options = options
        self._patience = patience
        self._owes_since: float | None = None  # a report; every command is answered by one
        self._hangs = False
        self._sinks: dict[str, Sink] = {}
        self._process: asyncio.subprocess.Process | None = None
        self._transport: asyncio.Transport | None = None
        self._tasks: list[asyncio.Task[None]] = []
        self._loaded = asyncio.Event()
        self._engine_state: Literal["loading", "ready", "recovering"] = "loading"
        self._draining = False
        self.info: Ready | None = None
        self.gauges = Gauges()
        self.restarts = 0
        self._totals = Totals()  # of the engine that is there
        self._earlier_totals = Totals()  # of those that have died
        self.watcher: EngineWatcher | None = None
        self.on_iteration: Callable[[int], None] | None = None  # with the tokens of each step
        self.failure: asyncio.Future[EngineFailedError] = asyncio.get_running_loop().create_future()

    @property
    def state(self) -> State:
        return "draining" if self._draining else self._engine_state

    @property
    def is_up(self) -> bool:
        """Whether there is an engine that takes a sequence."""
        return self._engine_state == "ready" and self._connected

    @property
    def totals(self) -> Totals:
        """Of all engines that there were: they never fall."""
        return self._earlier_totals + self._totals

    @property
    def pid(self) -> int | None:
        return self._process.pid if self._process else None

    async def start(self) -> None:
        """Launch the engine; returns at once, `loaded` waits until it can work."""
        reports = await self._launch()
        self._tasks = [asyncio.create_task(self._watch(reports))]
        if self._patience < math.inf:
            self._tasks.append(asyncio.create_task(self._watch_for_hanging()))

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
        """End the engine process; every sequence that still runs gets EngineError."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._hang_up()
        if self._process:
            await _end(self._process)
        self._tell_all(EngineError("the engine was stopped"))

    def drain(self) -> None:
        """Take no more work; what runs goes on."""
        self._draining = True

    def submit(self, request: Generate, sink: Sink) -> None:
        """Begin a sequence. `sink` gets Started, each Token as it is made, then Finished.

        Where the sequence has to wait, Queued and Prefilling come between.
        Or EngineError, when the engine dies or is not there; nothing comes after it. The sink must
        neither wait nor raise: it would hold up or end the tokens of everybody.
        """
        if not self._connected:
            sink(EngineError("the engine is not there"))
            return
        self._sinks[request.id] = sink
        self._send(request)

    def cancel(self, request_id: str) -> None:
        """End a sequence; its sink gets nothing more. One that has ended stays so."""
        if self._sinks.pop(request_id, None):
            self._send(Cancel(request_id))

    async def generate(self, request: Generate) -> AsyncIterator[Event]:
        """Yield Started, then each Token as it is made, then Finished.

        Closing the generator early cancels the sequence. Raises EngineError when the engine dies.
        """
        inbox: asyncio.Queue[Event | EngineError] = asyncio.Queue()
        self.submit(request, inbox.put_nowait)
        try:
            while True:
                event = await inbox.get()
                if isinstance(event, EngineError):
                    raise event
                yield event
                if isinstance(event, Finished):
                    return
        finally:
            self.cancel(request.id)

    def pause(self, request_id: str) -> None:
        self._send(Pause(request_id))

    def resume(self, request_id: str) -> None:
        self._send(Resume(request_id))

    @property
    def _connected(self) -> bool:
        return self._transport is not None and not self._transport.is_closing()

    def _send(self, command: Command) -> None:
        """To an engine that has gone nothing is sent: it has forgotten every request anyway."""
        if self._transport and self._connected:
            self._transport.write(pack(command))
            if self._owes_since is None:
                self._owes_since = time.monotonic()

    async def _launch(self) -> _Reports:
        self._hangs = False
        ours, theirs = socket.socketpair()
        with theirs:
            self._process = await asyncio.create_subprocess_exec(
                *self.command,
                str(theirs.fileno()),
                pass_fds=[theirs.fileno()],
                env=_WAIT_ASLEEP | os.environ,
                stdin=asyncio.subprocess.DEVNULL,
            )
        loop = asyncio.get_running_loop()
        self._transport, reports = await loop.create_connection(
            lambda: _Reports(self._handle), sock=ours
        )
        self._send(self._options)
        return reports

    async def _watch(self, reports: _Reports) -> None:
        """Start another engine whenever one dies at work."""
        pause = _FIRST_PAUSE
        try:
            while True:
                killed_for_memory = _killed_for_memory()
                await reports.closed
                pause = _FIRST_PAUSE if self._loaded.is_set() else min(2 * pause, _LONGEST_PAUSE)
                code = await self._bury()
                if self.failure.done():
                    return
                logger.error("the engine process ended (exit code %s); starting another", code)
                starved = _killed_for_memory() > killed_for_memory
                if self.watcher:
                    crashed = self._hangs or starved or code not in _SENT_FROM_OUTSIDE
                    self.watcher.engine_died(crashed=crashed)
                await asyncio.sleep(pause)
                reports = await self._launch()
                self.restarts += 1
        except Exception as error:
            logger.exception("watching the engine failed")
            self._tell_all(EngineError("the engine was lost"))
            self._fail(f"the engine was lost: {error}")

    async def _bury(self) -> int:
        """From now on there is no engine, until another is ready. Returns the exit code."""
        assert self._process
        self._hang_up()
        self._loaded.clear()
        if self.info:
            self._engine_state = "recovering"
        code = await _end(self._process)
        self._tell_all(EngineError(f"the engine process ended (exit code {code})"))
        if self.info is None:
            self._fail(f"the engine process ended while it loaded (exit code {code})")
        return code

    async def _watch_for_hanging(self) -> None:
        """Kill an engine that gives no sign of life; what it was working on is to blame."""
        while True:
            await asyncio.sleep(self._patience / 10)
            owes = self._owes_since
            overdue = owes is not None and time.monotonic() - owes > self._patience
            if overdue and self._engine_state == "ready" and self._process:
                logger.error("the engine has not answered for %g s; killing it", self._patience)
                self._hangs = True
                self._owes_since = None
                with contextlib.suppress(ProcessLookupError):  # it has ended just now
                    self._process.kill()

    def _handle(self, report: Report) -> None:
        match report:
            case Step():
                self.gauges = report.gauges
                self._totals = report.totals
                if self.on_iteration and report.num_tokens:
                    self.on_iteration(report.num_tokens)
                has_work = report.gauges.running or report.gauges.waiting
                self._owes_since = time.monotonic() if has_work else None
                self._deliver(report)
            case Ready():
                self.info = report
                if report.note:
                    logger.info("%s", report.note)
                self._engine_state = "ready"
                self._owes_since = None
                if not self._loaded.is_set():
                    self._loaded.set()
                    if self.watcher:
                        self.watcher.engine_ready()
            case Failed():
                self._fail(report.message)

    def _deliver(self, step: Step) -> None:
        """Each event to the sink of its sequence; those of cancelled sequences to nobody."""
        for events in (step.started, step.progress, step.tokens, step.finished):
            for event in events:
                if sink := self._sinks.get(event.id):
                    sink(event)
        for finished in step.finished:
            self._sinks.pop(finished.id, None)

    def _tell_all(self, error: EngineError) -> None:
        self.gauges = Gauges()
        self._earlier_totals, self._totals = self.totals, Totals()
        sinks, self._sinks = self._sinks, {}
        for sink in sinks.values():
            sink(error)

    def _fail(self, message: str) -> None:
        if not self.failure.done():
            self.failure.set_result(EngineFailedError(message))

    def _hang_up(self) -> None:
        if self._transport:
            self._transport.close()
