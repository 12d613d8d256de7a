"""Every tape of this process: create, attach a reader, cancel, let the last reader leave."""

import asyncio
import logging
import secrets
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial

import msgspec

from app.engine_link import Event
from app.errors import APIError
from app.schemas.sampling import OnDisconnect
from app.tapes.observer import Observer
from app.tapes.recovery import Recovery
from app.tapes.store import TapeStore
from app.tapes.tape import Choice, Claim, Tape
from app.tapes.turnover import Turnover
from model.messages import Finished, FinishReason, Generate, Started, Token
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

    @property
    def unfinished(self) -> list[str]:
        """The ids of the sequences that the engine still has to do with."""
        return [
            _sequence_id(self.tape, index)
            for index, choice in enumerate(self.tape.choices)
            if choice.finish_reason is None
        ]

    @property
    def num_unfinished(self) -> int:
        return sum(choice.finish_reason is None for choice in self.tape.choices)

    def stop_timers(self) -> None:
        for timer in (self.departure, self.timeout, self.queue_timeout):
            if timer:
                timer.cancel()


@dataclass(slots=True)
class Registry:
    """Creates tapes and has the engine write them; readers come and go without touching that.

    A tape takes at most `max_tape_size` bytes of memory. `num_readers` are attached now;
    `num_abandoned` tapes were paused until it was too late for their readers to come back.
    """

    engine: Recovery
    store: TapeStore
    max_tape_size: int
    observers: Sequence[Observer] = ()
    num_readers: int = 0
    num_abandoned: int = 0
    turnover: Turnover = field(default_factory=Turnover)
    _recordings: dict[str, _Recording] = field(default_factory=dict)

    @property
    def num_active(self) -> int:
        """Sequences that run or wait; paused ones cost no compute."""
        return sum(
            recording.num_unfinished
            for recording in self._recordings.values()
            if not recording.tape.paused
        )

    def create(
        self,
        prompts: Sequence[list[int]],
        params: SamplingParams,
        terms: Terms,
        *,
        n: int = 1,
        priority: int = 0,
        salt: str = "",
        owner: str = "",
        claim: Claim | None = None,
        origin: object = None,
    ) -> Tape:
        """A new tape, and the generations that fill it: `n` choices for each prompt, in order.

        The id is 128 random bits.
        """
        copies = [(prompt, copy) for prompt in prompts for copy in range(n)]
        choices = [Choice(0 if copy else len(prompt)) for prompt, copy in copies]
        tape = Tape(
            secrets.token_urlsafe(16),
            choices,
            self.max_tape_size,
            owner=owner,
            claim=claim,
            origin=origin,
        )
        recording = _Recording(tape, terms)
        self._recordings[tape.id] = recording
        self.store.add(tape)
        self._start_timers(recording)
        self.turnover.begin(self.num_active, len(choices))
        for observer in self.observers:
            observer.began(tape)
        for index, (prompt, copy) in enumerate(copies):
            own = _with_seed(params, params.seed + copy)
            request = Generate(_sequence_id(tape, index), prompt, own, priority, salt)
            record = partial(self._record, recording, index)
            self.engine.submit(request, tape, choices[index], record)
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

    def _record(self, recording: _Recording, index: int, event: Event) -> None:
        """Append what the engine reports; whatever happens, the tape gets its terminal entry."""
        tape = recording.tape
        try:
            tape.record(event, index)
            if isinstance(event, Token):
                for observer in self.observers:
                    observer.token(tape, tape.choices[index])
        except Exception:
            logger.exception("recording tape %s failed", tape.id)
            self.cancel(tape.id, "error", "an error of ours; the server's log says more")
            return
        if isinstance(event, Finished):
            self.turnover.end()
        if tape.end:
            self._forget(recording)
        elif isinstance(event, Started) and recording.queue_timeout:
            recording.queue_timeout.cancel()

    def _forget(self, recording: _Recording) -> None:
        recording.stop_timers()
        del self._recordings[recording.tape.id]
        self.store.finished(recording.tape)
        for observer in self.observers:
            observer.ended(recording.tape, attended=recording.readers > 0)

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
            for sequence_id in recording.unfinished:
                self.engine.cancel(sequence_id)
                self.turnover.end()
            self._forget(recording)

    def attach(self, tape: Tape) -> None:
        """One more reader; a paused generation goes on."""
        self.num_readers += 1
        if recording := self._recordings.get(tape.id):
            recording.readers += 1
            if recording.departure:
                recording.departure.cancel()
            if tape.paused:
                tape.paused = False
                for sequence_id in recording.unfinished:
                    self.engine.resume(sequence_id)

    def detach(self, tape: Tape) -> None:
        """One reader less; when it was the last, the tape's `on_disconnect` decides."""
        self.num_readers -= 1
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
        for choice in tape.choices:
            choice.pause()
        for sequence_id in recording.unfinished:
            self.engine.pause(sequence_id)
        recording.departure = asyncio.get_running_loop().call_later(
            recording.terms.grace, self._abandon, tape.id
        )

    def _abandon(self, tape_id: str) -> None:
        self.num_abandoned += 1
        self.cancel(tape_id)

    def close(self) -> None:
        """End every running tape with finish_reason 'shutdown'."""
        for tape_id in list(self._recordings):
            self.cancel(tape_id, "shutdown")


def _sequence_id(tape: Tape, index: int) -> str:
    return f"{tape.id}:{index}"


def _with_seed(params: SamplingParams, seed: int) -> SamplingParams:
    """Copies of one prompt differ in nothing else. Seeds are 64 bits and wrap around."""
    wrapped = (seed + 2**63) % 2**64 - 2**63
    return msgspec.structs.replace(params, seed=wrapped)
