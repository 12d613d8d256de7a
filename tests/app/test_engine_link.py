"""The link and an engine process that computes nothing: who gets what, and what when it dies."""

import asyncio
import os
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from app.engine_link import EngineError, EngineFailedError, EngineLink, Event
from app.tapes.memory import MemoryStore
from app.tapes.plan import Plan
from app.tapes.recovery import Recovery
from app.tapes.registry import Registry
from app.tapes.shelf import Shelf
from app.tapes.tape import Tape
from model.messages import Configure, Finished, Generate, Started, Token
from model.sampling import SamplingParams

OPTIONS = Configure("", "", 1, 1, None, 1)


class FakeLink(EngineLink):
    """Its engine gives every sequence 1000 tokens a second."""

    command = (sys.executable, "-m", "bench.api", "--engine", "--pace", "1000")


class BabblingLink(EngineLink):
    """Its engine sends what is no report."""

    command = (sys.executable, "-c", "import os, sys; os.write(int(sys.argv[1]), bytes(64))")


@asynccontextmanager
async def started() -> AsyncIterator[EngineLink]:
    link = FakeLink(OPTIONS)
    await link.start()
    await link.loaded()
    try:
        yield link
    finally:
        await link.stop()


def request(name: str, tokens: int) -> Generate:
    return Generate(name, [1, 2, 3], SamplingParams(max_tokens=tokens, seed=0))


class Inbox(asyncio.Queue[Event | EngineError]):
    async def until(self, kind: type[Event | EngineError]) -> list[Event | EngineError]:
        """Everything up to the first of that kind."""
        events = [await self.get()]
        while not isinstance(events[-1], kind):
            events.append(await self.get())
        return events


async def test_each_sink_gets_its_own_in_order_and_nothing_after_the_end() -> None:
    async with asyncio.timeout(20), started() as link:
        inboxes = {name: Inbox() for name in "abc"}
        for number, (name, inbox) in enumerate(inboxes.items()):
            link.submit(request(name, 5 + number), inbox.put_nowait)
        for number, (name, inbox) in enumerate(inboxes.items()):
            events = await inbox.until(Finished)
            kinds = [type(event) for event in events]
            assert kinds == [Started, *[Token] * (5 + number), Finished]
            assert {getattr(event, "id", None) for event in events} == {name}
        assert all(inbox.empty() for inbox in inboxes.values())


async def test_a_cancelled_sequence_says_nothing_more() -> None:
    async with asyncio.timeout(20), started() as link:
        cancelled, other = Inbox(), Inbox()
        link.submit(request("a", 1 << 20), cancelled.put_nowait)
        await cancelled.until(Token)
        link.cancel("a")
        link.cancel("a")
        heard = cancelled.qsize()
        link.submit(request("b", 5), other.put_nowait)
        await other.until(Finished)
        assert cancelled.qsize() == heard
        assert link.gauges.running == 0


async def test_closing_the_generator_cancels_and_reading_it_out_does_not() -> None:
    async with asyncio.timeout(20), started() as link:
        assert len([event async for event in link.generate(request("a", 3))]) == 5
        events = link.generate(request("b", 1 << 20))
        await anext(events)
        await events.aclose()
        assert len([event async for event in link.generate(request("c", 3))]) == 5
        assert link.gauges.running == 0


async def test_when_the_engine_dies_everybody_is_told_once_and_another_comes() -> None:
    async with asyncio.timeout(20), started() as link:
        inbox, pid = Inbox(), link.pid
        link.submit(request("a", 1 << 20), inbox.put_nowait)
        await inbox.until(Token)
        os.kill(pid or 0, signal.SIGKILL)
        await inbox.until(EngineError)
        link.submit(request("b", 1), inbox.put_nowait)
        assert isinstance(inbox.get_nowait(), EngineError), "at once, and not when it is back"
        await link.loaded()
        assert link.pid != pid
        link.submit(request("c", 3), inbox.put_nowait)
        assert len(await inbox.until(Finished)) == 5


async def test_an_engine_that_babbles_is_given_up() -> None:
    link = BabblingLink(OPTIONS)
    await link.start()
    with pytest.raises(EngineFailedError, match="the engine was lost"):
        async with asyncio.timeout(20):
            await link.loaded()
    await link.stop()


async def test_a_tape_that_cannot_be_written_ends_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    def spoilt(tape: Tape, event: Event, index: int) -> None:
        raise RuntimeError("no room")

    params = SamplingParams(max_tokens=1 << 20, seed=0)
    async with asyncio.timeout(20), started() as link:
        registry = Registry(Recovery(link), MemoryStore(Shelf(ttl=300, budget=1 << 20)), 1 << 20)
        good, bad = [await registry.create(Plan([[1]], params)) for _ in range(2)]
        record = Tape.record
        monkeypatch.setattr(
            Tape, "record", lambda tape, *event: (spoilt if tape is bad else record)(tape, *event)
        )
        assert (await bad.ended()).finish_reason == "error"
        async for _ in good.read():
            break
        assert good.end is None
        assert registry.num_active == 1
        registry.close()
        assert (await good.ended()).finish_reason == "shutdown"
        assert registry.num_active == 0
