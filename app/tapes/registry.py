"""Every tape of this process: create, attach a reader, cancel, let the last reader leave."""

import asyncio
import contextlib
import logging
import secrets
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial

from app.errors import APIError, try_later
from app.processes.engine_client import Event
from app.tapes.engine_recovery import EngineRecovery
from app.tapes.heads import Mark
from app.tapes.observer import Observer
from app.tapes.plan import Plan, ReaderPolicy, sequence_of
from app.tapes.retry_after import RetryAfterEstimator
from app.tapes.seats import NOTHING, Held, Seats
from app.tapes.stores.base import TapeStore
from app.tapes.tape import FEW, Beginning, IdempotencyClaim, Tape
from model.protocol.messages import Finished, FinishReason, Started, Token

logger = logging.getLogger("tickertape.tapes")

_PATIENCE = 5.0  # seconds that a cancelled tape may take to end


@dataclass(slots=True, eq=False)
class _Recording:
    """A tape that is being written, how many read it, and what will end it in time."""

    tape: Tape
    policy: ReaderPolicy
    readers: int = 0
    resumed: bool = False  # by a reader that came back
    held: Held = NOTHING  # its sequences, as its client's share was told of them
    departure: asyncio.TimerHandle | None = None  # of its last reader, for too long
    timeout: asyncio.TimerHandle | None = None
    queue_timeout: asyncio.TimerHandle | None = None

    @property
    def unfinished(self) -> list[str]:
        """The ids of the sequences that the engine still has to do with."""
        return [
            sequence_of(self.tape.id, index)
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

    The entries of a tape take at most `max_tape_size` bytes of memory. `num_readers` are attached
    now, at most `max_readers` for each client's tapes. At most `max_paused` sequences wait for a
    reader. `num_abandoned` tapes were paused until it was too late for their readers to come back,
    `num_displaced` were cancelled while paused to make room for others.
    """

    engine: EngineRecovery
    store: TapeStore
    max_tape_size: int
    observers: Sequence[Observer] = ()
    max_paused: int = 256
    max_readers: int = 1024
    num_readers: int = 0
    num_abandoned: int = 0
    num_displaced: int = 0
    retry_after: RetryAfterEstimator = field(default_factory=RetryAfterEstimator)
    seats: Seats = field(default_factory=Seats)
    _recordings: dict[str, _Recording] = field(default_factory=dict)
    _paused: dict[str, _Recording] = field(default_factory=dict)  # the oldest first
    _readers: Counter[str] = field(default_factory=Counter)  # by the client of their tape
    _listeners: list[Observer] = field(init=False)  # those for whom tokens are something

    def __post_init__(self) -> None:
        self._listeners = [one for one in self.observers if type(one).token is not Observer.token]

    @property
    def running(self) -> Iterator[tuple[Tape, int]]:
        """The tapes that are written here, oldest first, and how many read each."""
        for recording in self._recordings.values():
            yield recording.tape, recording.readers

    @property
    def num_active(self) -> int:
        """Sequences that run or wait; paused ones cost no compute."""
        return self.seats.active

    async def create(
        self, plan: Plan, parent: Tape | None = None, beginning: Beginning | None = None
    ) -> Tape:
        """A new tape, and the generations that fill it; or the one that has the plan's claim.

        A fork has the `beginning` of its parent from the start. The id is 128 random bits. Raises
        APIError: 409 when another request has that claim, 503 when tapes cannot be kept.
        """
        tape = Tape(
            secrets.token_urlsafe(16),
            plan.choices(),
            self.max_tape_size,
            owner=plan.owner,
            client=plan.client,
            claim=plan.claim,
            response_context=plan.response_context,
            recipe=plan.recipe(),
            parent=plan.parent,
            forked_at=plan.forked_at,
            requires_ack=self.store.requires_ack,
        )
        kept = await self.store.add(tape, plan)
        if kept is not tape:
            return _same(kept, plan.claim)
        if parent and beginning:
            tape.begin_as(parent, beginning)
            self.store.wrote(tape)
        tape.plan_size = plan.size
        recording = self._recordings[tape.id] = _Recording(tape, plan.policy)
        self._seat(recording)
        self._start_timers(recording, passed=0.0)
        self.retry_after.begin(self.num_active, recording.num_unfinished)
        for observer in self.observers:
            observer.began(tape)
        self._submit(recording, plan)
        return tape

    def adopt(self, tape: Tape, plan: Plan, readers: int) -> None:
        """Go on with a tape whose writer has gone; its choices have what they had brought forth.

        Without a reader it waits for one, as any that has lost its last.
        """
        tape.plan_size = plan.size
        recording = self._recordings[tape.id] = _Recording(tape, plan.policy, readers)
        self._seat(recording)
        self._start_timers(recording, passed=max(0.0, time.time() - plan.created))
        self.retry_after.begin(self.num_active, recording.num_unfinished)
        for observer in self.observers:
            observer.began(tape)
        self._submit(recording, plan)
        if not readers and plan.policy.on_disconnect != "continue":
            self._pause(recording)

    def disown(self, tape: Tape) -> None:
        """Another process goes on with it."""
        recording = self._recordings.pop(tape.id, None)
        if recording is None:
            return
        recording.stop_timers()
        self._unseat(recording)
        for sequence_id in recording.unfinished:
            self.engine.cancel(sequence_id)
            self.retry_after.end()

    def _seat(self, recording: _Recording) -> None:
        """Count its sequences as they are now towards its client's share."""
        unfinished = recording.num_unfinished
        if recording.tape.paused:
            self._hold(recording, Held(paused=unfinished))
        elif recording.resumed:
            self._hold(recording, Held(resumed=unfinished))
        else:
            self._hold(recording, Held(fresh=unfinished))

    def _unseat(self, recording: _Recording) -> None:
        self._paused.pop(recording.tape.id, None)
        self._hold(recording, NOTHING)

    def _hold(self, recording: _Recording, held: Held) -> None:
        self.seats.change(recording.tape.client, recording.held, held)
        recording.held = held

    def _submit(self, recording: _Recording, plan: Plan) -> None:
        """Hand what is unfinished to the engine."""
        tape = recording.tape
        for index, request in enumerate(plan.requests(tape.id)):
            choice = tape.choices[index]
            if choice.finish_reason is None:
                record = partial(self._record, recording, index)
                self.engine.submit(request, tape, choice, record)

    def _start_timers(self, recording: _Recording, passed: float) -> None:
        """`passed` seconds after the tape began."""
        loop, policy, tape_id = asyncio.get_running_loop(), recording.policy, recording.tape.id
        if policy.timeout is not None:
            why = f"its timeout of {policy.timeout:g} s has passed; give it more, or ask for less"
            left = policy.timeout - passed
            recording.timeout = loop.call_later(left, self.cancel, tape_id, "timeout", why)
        if policy.queue_timeout is not None and recording.tape.queue_ms is None:
            why = (
                f"it waited {policy.queue_timeout:g} s for a seat; try again when less is going on"
            )
            recording.queue_timeout = loop.call_later(
                policy.queue_timeout, self.cancel, tape_id, "timeout", why
            )

    def _record(self, recording: _Recording, index: int, event: Event) -> None:
        """Append what the engine reports; whatever happens, the tape gets its terminal entry."""
        tape = recording.tape
        try:
            tape.record(event, index)
            if isinstance(event, Token):
                for observer in self._listeners:
                    observer.token(tape, tape.choices[index])
        except Exception:
            logger.exception("recording tape %s failed", tape.id)
            self.cancel(tape.id, "error", "an error of ours; the server's log says more")
            return
        self.store.wrote(tape)
        if isinstance(event, Finished):
            self.retry_after.end()
            self._seat(recording)
        if tape.end:
            self._forget(recording)
        elif isinstance(event, Started) and recording.queue_timeout:
            recording.queue_timeout.cancel()

    def _forget(self, recording: _Recording) -> None:
        recording.stop_timers()
        del self._recordings[recording.tape.id]
        self._unseat(recording)
        recording.tape.plan_size = 0
        self.store.retention.live_size = self._live_sizes().total()
        self.store.finished(recording.tape)
        for observer in self.observers:
            observer.ended(recording.tape, attended=recording.readers > 0)

    def check_memory(self, client: str) -> None:
        """Raises APIError 429 when all tapes together take too much, and this client's too much of
        it. Before that finished tapes go, and paused ones of clients that have more than a share.
        """
        sizes, retention = self._live_sizes(), self.store.retention
        retention.make_room(sizes.total())
        while sizes.total() > retention.budget and (victim := self._heaviest_paused(sizes)):
            self._displace(victim, f"tapes of more than --tape-memory, {retention.budget} bytes,")
            sizes = self._live_sizes()
        if sizes.total() > retention.budget and sizes[client] > _share(
            sizes, client, retention.budget
        ):
            raise try_later(
                429,
                "tapes that have not ended take more than --tape-memory, "
                f"{retention.budget} bytes, "
                "and yours more than their share; try again when one has ended, or cancel one",
                code="tape_memory_full",
                seconds=self.retry_after.seconds_to_a_place(),
            )

    def _live_sizes(self) -> Counter[str]:
        """Of the tapes that have not ended, by client."""
        sizes: Counter[str] = Counter()
        for recording in self._recordings.values():
            sizes[recording.tape.client] += recording.tape.size
        return sizes

    def _heaviest_paused(self, sizes: Counter[str]) -> str | None:
        """The client with most bytes that has more than its share, and a paused tape."""
        clients = {one.tape.client for one in self._paused.values()}
        budget = self.store.retention.budget
        over = [one for one in clients if sizes[one] > _share(sizes, one, budget)]
        return max(over, key=sizes.__getitem__, default=None)

    def check_readers(self, tape: Tape) -> None:
        """Raises APIError 429 when its client has too many readers; the first few of a tape may."""
        if tape.readers >= FEW and self._readers[tape.client] >= self.max_readers:
            raise try_later(
                429,
                f"{self.max_readers} readers follow this client's tapes, which is --max-readers; "
                "close some, or share what one reads",
                code="too_many_readers",
            )

    async def claimed(self, claim: IdempotencyClaim) -> Tape | None:
        """The tape that this very request has begun already.

        Raises APIError 409 when another request had its key.
        """
        tape = await self.store.claimed(claim.key)
        return tape and _same(tape, claim)

    async def get(self, tape_id: str) -> Tape | None:
        return await self.store.get(tape_id)

    def cancel(
        self, tape_id: str, reason: FinishReason = "cancelled", error: str | None = None
    ) -> None:
        """End a running tape: its readers get the terminal entry. One that has ended stays so."""
        recording = self._recordings.get(tape_id)
        if recording is None:
            self.store.cancel(tape_id)
        else:
            recording.tape.finish(reason, error)
            self.store.wrote(recording.tape)
            for sequence_id in recording.unfinished:
                self.engine.cancel(sequence_id)
                self.retry_after.end()
            self._forget(recording)

    async def end(self, tape: Tape) -> None:
        """Cancel it, and wait until its readers may know."""
        self.cancel(tape.id)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_PATIENCE):
                await tape.ended()

    def add_reader(self, tape: Tape) -> None:
        """One more reader; a paused generation goes on."""
        self.num_readers += 1
        self._readers[tape.client] += 1
        tape.readers += 1
        if tape.id in self._recordings:
            self.join(tape)
        else:
            self.store.subscribe(tape)

    def remove_reader(self, tape: Tape) -> None:
        """One reader less; when it was the last, the tape's `on_disconnect` decides."""
        self.num_readers -= 1
        self._readers -= Counter([tape.client])
        tape.readers -= 1
        if tape.id in self._recordings:
            self.leave(tape)
        else:
            self.store.unsubscribe(tape)

    def join(self, tape: Tape) -> None:
        """A reader, of this process or another, of a tape that is written here."""
        recording = self._recordings.get(tape.id)
        if recording is None:
            return
        recording.readers += 1
        if recording.departure:
            recording.departure.cancel()
        if tape.paused:
            tape.paused = False
            recording.resumed = True
            del self._paused[tape.id]
            self._seat(recording)
            for sequence_id in recording.unfinished:
                self.engine.unpause(sequence_id)

    def leave(self, tape: Tape) -> None:
        """One less."""
        recording = self._recordings.get(tape.id)
        if recording is None:
            return
        recording.readers -= 1
        if recording.readers > 0 or recording.policy.on_disconnect == "continue":
            return
        if recording.policy.on_disconnect == "abort":
            self.cancel(tape.id)
        else:
            self._pause(recording)

    def _pause(self, recording: _Recording) -> None:
        tape = recording.tape
        tape.mark(Mark("pause", tape.written))
        tape.paused = True
        for choice in tape.choices:
            choice.pause()
        for sequence_id in recording.unfinished:
            self.engine.pause(sequence_id)
        recording.departure = asyncio.get_running_loop().call_later(
            recording.policy.grace, self._abandon, tape.id
        )
        self._paused[tape.id] = recording
        self._seat(recording)
        while self.seats.paused > self.max_paused:
            self._displace(self.seats.most_paused, f"more than --max-paused, {self.max_paused},")

    def _displace(self, client: str, why: str) -> None:
        """Cancel this client's oldest paused tape: others need its room."""
        oldest = next(one for one in self._paused.values() if one.tape.client == client)
        self.num_displaced += 1
        told = f"{why} waited for their readers; read on sooner, or cancel what you do not need"
        self.cancel(oldest.tape.id, "cancelled", told)

    def _abandon(self, tape_id: str) -> None:
        self.num_abandoned += 1
        self.cancel(tape_id)

    def close(self) -> None:
        """End every running tape with finish_reason 'shutdown', or leave them all to others."""
        for recording in list(self._recordings.values()):
            if self.store.hands_over:
                self.disown(recording.tape)
            else:
                self.cancel(recording.tape.id, "shutdown")


def _share(sizes: Counter[str], client: str, whole: int) -> float:
    """What each client may have where all together want more."""
    return whole / len(sizes.keys() | {client})


def _same(tape: Tape, claim: IdempotencyClaim | None) -> Tape:
    """Raises APIError 409 when it is another request that has the key."""
    if tape.claim != claim:
        raise APIError(
            409,
            "this Idempotency-Key was used with another request; use a new key for a new one",
            param="Idempotency-Key",
            code="idempotency_key_reused",
        )
    return tape
