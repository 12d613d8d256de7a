"""The engine as tapes see it: one that does not die.

When the process behind the link ends, every sequence is handed to the next one as its prompt and
the tokens that its tape has already. Random numbers come from (seed, position), so it goes on as
if nothing had been.
"""

import logging
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import msgspec

from app.processes.engine_client import EngineClient, EngineError, Event
from app.tapes.tape import Choice, Recovering, Tape
from model.protocol.messages import Finished, Generate, Token

logger = logging.getLogger("tickertape.recovery")

GIVEN_UP = "the engine died twice while it computed this request; do not send it again"
_OURS = "an error of ours; the server's log says more"

Record = Callable[[Event], None]


@dataclass(slots=True, eq=False)
class _Job:
    """A sequence, the tape that it is written to, and how often an engine died at work on it."""

    request: Generate
    tape: Tape
    choice: Choice
    record: Record
    engaged: bool = False  # the engine has it
    paused: bool = False  # nobody reads it
    held: bool = False  # the engine has paused it after its trial
    orphaned: bool = False  # the engine that had it has died
    crashes: int = 0


class EngineRecovery:
    """Hands sequences to the engine, and to the next one when it dies.

    After a crash they go on trial one by one, each alone until it has got one token. An engine that
    dies then has died of that one, which is failed if it was at work at the crash before too. An
    engine that was killed from outside has died of nobody.
    """

    def __init__(self, link: EngineClient) -> None:
        self._link = link
        self._jobs: dict[str, _Job] = {}
        self._waiting: dict[str, _Job] = {}  # for an engine, or for their trial
        self._careful = False
        self._trial: _Job | None = None
        self.num_continued = 0  # sequences that another engine went on with
        link.watcher = self

    def submit(self, request: Generate, tape: Tape, choice: Choice, record: Record) -> None:
        """Begin the sequence of a choice; `record` hears of it up to Finished, whatever happens.

        It must not raise: it would end everybody's tokens.
        """
        self._jobs[request.id] = job = _Job(request, tape, choice, record)
        self._wait(job)

    def cancel(self, request_id: str) -> None:
        """End a sequence; nothing more is heard of it. One that has ended stays so."""
        if job := self._jobs.get(request_id):
            self._link.cancel(request_id)
            self._forget(job)

    def pause(self, request_id: str) -> None:
        job = self._jobs.get(request_id)
        if job is None:
            return
        job.paused = True
        self._waiting.pop(request_id, None)
        if job.engaged:
            self._link.pause(request_id)
        job.held = job.held or job is self._trial  # should it be resumed while others are tried
        self._tried(job)

    def unpause(self, request_id: str) -> None:
        job = self._jobs.get(request_id)
        if job is None:
            return
        job.paused = False
        if not job.engaged:
            self._wait(job)
        elif not job.held:
            self._link.unpause(request_id)

    def engine_died(self, *, crashed: bool) -> None:
        """Nobody has an engine; whoever is not paused waits for the next one."""
        if crashed:
            self._blame()
        self._trial = None
        for job in self._jobs.values():
            job.orphaned = job.orphaned or job.engaged
            job.engaged = job.held = False
        for job in list(self._jobs.values()):
            if not job.paused:
                self._attempt(job, job.tape.announce, Recovering())
        self._waiting = {id: job for id, job in self._jobs.items() if not job.paused}

    def engine_ready(self) -> None:
        if self._waiting:
            logger.info("%d sequences go on in the new engine", len(self._waiting))
        self._hand_over()

    def _blame(self) -> None:
        """Count the crash against all that were at work; one on trial was alone."""
        self._careful = True
        for job in self._jobs.values():
            job.crashes += job.engaged and not job.paused and not job.held
        if self._trial and self._trial.crashes > 1:
            self._fail(self._trial)

    def _fail(self, job: _Job) -> None:
        logger.error("tape %s: %s", job.tape.id, GIVEN_UP)
        self._give_up(job, GIVEN_UP)

    def _give_up(self, job: _Job, why: str) -> None:
        """End the tape of one sequence with an error, as far as that is possible."""
        self._jobs.pop(job.request.id, None)
        self._waiting.pop(job.request.id, None)
        try:
            job.record(Finished(job.request.id, "error", why))
        except Exception:
            logger.exception("tape %s: its end could not be recorded", job.tape.id)

    def _attempt(self, job: _Job, act: Callable[..., None], *args: object) -> None:
        """Do something for one sequence of many: what it raises ends that one alone."""
        try:
            act(*args)
        except Exception:
            logger.exception("tape %s cannot go on", job.tape.id)
            self._link.cancel(job.request.id)
            self._give_up(job, _OURS)
            self._tried(job)

    def _wait(self, job: _Job) -> None:
        self._waiting[job.request.id] = job
        if not self._link.is_up:
            job.tape.announce(Recovering())
        self._hand_over()

    def _hand_over(self) -> None:
        """All that wait; after a crash the next one only, for its trial."""
        while self._waiting and self._trial is None and self._link.is_up:
            job = self._waiting.pop(next(iter(self._waiting)))
            if self._careful:
                self._trial = job
            self._attempt(job, self._engage, job)
        if self._careful and not self._waiting and self._trial is None:
            self._acquit()

    def _engage(self, job: _Job) -> None:
        job.engaged = True
        self.num_continued += job.orphaned
        job.orphaned = False
        request = msgspec.structs.replace(
            job.request, output_ids=job.choice.ids_to_go_on, pause_after_one=self._careful
        )
        self._link.submit(request, partial(self._hear, job))

    def _hear(self, job: _Job, event: Event | EngineError) -> None:
        if isinstance(event, Token):
            job.record(event)
            if job is self._trial:
                job.held = True
                self._tried(job)
        elif isinstance(event, Finished):
            self._forget(job)
            job.record(event)
        elif not isinstance(event, EngineError):  # of that, engine_died tells when all have heard
            job.record(event)

    def _forget(self, job: _Job) -> None:
        self._jobs.pop(job.request.id, None)
        self._waiting.pop(job.request.id, None)
        self._tried(job)

    def _tried(self, job: _Job) -> None:
        """If it was on trial, the engine has survived it, or it has left: the next one's turn."""
        if job is self._trial:
            self._trial = None
            self._hand_over()

    def _acquit(self) -> None:
        """All trials are over: who was held goes on."""
        self._careful = False
        for job in self._jobs.values():
            if job.held:
                job.held = False
                if not job.paused:
                    self._link.unpause(job.request.id)
