"""The API process's side of the process boundary: start and watch the engine, talk to it.

`submit` is the way to tokens: what the engine reports of a sequence is handed on as it arrives,
with no task and no queue between. `generate` is the same as an async generator.
"""

import asyncio
import errno
import logging
import math
import os
import signal
import sys
from collections.abc import AsyncIterator, Callable, Sequence
from functools import partial
from pathlib import Path
from typing import ClassVar, Literal, Protocol

import msgspec

from app.processes.child_process import ChildProcess
from app.processes.engine_watchdog import EngineWatchdog
from app.settings import EngineSettings
from model.protocol.messages import (
    Cancel,
    Command,
    Configure,
    Failed,
    Finished,
    FrameError,
    Gauges,
    Generate,
    Pause,
    Prefilling,
    Queued,
    Ready,
    Report,
    Started,
    StepReport,
    Token,
    Totals,
    Unpacker,
    Unpause,
    pack,
    report_decoder,
)

logger = logging.getLogger("tickertape.engine")

# OpenMP's threads wait for each other by spinning, and where anything else wants the processor each
# wait costs a time slice. Asleep they lose little on an idle machine: docs/decisions.md.
_WAIT_ASLEEP = {"OMP_WAIT_POLICY": "PASSIVE"}

# Seconds before another engine is started: more each time that one dies before it is ready.
_FIRST_PAUSE, _LONGEST_PAUSE = 0.1, 5.0

# Why a first engine cannot be started, and none after it either: no such file, or no right to it.
_LASTING = {errno.ENOENT, errno.ENOTDIR, errno.EACCES, errno.EPERM, errno.ENOEXEC, errno.E2BIG}

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


_SINK_FAILED = "an error of ours; the server's log says more"

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


def _killed_for_memory() -> float:
    """How many processes of this machine the kernel has killed for want of memory.

    NaN where it does not tell: then no count is larger than an earlier one.
    """
    try:
        lines = Path("/proc/vmstat").read_text().splitlines()
    except OSError:
        return math.nan
    return next((int(line.split()[1]) for line in lines if line.startswith("oom_kill ")), math.nan)


class _Reports(asyncio.Protocol):
    """What the engine sends. `closed` is done when nothing more can come, however that came about;
    `fault` says what was wrong with a frame that is no report.

    Not a StreamReader: with it, and a task that waits for it, a wake-up costs more than twice as
    much.
    """

    def __init__(self, handle: Callable[[Report], None]) -> None:
        self._handle = handle
        self._unpacker = Unpacker()
        self.fault: str | None = None
        self.closed = asyncio.Event()

    def data_received(self, data: bytes) -> None:
        if self.fault:
            return
        try:
            for body in self._unpacker.feed(data):
                self._handle(report_decoder.decode(body))
        except (FrameError, msgspec.MsgspecError) as error:
            self.fault = str(error)
            self.closed.set()

    def connection_lost(self, exc: Exception | None) -> None:
        self.closed.set()


_Running = tuple[ChildProcess, _Reports]


class EngineClient:
    """One engine process: started by `start`, started again when it dies, ended by `stop`."""

    # -P: a folder named model where the user stands is not ours. Its socket's number comes last.
    command: ClassVar[Sequence[str]] = (sys.executable, "-P", "-m", "model.process")

    def __init__(self, options: Configure, patience: float = math.inf) -> None:
        """An engine that owes a report for `patience` seconds, or stops loading, is killed."""
        self._options = options
        self._patience = patience
        self._watchdog = EngineWatchdog(patience)
        self._owes = False  # a report; every command is answered by one
        self._num_reports = 0
        self._hangs = False
        self._sinks: dict[str, Sink] = {}
        self._engine: ChildProcess | None = None
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
        return self._engine.pid if self._engine else None

    def kill(self) -> None:
        """End the engine process as a crash would; another one goes on with its work."""
        if self._engine:
            self._engine.kill()

    async def start(self) -> None:
        """Launch the engine; returns at once, `loaded` waits until it can work."""
        running = await self._launch()
        self._tasks = [asyncio.create_task(self._keep_running(running))]
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
        if self._engine:
            await self._engine.end()
        self._tell_all(EngineError("the engine was stopped"))

    def drain(self) -> None:
        """Take no more work; what runs goes on."""
        self._draining = True

    def submit(self, request: Generate, sink: Sink) -> None:
        """Begin a sequence. `sink` gets Started, each Token as it is made, then Finished.

        Where the sequence has to wait, Queued and Prefilling come between.
        Or EngineError, when the engine dies or is not there; nothing comes after it. The sink must
        not wait: it would hold up the tokens of everybody. If it raises, its sequence is cancelled,
        and the last that it gets is Finished with an error.
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

    def unpause(self, request_id: str) -> None:
        self._send(Unpause(request_id))

    @property
    def _connected(self) -> bool:
        return self._engine is not None and self._engine.connected

    def _send(self, command: Command) -> None:
        """To an engine that has gone nothing is sent: it has forgotten every request anyway."""
        if self._engine and self._engine.connected:
            self._engine.write(pack(command))
            self._owes = True

    async def _keep_running(self, running: _Running | None) -> None:
        """Launch another engine whenever one ends or could not be launched."""
        pause = _FIRST_PAUSE
        try:
            while not self.failure.done():
                if running and await self._outlive(*running):
                    pause = _FIRST_PAUSE
                if self.failure.done():
                    return
                await asyncio.sleep(pause)
                pause = min(2 * pause, _LONGEST_PAUSE)
                running = await self._launch()
                self.restarts += running is not None
        except Exception as error:
            logger.exception("watching the engine failed")
            self._tell_all(EngineError("the engine was lost"))
            self._fail(f"the engine was lost: {error}")

    async def _launch(self) -> _Running | None:
        """Start an engine process; None when the machine lacks what it takes, which may pass."""
        reports = _Reports(self._handle)
        try:
            engine = await ChildProcess.start(
                self.command, lambda: reports, _WAIT_ASLEEP | os.environ
            )
        except (OSError, MemoryError) as error:
            if self.info is None and getattr(error, "errno", None) in _LASTING:
                self._fail(f"the engine process cannot be started: {error}")
            else:
                logger.error("the engine process cannot be started: %s; trying again", error)
            return None
        self._engine, self._hangs = engine, False
        self._watchdog.launched()
        self._send(self._options)
        return engine, reports

    async def _outlive(self, engine: ChildProcess, reports: _Reports) -> bool:
        """Wait for its end, and tell all who need to know. Returns whether it was ever ready."""
        killed_for_memory = _killed_for_memory()
        await reports.closed.wait()
        was_ready = self._loaded.is_set()
        self._loaded.clear()
        if self.info:
            self._engine_state = "recovering"
        code = await engine.end()
        why = reports.fault and f"it sent what is no report: {reports.fault}"
        why = why or f"exit code {code}"
        self._tell_all(EngineError(f"the engine process ended ({why})"))
        if self.info is None and not self._hangs:
            self._fail(f"the engine process ended while it loaded ({why})")
        if not self.failure.done():
            logger.error("the engine process ended (%s); starting another", why)
            starved = _killed_for_memory() > killed_for_memory
            crashed = self._hangs or starved or code not in _SENT_FROM_OUTSIDE
            if self.watcher:
                self._tell(partial(self.watcher.engine_died, crashed=crashed))
        return was_ready

    async def _watch_for_hanging(self) -> None:
        """Kill an engine that gives no sign of life; what it was working on is to blame."""
        while True:
            await asyncio.sleep(self._watchdog.interval)
            engine = self._engine
            if engine and engine.connected and (why := self._hanging(engine.pid)):
                logger.error("the engine %s; killing it", why)
                self._hangs = True
                engine.kill()

    def _hanging(self, pid: int) -> str | None:
        if self._loaded.is_set():
            return self._watchdog.look_at_work(pid, self._num_reports, owes=self._owes)
        return self._watchdog.look_at_load(pid)

    def _handle(self, report: Report) -> None:
        self._num_reports += 1
        match report:
            case StepReport():
                self.gauges = report.gauges
                self._totals = report.totals
                self._owes = bool(report.gauges.running or report.gauges.waiting)
                if self.on_iteration and report.num_tokens:
                    self._tell(self.on_iteration, report.num_tokens)
                self._deliver(report)
            case Ready():
                self.info = report
                if report.note:
                    logger.info("%s", report.note)
                self._engine_state = "ready"
                self._owes = False
                if not self._loaded.is_set():
                    self._loaded.set()
                    if self.watcher:
                        self._tell(self.watcher.engine_ready)
            case Failed():
                self._fail(report.message)

    def _deliver(self, step: StepReport) -> None:
        """Each event to the sink of its sequence; those of cancelled sequences to nobody."""
        for events in (step.started, step.progress, step.tokens):
            for event in events:
                sink = self._sinks.get(event.id)
                if sink and not self._tell(sink, event):
                    self.cancel(event.id)
                    self._tell(sink, Finished(event.id, "error", _SINK_FAILED))
        for finished in step.finished:
            if sink := self._sinks.pop(finished.id, None):
                self._tell(sink, finished)

    def _tell_all(self, error: EngineError) -> None:
        self.gauges = Gauges()
        self._earlier_totals, self._totals = self.totals, Totals()
        sinks, self._sinks = self._sinks, {}
        for sink in sinks.values():
            self._tell(sink, error)

    def _tell(self, listener: Callable[..., None], *news: object) -> bool:
        """Whether the listener took it. What it raises is logged here and stops nobody else."""
        try:
            listener(*news)
        except Exception:
            logger.exception("what the engine reports could not be taken in")
            return False
        return True

    def _fail(self, message: str) -> None:
        if not self.failure.done():
            self.failure.set_result(EngineFailedError(message))
