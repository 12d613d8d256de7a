"""The link and an engine process that computes nothing: who gets what, and what when it dies."""

import asyncio
import contextlib
import math
import os
import resource
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from errno import EAGAIN, EMFILE, ENFILE, ENOMEM
from pathlib import Path

import psutil
import pytest

from app.processes.engine_client import EngineClient, EngineError, EngineFailedError, Event
from app.tapes.engine_recovery import EngineRecovery
from app.tapes.plan import Plan
from app.tapes.registry import Registry
from app.tapes.stores.memory import MemoryStore
from app.tapes.stores.retention import TapeRetention
from app.tapes.tape import Tape
from model.protocol.messages import Configure, Finished, Generate, Started, Token
from model.protocol.sampling_params import SamplingParams
from tests.speed import patience

OPTIONS = Configure("", "", 1, 1, None, 1)


class FakeLink(EngineClient):
    """Its engine gives every sequence 1000 tokens a second."""

    command = (sys.executable, "-m", "bench.api", "--engine", "--pace", "1000")


class BabblingLink(EngineClient):
    """Its engine sends what is no report."""

    script = """
import os, sys
peer = int(sys.argv[1])
os.read(peer, 1 << 16)
os.write(peer, bytes(64))
os.read(peer, 1)
"""
    command = (sys.executable, "-c", script)


class FaultyLink(EngineClient):
    """As FakeLink, but its engine sends what is no report at SIGUSR1."""

    command = (sys.executable, "-m", "tests.app.processes.faulty_engine")


@asynccontextmanager
async def started(
    kind: type[EngineClient] = FakeLink, patience: float = math.inf
) -> AsyncIterator[EngineClient]:
    link = kind(OPTIONS, patience)
    await link.start()
    await link.loaded()
    try:
        yield link
    finally:
        await link.stop()


def descriptors() -> int:
    return psutil.Process().num_fds()


async def tokens_of(link: EngineClient, name: str = "probe") -> int:
    events = [event async for event in link.generate(request(name, 3))]
    return sum(isinstance(event, Token) for event in events)


async def count(log: pytest.LogCaptureFixture, words: str, times: int) -> None:
    """Wait until the log has said so that often."""
    while log.text.count(words) < times:  # noqa: ASYNC110
        await asyncio.sleep(0.01)


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
    async with asyncio.timeout(patience(20)), started() as link:
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
    async with asyncio.timeout(patience(20)), started() as link:
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
    async with asyncio.timeout(patience(20)), started() as link:
        assert len([event async for event in link.generate(request("a", 3))]) == 5
        events = link.generate(request("b", 1 << 20))
        await anext(events)
        await events.aclose()
        assert len([event async for event in link.generate(request("c", 3))]) == 5
        assert link.gauges.running == 0


async def test_when_the_engine_dies_everybody_is_told_once_and_another_comes() -> None:
    async with asyncio.timeout(patience(20)), started() as link:
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


async def test_an_engine_that_babbles_at_its_first_start_is_given_up() -> None:
    link = BabblingLink(OPTIONS)
    await link.start()
    with pytest.raises(EngineFailedError, match="it sent what is no report"):
        async with asyncio.timeout(patience(20)):
            await link.loaded()
    await link.stop()


async def test_an_engine_that_babbles_later_is_replaced() -> None:
    async with asyncio.timeout(patience(20)), started(FaultyLink) as link:
        inbox, pid = Inbox(), link.pid
        link.submit(request("a", 1 << 20), inbox.put_nowait)
        await inbox.until(Token)
        os.kill(pid or 0, signal.SIGUSR1)
        *_, lost = await inbox.until(EngineError)
        assert "no report" in str(lost)
        await link.loaded()
        assert link.pid != pid
        assert await tokens_of(link) == 3


async def test_a_sink_that_raises_ends_its_own_sequence_only() -> None:
    """At any of its events; the last that it gets is a Finished with an error."""
    async with asyncio.timeout(patience(20)), started() as link:
        pid, other = link.pid, Inbox()
        link.submit(request("other", 1 << 20), other.put_nowait)
        for kind in (Started, Token, Finished):
            heard: list[Event | EngineError] = []

            def spoilt(event: Event | EngineError, kind: type = kind, heard: list = heard) -> None:
                heard.append(event)
                if type(event) is kind:
                    raise KeyError(":again")

            link.submit(request(f"bad {kind.__name__}", 3), spoilt)
            await other.until(Token)
            assert await tokens_of(link) == 3
            await asyncio.sleep(0)
            while not heard or not isinstance(heard[-1], Finished):  # noqa: ASYNC110
                await asyncio.sleep(0.001)
            assert heard[-1].reason == ("length" if kind is Finished else "error")
            assert sum(isinstance(event, kind) for event in heard) == 1
        while link.gauges.running > 1:  # noqa: ASYNC110
            await asyncio.sleep(0.001)
        assert other.qsize() or await other.until(Token)
        assert (link.pid, link.restarts, link.failure.done()) == (pid, 0, False)


async def test_a_sink_that_raises_at_the_death_of_the_engine_keeps_nobody_from_the_next() -> None:
    class Deaf:
        def engine_died(self, *, crashed: bool) -> None:
            raise RuntimeError("died")

        def engine_ready(self) -> None:
            raise RuntimeError("ready")

    def spoilt(event: Event | EngineError) -> None:
        if isinstance(event, EngineError):
            raise RuntimeError("lost")

    def uncounted(tokens: int) -> None:
        raise RuntimeError("iteration")

    async with asyncio.timeout(patience(20)), started() as link:
        link.watcher, link.on_iteration, inbox = Deaf(), uncounted, Inbox()
        link.submit(request("bad", 1 << 20), spoilt)
        link.submit(request("good", 1 << 20), inbox.put_nowait)
        await inbox.until(Token)
        os.kill(link.pid or 0, signal.SIGKILL)
        await inbox.until(EngineError)
        await link.loaded()
        assert await tokens_of(link) == 3
        assert not link.failure.done()


FAULTS = [OSError(number, os.strerror(number)) for number in (EMFILE, ENFILE, ENOMEM, EAGAIN)]


@pytest.mark.parametrize("call", ["socket.socketpair", "asyncio.create_subprocess_exec"])
@pytest.mark.parametrize("fault", [*FAULTS, MemoryError()], ids=repr)
@pytest.mark.parametrize("first", [True, False], ids=["first", "later"])
async def test_a_launch_that_fails_is_tried_again(
    call: str, fault: Exception, first: bool, caplog: pytest.LogCaptureFixture
) -> None:
    def fails(*_: object, **__: object) -> None:
        raise fault

    async with asyncio.timeout(patience(30)):
        link = FakeLink(OPTIONS)
        if not first:
            await link.start()
            await link.loaded()
        before = descriptors()
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(f"app.processes.child_process.{call}", fails)
            if first:
                await link.start()
            else:
                os.kill(link.pid or 0, signal.SIGKILL)
            await count(caplog, "the engine process cannot be started", 3)
            assert link.state == ("loading" if first else "recovering")
            assert descriptors() <= before
        await link.loaded()
        assert await tokens_of(link) == 3
        await link.stop()
        assert not link.failure.done()


async def test_without_descriptors_it_goes_on_trying(caplog: pytest.LogCaptureFixture) -> None:
    """The real limit: a socket pair and the pipes of a fork fail, each at its own descriptor."""
    async with asyncio.timeout(patience(60)), started() as link:
        limits = resource.getrlimit(resource.RLIMIT_NOFILE)
        for free in range(4):  # more are enough
            await link.loaded()
            caplog.clear()
            held: list[int] = []
            try:
                resource.setrlimit(resource.RLIMIT_NOFILE, (512, limits[1]))
                with contextlib.suppress(OSError):
                    while True:
                        held.append(os.open(os.devnull, os.O_RDONLY))
                for _ in range(free):
                    os.close(held.pop())
                os.kill(link.pid or 0, signal.SIGKILL)
                await count(caplog, "the engine process cannot be started", 2)
            finally:
                resource.setrlimit(resource.RLIMIT_NOFILE, limits)
                for descriptor in held:
                    os.close(descriptor)
        await link.loaded()
        assert await tokens_of(link) == 3


async def test_a_first_launch_that_can_never_succeed_is_a_failure(tmp_path: Path) -> None:
    class Nothing(EngineClient):
        command = (str(tmp_path / "nothing"),)

    link = Nothing(OPTIONS)
    await link.start()
    with pytest.raises(EngineFailedError, match=r"cannot be started: .*No such file"):
        await link.loaded()
    await link.stop()


async def test_an_engine_that_stops_while_it_loads_is_replaced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first of all, and one that follows another."""
    stop_at = tmp_path / "stop"
    monkeypatch.setenv("STOP_AT_LOAD", str(stop_at))
    async with asyncio.timeout(patience(60)):
        stop_at.touch()
        async with started(FaultyLink, patience=0.5) as link:
            assert not stop_at.exists(), "the first engine has stopped itself"
            assert link.restarts == 1
            stop_at.touch()
            os.kill(link.pid or 0, signal.SIGKILL)
            while link.restarts < 3:  # noqa: ASYNC110
                await asyncio.sleep(0.01)
            await link.loaded()
            assert await tokens_of(link) == 3


@pytest.mark.parametrize("number", [signal.SIGSTOP, signal.SIGKILL], ids=["stopped", "killed"])
async def test_stop_ends_an_engine_in_any_state(number: signal.Signals) -> None:
    async with asyncio.timeout(patience(20)), started() as link:
        pid = link.pid or 0
        os.kill(pid, number)
        await link.stop()
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)


async def test_a_tape_that_cannot_be_written_ends_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    def spoilt(tape: Tape, event: Event, index: int) -> None:
        raise RuntimeError("no room")

    params = SamplingParams(max_tokens=1 << 20, seed=0)
    async with asyncio.timeout(patience(20)), started() as link:
        registry = Registry(
            EngineRecovery(link), MemoryStore(TapeRetention(ttl=300, budget=1 << 20)), 1 << 20
        )
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
