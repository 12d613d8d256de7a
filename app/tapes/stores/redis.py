"""Tapes in Redis: any replica serves any reader, and goes on with what a dead one has left.

Each tape has one writer, the replica whose engine computes it. What that appends is shown to
readers once Redis has it: whoever continues the tape continues what was shown. Readers at other
replicas follow a copy. While Redis cannot be reached, streams pause, and nothing new begins.
"""

import asyncio
import contextlib
import logging
import secrets
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, Final, TypeVar

from redis import RedisError, ResponseError

from app.tapes.plan import Plan
from app.tapes.stores.base import TapeStore, Writer, unreachable
from app.tapes.stores.redis_log import (
    FENCED,
    LEASE,
    MISSING,
    AppendBatch,
    AppendResult,
    InboxMessage,
    RedisLog,
    State,
    Stored,
    state_of,
)
from app.tapes.stores.retention import TapeRetention
from app.tapes.tape import Batch, Recovering, Tape

logger = logging.getLogger("tickertape.redis")

_BEAT: Final = LEASE / 3
_PATIENCE: Final = 5.0  # seconds that a request waits for Redis
_AT_ONCE: Final = 128  # entries of a tape that are sent
_FIRST_PAUSE, _LONGEST_PAUSE = 0.05, 1.0  # seconds before what has failed is tried again

T = TypeVar("T")


class RedisStore(TapeStore):
    """This replica's share of the tapes: those that it writes, and copies of those it reads."""

    requires_ack = True

    def __init__(
        self, url: str, retention: TapeRetention, *, ttl: float, max_tape_size: int
    ) -> None:
        """Raises ValueError for what is no Redis URL."""
        self.retention = retention
        self._max_tape_size = max_tape_size
        self._log = RedisLog(url, secrets.token_urlsafe(12), ttl)
        self._writer: Writer
        self._plans: dict[str, Plan] = {}  # of tapes that this replica writes
        self._states: dict[str, State] = {}  # as Redis has them
        self._new: dict[str, Tape] = {}  # tapes with something on them that Redis has not
        self._is_new = asyncio.Event()
        self._all_written = asyncio.Event()
        self._all_written.set()
        self._copies: dict[str, _Copy] = {}
        self._remote_readers: dict[str, Counter[str]] = {}  # readers elsewhere, by tape and replica
        self._others = False
        self._troubles: dict[str, str] = {}  # what fails of what is done with Redis, and why
        self._down_since: float | None = None
        self._up_since = time.monotonic()
        self._tasks: list[asyncio.Task[None]] = []
        self._background: set[asyncio.Task[None]] = set()

    @property
    def why_unavailable(self) -> str | None:  # type: ignore[override]
        return next(iter(self._troubles.values()), None)

    @property
    def hands_over(self) -> bool:  # type: ignore[override]
        return self._others

    async def start(self, writer: Writer) -> None:
        self._writer = writer
        self._tasks = [
            asyncio.create_task(self._forever(name, turn))
            for name, turn in (("write", self._write), ("read", self._read), ("live", self._live))
        ]

    async def flush(self) -> None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_PATIENCE):
                await self._all_written.wait()

    async def stop(self) -> None:
        for task in [*self._tasks, *self._background]:
            task.cancel()
        await asyncio.gather(*self._tasks, *self._background, return_exceptions=True)
        with contextlib.suppress(RedisError, OSError):
            await self._log.die()
        await self._log.close()

    # ---- tapes

    async def add(self, tape: Tape, plan: Plan) -> Tape:
        begun = await self._soon(lambda: self._log.put(tape.id, plan))
        if begun and (other := await self.get(begun)):
            return other
        self._plans[tape.id] = plan
        self.retention.add(tape)
        return tape

    async def get(self, tape_id: str) -> Tape | None:
        if tape := self.retention.get(tape_id):
            return tape
        stored = await self._soon(lambda: self._log.load(tape_id))
        if stored is None:
            return None
        return self.retention.get(tape_id) or self._copy(tape_id, stored)  # it may be there by now

    async def claimed(self, key: str) -> Tape | None:
        tape_id = await self._soon(lambda: self._log.claimant(key))
        return await self.get(tape_id) if tape_id else None

    def wrote(self, tape: Tape) -> None:
        self._new[tape.id] = tape
        self._all_written.clear()
        self._is_new.set()

    def subscribe(self, tape: Tape) -> None:
        if copy := self._copies.get(tape.id):
            copy.readers += 1
            self._in_order(copy, lambda: self._log.tell_writer("join", tape.id, 1))

    def unsubscribe(self, tape: Tape) -> None:
        if copy := self._copies.get(tape.id):
            copy.readers -= 1
            self._in_order(copy, lambda: self._log.tell_writer("leave", tape.id, -1))

    def cancel(self, tape_id: str) -> None:
        if copy := self._copies.get(tape_id):
            self._in_order(copy, lambda: self._log.tell_writer("cancel", tape_id))

    # ---- writing

    async def _write(self) -> None:
        """Append all that is new, in one round trip for all tapes, and show it."""
        await self._is_new.wait()
        self._is_new.clear()
        tapes, self._new = self._new, {}
        try:
            await self._write_down([*tapes.values()])
        except BaseException as error:
            self._new = tapes | self._new  # those that were shown have nothing new
            self._is_new.set()
            if not _is_a_tapes_own(error):
                raise
            for tape in tapes.values():
                await self._write_alone(tape)
        if not self._new:
            self._all_written.set()

    async def _write_down(self, tapes: list[Tape]) -> None:
        batches = [self._batch(tape, tape.last) for tape in tapes]
        for batch, result in zip(batches, await self._log.append(batches), strict=True):
            await self._heed(batch, result)

    async def _write_alone(self, tape: Tape) -> None:
        """One of several that cannot be written together: one at fault ends, the others go on."""
        try:
            await self._write_down([tape])
        except Exception as error:
            if not _is_a_tapes_own(error):
                raise
            logger.exception("tape %s cannot be kept; it ends here", tape.id)
            tape.drop_unpublished()
            why = "the store cannot keep this tape; the server's log says why"
            self._writer.cancel(tape.id, "error", why)
            self._forget(tape.id)
        self._new.pop(tape.id, None)

    def _batch(self, tape: Tape, after: int, *, anew: bool = False) -> AppendBatch:
        """What is on the tape after this entry, and its state if Redis has another."""
        begin = after - tape.num_dropped
        # Written anew, all go at once: what was shown already must be there again.
        items: Batch = [*tape.entries[begin : None if anew else begin + _AT_ONCE]]
        if tape.end and after < tape.written <= after + len(items) + 1:
            items.append(tape.end)
        state = state_of(tape)
        known = state == self._states.get(tape.id)
        return AppendBatch(tape, after + 1, items, None if known else state, anew)

    async def _heed(self, batch: AppendBatch, result: AppendResult) -> None:
        tape = batch.tape
        if result == FENCED:
            self._lose(tape)
        elif result == MISSING:
            await self._restore(tape)
        else:
            if batch.state:
                self._states[tape.id] = batch.state
            tape.publish(max(tape.last, batch.last))
            if batch.ended:
                self._forget(tape.id)
            elif tape.last < tape.written:  # a fork begins with many
                self.wrote(tape)

    def _forget(self, tape_id: str) -> None:
        for known in (self._plans, self._states, self._remote_readers):
            known.pop(tape_id, None)

    def _lose(self, tape: Tape) -> None:
        """Another replica has taken this one for dead: its readers here follow that from now on."""
        logger.warning("tape %s is written by another replica now", tape.id)
        self._writer.disown(tape)
        self.retention.reopened(tape)
        tape.drop_unpublished()
        self._forget(tape.id)
        self._new.pop(tape.id, None)
        copy = self._copies[tape.id] = _Copy(tape, "", tape.readers)
        if readers := tape.readers:
            self._in_order(copy, lambda: self._log.tell_writer("join", tape.id, readers))
        self._spawn(self._log.wake)

    async def _restore(self, tape: Tape) -> None:
        """Redis has come back without it: write all that there is anew."""
        if plan := self._plans.get(tape.id):
            logger.warning("tape %s was lost by Redis; writing it anew", tape.id)
            await self._log.put(tape.id, plan)
            self._states.pop(tape.id, None)
            whole = self._batch(tape, tape.num_dropped, anew=True)
            (result,) = await self._log.append([whole])
            await self._heed(whole, result)

    # ---- reading what others write

    def _copy(self, tape_id: str, stored: Stored) -> Tape:
        """What Redis has of a tape. It is followed until its end."""
        tape = self._as_stored(tape_id, stored)
        self.retention.add(tape)
        if tape.end:
            self.retention.finished(tape)
        else:
            self._copies[tape_id] = _Copy(tape, stored.writer)
            self._spawn(self._log.wake)
        return tape

    def _as_stored(self, tape_id: str, stored: Stored) -> Tape:
        plan = stored.plan
        began = time.monotonic() - max(0.0, time.time() - plan.created)
        tape = Tape(
            tape_id,
            plan.choices(),
            self._max_tape_size,
            owner=plan.owner,
            client=plan.client,
            claim=plan.claim,
            response_context=plan.response_context,
            recipe=plan.recipe(),
            parent=plan.parent,
            forked_at=plan.forked_at,
            created=plan.created,
            began=began,
            num_dropped=stored.first - 1,
            last=stored.first - 1,
            queue_ms=stored.queue_ms,
            _first=None if stored.ttft_ms is None else began + stored.ttft_ms / 1000,
        )
        tape.extend(stored.items)
        return tape

    async def _read(self) -> None:
        followed = {tape_id: copy.tape.last for tape_id, copy in self._copies.items()}
        told, news = await self._log.news(followed)
        for tape_id, items in news.items():
            if copy := self._copies.get(tape_id):
                copy.tape.mirror(items)
                if copy.tape.end:
                    del self._copies[tape_id]
                    self.retention.finished(copy.tape)
        for message in told:
            self._obey(message)

    def _obey(self, told: InboxMessage) -> None:
        tape = self.retention.get(told.tape_id)
        if tape is None or tape.id not in self._plans:
            return
        remote_readers = self._remote_readers.setdefault(tape.id, Counter())
        match told.what:
            case "join":
                remote_readers[told.sender] += told.readers
                for _ in range(told.readers):
                    self._writer.join(tape)
            case "leave" if remote_readers[told.sender] > 0:
                remote_readers[told.sender] -= 1
                self._writer.leave(tape)
            case "cancel":
                self._writer.cancel(tape.id)

    # ---- living, and inheriting

    async def _live(self) -> None:
        """Beat, and take what the dead have left."""
        replicas = await self._log.beat()
        alive = {name for name, lives in replicas.items() if lives}
        self._others = len(alive) > 1
        # After an outage nobody has beaten for a while, and all look dead.
        if time.monotonic() - self._up_since > LEASE:
            for dead in replicas.keys() - alive:
                self._see_off(dead)
                await self._inherit_from(dead, alive)
        await asyncio.sleep(_BEAT)

    def _see_off(self, dead: str) -> None:
        """Its readers have left; what it was writing will go on."""
        for tape_id, remote_readers in self._remote_readers.items():
            if tape := self.retention.get(tape_id):
                for _ in range(remote_readers.pop(dead, 0)):
                    self._writer.leave(tape)
        for copy in self._copies.values():
            if copy.writer == dead:
                copy.tape.announce(Recovering())

    async def _inherit_from(self, dead: str, alive: set[str]) -> None:
        while inherited := await self._log.inherit(dead):
            if stored := await self._log.load(inherited):
                logger.info("going on with tape %s of a replica that has gone", inherited)
                self._adopt(inherited, stored, alive)

    def _adopt(self, tape_id: str, stored: Stored, alive: set[str]) -> None:
        copy = self._copies.pop(tape_id, None)
        tape = copy.tape if copy else self._as_stored(tape_id, stored)
        if copy:
            tape.mirror(enumerate(stored.items, start=stored.first))
        else:
            self.retention.add(tape)
        tape.choices = stored.choices
        tape.requires_ack = True
        self._plans[tape_id] = stored.plan
        own = copy.readers if copy else 0
        elsewhere = alive - {self._log.replica}
        remote_readers = Counter(
            {name: stored.readers[name] for name in elsewhere & stored.readers.keys()}
        )
        self._remote_readers[tape_id] = remote_readers
        self._writer.adopt(tape, stored.plan, own + remote_readers.total())
        if stored.first > 1:  # what comes next cannot be told without what came before
            why = "the store has lost the beginning of this tape; ask again"
            self._writer.cancel(tape_id, "error", why)

    # ---- while Redis cannot be reached

    async def _forever(self, name: str, turn: Callable[[], Awaitable[None]]) -> None:
        """One turn after the other, with a pause after one that has failed."""
        pause = _FIRST_PAUSE
        while True:
            try:
                await turn()
                self._works(name)
                pause = _FIRST_PAUSE
            except (RedisError, OSError) as error:
                self._fails(name, error)
                await asyncio.sleep(pause)
                pause = min(2 * pause, _LONGEST_PAUSE)
            except Exception:
                logger.exception("an error of ours; going on")
                await asyncio.sleep(_LONGEST_PAUSE)

    def _fails(self, name: str, error: Exception) -> None:
        """A server that cannot be reached, or refuses: it is full, read-only, has no disk."""
        self._troubles[name] = str(error) or type(error).__name__
        if self._down_since is None:
            self._down_since = time.monotonic()
            logger.error("Redis does not keep tapes (%s); streams wait for it", error)

    def _works(self, name: str) -> None:
        """A beat is a write: when it succeeds, so would what has failed beside the three loops."""
        self._troubles.pop(name, None)
        if name == "live":
            self._troubles.pop("ask", None)
        if self._down_since is not None and not self._troubles:
            logger.info("Redis is back after %.1f s", time.monotonic() - self._down_since)
            self._down_since = None
            self._up_since = time.monotonic()

    async def _soon(self, ask: Callable[[], Awaitable[T]]) -> T:
        """What Redis answers. Raises APIError 503 when it does not for too long."""
        deadline = time.monotonic() + _PATIENCE
        while True:
            try:
                return await ask()
            except (RedisError, OSError) as error:
                # One lost connection of the pool is no trouble: the beat would be the next to know.
                if time.monotonic() > deadline:
                    self._fails("ask", error)
                    raise unreachable(str(error)) from None
                await asyncio.sleep(_FIRST_PAUSE)

    def _in_order(self, copy: "_Copy", tell: Callable[[], Awaitable[None]]) -> None:
        """What concerns one tape reaches its writer in the order in which it was said."""

        async def after_the_last() -> None:
            async with copy.turn:
                await self._at_last(tell)

        self._spawn(after_the_last)

    async def _at_last(self, tell: Callable[[], Awaitable[None]]) -> None:
        while True:
            try:
                return await tell()
            except (RedisError, OSError):
                await asyncio.sleep(_LONGEST_PAUSE)

    def _spawn(self, work: Callable[[], Coroutine[Any, Any, None]]) -> None:
        task = asyncio.create_task(work())
        self._background.add(task)
        task.add_done_callback(self._background.discard)


def _is_a_tapes_own(error: BaseException) -> bool:
    """Whether it would not have failed without one of the tapes. All else is Redis's state."""
    if isinstance(error, ResponseError):
        return "WRONGTYPE" in str(error)
    return isinstance(error, Exception) and not isinstance(error, RedisError | OSError)


class _Copy:
    """A tape that another replica writes, and how many read it here."""

    def __init__(self, tape: Tape, writer: str, readers: int = 0) -> None:
        self.tape = tape
        self.writer = writer
        self.readers = readers
        self.turn = asyncio.Lock()
