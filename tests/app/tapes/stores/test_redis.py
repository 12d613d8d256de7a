"""The store's own part in a fault of Redis: nothing is lost, shown too early, or written twice."""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, field

from redis import ConnectionError as Lost

from app.tapes.plan import Plan
from app.tapes.registry import Registry
from app.tapes.stores.redis import RedisStore
from app.tapes.stores.redis_log import (
    FENCED,
    MISSING,
    WRITTEN,
    AppendBatch,
    AppendResult,
    InboxMessage,
)
from app.tapes.stores.retention import TapeRetention
from app.tapes.tape import End, Entry, Tape
from model.protocol.sampling_params import SamplingParams
from tests.speed import patience

PLAN = Plan([[1]], SamplingParams(max_tokens=9, seed=0))


@dataclass
class Log:
    """A Redis that has each tape's entries, and loses what it is told to."""

    replica: str = "here"
    known: dict[str, list[Entry | End]] = field(default_factory=dict)
    fenced: set[str] = field(default_factory=set)
    puts_to_fail: int = 0
    told: list[tuple[str, str, int]] = field(default_factory=list)

    async def put(self, tape_id: str, plan: Plan) -> None:
        if self.puts_to_fail:
            self.puts_to_fail -= 1
            raise Lost
        self.known[tape_id] = []

    async def append(self, batches: Sequence[AppendBatch]) -> list[AppendResult]:
        return [self._append(batch) for batch in batches]

    def _append(self, batch: AppendBatch) -> AppendResult:
        tape_id = batch.tape.id
        if tape_id in self.fenced:
            return FENCED
        if tape_id not in self.known:
            return MISSING
        has = self.known[tape_id]
        for number, item in enumerate(batch.items, start=batch.first):
            if number > len(has):  # XADD refuses all others
                assert number == len(has) + 1, "an entry is missing"
                has.append(item)
        return WRITTEN

    async def news(
        self, followed: object
    ) -> tuple[list[InboxMessage], dict[str, list[tuple[int, Entry | End]]]]:
        await asyncio.Event().wait()
        raise AssertionError

    async def beat(self) -> dict[str, bool]:
        return {self.replica: True}

    async def tell_writer(self, what: str, tape_id: str, readers: int = 0) -> None:
        self.told.append((what, tape_id, readers))

    async def wake(self) -> None: ...

    async def die(self) -> None: ...

    async def close(self) -> None: ...


class Writer(Registry):
    def __init__(self) -> None:
        """It writes nothing by itself."""

    def disown(self, tape: Tape) -> None: ...


async def begun(log: Log) -> RedisStore:
    store = RedisStore(
        "redis://nowhere", TapeRetention(ttl=60, budget=1 << 20), ttl=60, max_tape_size=1000
    )
    store._log = log  # type: ignore[assignment]
    await store.start(Writer())
    return store


async def added(store: RedisStore, name: str) -> Tape:
    tape = Tape(name, PLAN.choices(), requires_ack=True)
    await store.add(tape, PLAN)
    return tape


def write(store: RedisStore, tape: Tape, count: int) -> None:
    for number in range(count):
        tape.append(Entry("x", number))
    store.wrote(tape)


async def test_what_is_written_anew_takes_nobody_with_it() -> None:
    """Redis has lost the first tape, and goes again while that is written anew."""
    log = Log()
    store = await begun(log)
    lost, other = await added(store, "lost"), await added(store, "other")
    write(store, lost, 2)
    await store.flush()
    assert lost.last == 2
    del log.known["lost"]
    log.puts_to_fail = 1
    write(store, lost, 1)
    write(store, other, 3)
    lost.finish("stop")
    other.finish("stop")
    async with asyncio.timeout(patience(10)):
        await asyncio.gather(lost.ended(), other.ended())
    assert log.known["lost"] == [*lost.entries, lost.end]
    assert log.known["other"] == [*other.entries, other.end]
    await store.stop()


async def test_what_was_shown_stays_so_while_it_is_written_anew() -> None:
    log = Log()
    store = await begun(log)
    tape = await added(store, "tape")
    write(store, tape, 5)
    await store.flush()
    log.known.clear()
    log.puts_to_fail = 3
    write(store, tape, 1)
    seen = set()
    async with asyncio.timeout(patience(10)):
        while tape.last < 6:
            seen.add(tape.last)
            await asyncio.sleep(0)
    assert seen == {5}
    await store.stop()


async def test_a_fenced_tape_keeps_only_what_was_shown() -> None:
    log = Log()
    store = await begun(log)
    tape = await added(store, "tape")
    write(store, tape, 2)
    await store.flush()
    log.fenced.add("tape")
    write(store, tape, 3)
    tape.finish("stop")
    await store.flush()
    assert (tape.last, len(tape.entries), tape.end) == (2, 2, None)
    assert len(log.known["tape"]) == 2
    await store.stop()


async def test_the_readers_of_a_fenced_tape_are_told_of_also_when_its_generation_has_ended() -> (
    None
):
    """Else its new writer takes it for left, pauses it, and cancels it in the end."""
    log = Log()
    store = await begun(log)
    tape = await added(store, "tape")
    tape.readers = 2
    write(store, tape, 2)
    await store.flush()
    log.fenced.add("tape")
    write(store, tape, 3)
    tape.finish("stop")
    store.finished(tape)
    await store.flush()
    async with asyncio.timeout(patience(10)):
        while not log.told:  # noqa: ASYNC110
            await asyncio.sleep(0)
    assert log.told == [("join", "tape", 2)]
    other = Tape("other", [])
    store.retention.add(other)
    store.retention.finished(other)
    assert store.retention.get("tape") is tape, "it goes on elsewhere"
    await store.stop()
