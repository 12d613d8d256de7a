"""Every tape of this process: create, attach a reader, cancel, let the last reader leave."""

import asyncio
import logging
import secrets
from dataclasses import dataclass, field
from functools import partial

from app.engine_link import Event
from app.errors import APIError
from app.schemas.native import OnDisconnect
from app.tapes.recovery import Recovery
from app.tapes.store import TapeStore
from app.tapes.tape import Claim, Tape
from app.tapes.turnover import Turnover
from model.messages import FinishReason, Generate, Started
from model.sampling import SamplingParams

logger = logging.getLogger("tickertape.tapes")


@dataclass(frozen=True, slots=True)
class Terms:
    """What holds for a tape beside its generation.

    Times are in seconds: `grace` that a paused generation waits for a reader, `timeout` from its
    beginning to its end, `queue_timeout` to its first step. None is no limit.
    """

    on_disconnect: OnDisconnect = "pause"
    grace: float = 10.0
    timeout: float | None = None
    queue_timeout: float | None = None


@dataclass(slots=True, eq=False)
class _Recording:
    """A tape that is being written, how many read it, and what will end it in time."""

    tape: Tape
    terms: Terms
    readers: int = 0
    departure: asyncio.TimerHandle | None = None  # of its last reader, for too long
    timeout: asyncio.TimerHandle | None = None
    queue_timeout: asyncio.TimerHandle | None = None

    def stop_timers(self) -> None:
        for timer in (self.departure, self.timeout, self.queue_timeout):
            if timer:
                timer.cancel()


@dataclass(slots=True)
class Registry:
    """Creates tapes and has the engine write them; readers come and go without touching that.

    A tape takes at most `max_tape_size` bytes of memory.
    """

    engine: Recovery
    store: TapeStore
    max_tape_size: int
    turnover: Turnover = field(default_factory=Turnover)
    _recordings: dict[str, _Recording] = field(default_factory=dict)

    @property
    def num_active(self) -> int:
        """Generations that run or wait; paused ones cost no compute."""
        return sum(not recording.tape.paused for recording in self._recordings.values())

    def create(
        self,
        prompt_ids: list[int],
        params: SamplingParams,
        terms: Terms,
        *,
        priority: int = 0,
        salt: str = "",
        owner: str = "",
        claim: Claim | None = None,
    ) -> Tape:
        """A new tape, and the generation that fills it. The id is 128 random bits."""
        tape = Tape(
            secrets.token_urlsafe(16), len(prompt_ids), self.max_tape_size, owner=owner, claim=claim
        )
        recording = _Recording(tape, terms)
        self._recordings[tape.id] = recording
        self.store.add(tape)
        self._start_timers(recording)
        self.turnover.begin(self.num_active)
        request = Generate(tape.id, prompt_ids, params, priority, salt)
        self.engine.submit(request, tape, partial(self._record, recording))
        return tape

    def _start_timers(self, recording: _Recording) -> None:
        loop, terms, tape_id = asyncio.get_running_loop(), recording.terms, recording.tape.id
        if terms.timeout is not None:
            why = f"its timeout of {terms.timeout:g} s has passed; give it more, or ask for less"
            recording.timeout = loop.call_later(terms.timeout, self.cancel, tape_id, "timeout", why)
        if terms.queue_timeout is not None:
            why = f"it waited {terms.queue_timeout:g} s for a seat; try again when less is going on"
            recording.queue_timeout = loop.call_later(
                terms.queue_timeout, self.cancel, tape_id, "timeout", why
            )

    def _record(self, recording: _Recording, event: Event) -> None:
        """Append what the engine reports; whatever happens, the tape gets its terminal entry."""
        tape = recording.tape
        try:
            tape.record(event)
        except Exception:
            logger.exception("recording tape %s failed", tape.id)
            self.cancel(tape.id, "error", "an error of ours; the server's log says more")
            return
        if tape.end:
            self._forget(recording)
        elif isinstance(event, Started) and recording.queue_timeout:
            recording.queue_timeout.cancel()

    def _forget(self, recording: _Recording) -> None:
        recording.stop_timers()
        del self._recordings[recording.tape.id]
        self.turnover.end()
        self.store.finished(recording.tape)

    def claimed(self, claim: Claim) -> Tape | None:
        """The tape that this very request has begun already.

        Raises APIError 409 when another request had its key.
        """
        tape = self.store.claimed(claim.key)
        if tape and tape.claim != claim:
            raise APIError(
                409,
                "this Idempotency-Key was used with another request; use a new key for a new one",
                param="Idempotency-Key",
                code="idempotency_key_reused",
            )
        return tape

    def get(self, tape_id: str) -> Tape | None:
        return self.store.get(tape_id)

    def cancel(
        self, tape_id: str, reason: FinishReason = "cancelled", error: str | None = None
    ) -> None:
        """End a running tape: its readers get the terminal entry. One that has ended stays so."""
        if recording := self._recordings.get(tape_id):
            recording.tape.finish(reason, error)
            self.engine.cancel(tape_id)
            self._forget(recording)

    def attach(self, tape: Tape) -> None:
        """One more reader; a paused generation goes on."""
        if recording := self._recordings.get(tape.id):
            recording.readers += 1
            if recording.departure:
                recording.departure.cancel()
            if tape.paused:
                tape.paused = False
                self.engine.resume(tape.id)

    def detach(self, tape: Tape) -> None:
        """One reader less; when it was the last, the tape's `on_disconnect` decides."""
        recording = self._recordings.get(tape.id)
        if recording is None:
            return
        recording.readers -= 1
        if recording.readers > 0 or recording.terms.on_disconnect == "continue":
            return
        if recording.terms.on_disconnect == "abort":
            self.cancel(tape.id)
        else:
            self._pause(recording)

    def _pause(self, recording: _Recording) -> None:
        tape = recording.tape
        tape.paused = True
        self.engine.pause(tape.id)
        recording.departure = asyncio.get_running_loop().call_later(
            recording.terms.grace, self.cancel, tape.id
        )

    def close(self) -> None:
        """End every running tape with finish_reason 'shutdown'."""
        for tape_id in list(self._recordings):
            self.cancel(tape_id, "shutdown")
