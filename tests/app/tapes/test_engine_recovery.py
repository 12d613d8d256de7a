"""Who is handed to the next engine, in what order, and who is to blame: no process, no clock."""

import random
from collections.abc import Callable
from typing import Any, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.processes.engine_client import EngineClient, EngineError, EngineWatcher, Event, Sink
from app.tapes.engine_recovery import EngineRecovery
from app.tapes.tape import Choice, Recovering, Tape
from model.protocol.messages import Finished, Generate, Queued, Started, Token
from model.protocol.sampling_params import SamplingParams

LENGTH = 6


class Engine:
    """A link and the engine behind it: a token for each of its sequences per step.

    Token n of every sequence is n. A sequence in `deadly` kills it in the step that would give
    that token, and nobody gets any.
    """

    watcher: EngineWatcher | None = None

    def __init__(self, seats: int = 1000) -> None:
        self.is_up = True
        self.seats = seats
        self.deadly: dict[str, int] = {}
        self.has: dict[str, tuple[Generate, Sink]] = {}
        self.made: dict[str, int] = {}
        self.once: dict[str, bool] = {}
        self.paused: set[str] = set()
        self.crashes = 0

    def submit(self, request: Generate, sink: Sink) -> None:
        assert self.is_up
        assert request.id not in self.has
        assert request.output_ids == list(range(len(request.output_ids)))
        self.has[request.id] = request, sink
        self.made[request.id] = len(request.output_ids)
        self.once[request.id] = request.pause_after_one

    def cancel(self, request_id: str) -> None:
        self.has.pop(request_id, None)
        self.paused.discard(request_id)

    def pause(self, request_id: str) -> None:
        assert request_id in self.has
        self.once[request_id] = False
        self.paused.add(request_id)

    def unpause(self, request_id: str) -> None:
        self.paused.remove(request_id)

    def step(self) -> None:
        going = [id for id in self.has if id not in self.paused]
        seated, waiting = going[: self.seats], going[self.seats :]
        if any(self.deadly.get(id) == self.made[id] for id in seated):
            self.crashes += 1
            self.die(crashed=True)
            return
        for place, id in enumerate(waiting, start=1):
            self.has[id][1](Queued(id, place))
        for id in seated:
            self._advance(id)

    def _advance(self, id: str) -> None:
        request, sink = self.has[id]
        sink(Started(id, 0.0, 0))
        self.made[id] += 1
        if self.once.pop(id, False):
            self.paused.add(id)
        sink(Token(id, self.made[id] - 1, "x"))
        if self.made[id] == request.params.max_tokens:
            del self.has[id]
            sink(Finished(id, "length"))

    def die(self, *, crashed: bool) -> None:
        assert self.watcher
        self.is_up = False
        lost, self.has, self.paused = self.has, {}, set()
        for _, sink in lost.values():
            sink(EngineError("gone"))
        self.watcher.engine_died(crashed=crashed)

    def come_back(self) -> None:
        assert self.watcher
        if not self.is_up:
            self.is_up = True
            self.watcher.engine_ready()


class House:
    """A recovery over such an engine, and the tapes of sequences 0, 1, 2 ..."""

    def __init__(self, seats: int = 1000) -> None:
        self.engine = Engine(seats)
        self.recovery = EngineRecovery(cast(EngineClient, self.engine))
        self.tapes: dict[str, Tape] = {}

    def start(self, count: int = 1) -> list[Tape]:
        return [self._start(str(len(self.tapes))) for _ in range(count)]

    def _start(self, name: str) -> Tape:
        tape = self.tapes[name] = Tape(name, [Choice(1)])
        params = SamplingParams(max_tokens=LENGTH, seed=0)
        self.recovery.submit(Generate(name, [1], params), tape, tape.choices[0], recorder(tape))
        return tape

    def run(self) -> None:
        """Until all that is not paused has ended."""
        for _ in range(100 * (1 + len(self.tapes))):
            self.engine.come_back()
            if not self.engine.has.keys() - self.engine.paused:
                return
            self.engine.step()
        raise AssertionError("it does not end")

    def reasons(self) -> list[str | None]:
        return [tape.end and tape.end.finish_reason for tape in self.tapes.values()]


def recorder(tape: Tape) -> Callable[[Event], None]:
    def record(event: Event) -> None:
        assert not tape.end, "nothing comes after the end"
        tape.record(event)

    return record


def complete(tape: Tape) -> bool:
    return tape.choices[0].output_ids.tolist() == list(range(LENGTH)) and tape.end is not None


def test_a_killed_engine_loses_nothing_however_often() -> None:
    house = House()
    house.start(3)
    for _ in range(10):
        house.engine.die(crashed=False)
        assert all(tape.progress == Recovering() for tape in house.tapes.values())
        house.engine.come_back()
        assert len(house.engine.has) == 3, "all at once"
    assert house.recovery.num_continued == 30
    house.run()
    assert all(complete(tape) for tape in house.tapes.values())


@pytest.mark.parametrize("neighbours", [0, 1, 31])
@pytest.mark.parametrize("token", [0, 3])
def test_who_kills_it_twice_fails_alone(neighbours: int, token: int) -> None:
    house = House()
    tapes = house.start(neighbours + 1)
    guilty = tapes[neighbours // 2]
    house.engine.deadly[guilty.id] = token
    house.run()
    assert guilty.end
    assert guilty.end.finish_reason == "error"
    assert "died twice" in (guilty.end.error or "")
    assert guilty.choices[0].output_ids.tolist() == list(range(token))
    assert all(complete(tape) for tape in tapes if tape is not guilty)
    assert house.engine.crashes == 2


def test_two_that_kill_it_fail_both_and_the_rest_goes_on() -> None:
    house = House()
    house.start(8)
    house.engine.deadly |= {"2": 2, "5": 2}
    house.run()
    assert [reason == "error" for reason in house.reasons()] == [
        number in (2, 5) for number in range(8)
    ]
    assert house.engine.crashes == 3


def test_who_waits_for_a_seat_is_no_suspect() -> None:
    house = House(seats=2)
    house.start(6)
    house.engine.deadly["1"] = 2
    house.run()
    assert house.reasons().count("error") == 1
    assert house.engine.crashes == 2


def test_a_newcomer_waits_while_the_lost_are_tried() -> None:
    house = House()
    house.start(3)
    house.engine.deadly["0"] = 1
    house.engine.step()
    house.engine.step()
    house.engine.come_back()
    (newcomer,) = house.start()
    assert list(house.engine.has) == ["0"]
    house.run()
    assert complete(newcomer)
    assert house.reasons() == ["error", "length", "length", "length"]


def test_the_paused_are_lost_too_and_go_on_when_they_are_read() -> None:
    house = House()
    paused, other = house.start(2)
    house.engine.step()
    house.recovery.pause(paused.id)
    house.engine.die(crashed=False)
    house.run()
    assert complete(other)
    assert len(paused.choices[0].output_ids) == 1
    assert paused.progress is None
    assert house.recovery.num_continued == 1
    house.recovery.unpause(paused.id)
    house.run()
    assert complete(paused)
    assert house.recovery.num_continued == 2


def test_pausing_and_cancelling_while_no_engine_is_there() -> None:
    house = House()
    cancelled, paused, other = house.start(3)
    house.engine.step()
    house.engine.die(crashed=True)
    house.recovery.cancel(cancelled.id)
    house.recovery.pause(paused.id)
    house.recovery.unpause(paused.id)
    house.recovery.pause(paused.id)
    house.run()
    assert complete(other)
    assert (len(cancelled.choices[0].output_ids), len(paused.choices[0].output_ids)) == (1, 1)
    house.recovery.unpause(paused.id)
    house.run()
    assert complete(paused)


def test_the_one_on_trial_may_leave() -> None:
    for leave in (EngineRecovery.cancel, EngineRecovery.pause):
        house = House()
        house.start(3)
        house.engine.step()
        house.engine.die(crashed=True)
        house.engine.come_back()
        assert list(house.engine.has) == ["0"]
        leave(house.recovery, "0")
        assert "1" in house.engine.has
        house.run()
        assert house.reasons()[1:] == ["length", "length"]


@pytest.mark.parametrize("crashed", [False, True])
@pytest.mark.parametrize("call", ["announce", "submit"])
def test_a_tape_that_cannot_go_on_keeps_no_other_from_it(
    call: str, crashed: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither when the engine has died, nor when the next one is handed its sequences."""
    house = House()
    first, bad, last = house.start(3)
    house.engine.step()
    announce, submit = Tape.announce, house.engine.submit

    def announcing(tape: Tape, progress: Any) -> None:
        if tape is bad:
            raise RuntimeError("no reader can be told")
        announce(tape, progress)

    def submitting(request: Generate, sink: Sink) -> None:
        if request.id == bad.id:
            raise OverflowError("cannot be packed")
        submit(request, sink)

    if call == "announce":
        monkeypatch.setattr(Tape, "announce", announcing)
    else:
        monkeypatch.setattr(house.engine, "submit", submitting)
    house.engine.die(crashed=crashed)
    house.run()
    assert complete(first)
    assert complete(last)
    assert bad.end
    assert bad.end.finish_reason == "error"
    house.recovery.pause(bad.id)
    house.recovery.unpause(bad.id)


@given(st.randoms(use_true_random=False), st.integers(1, 4))
def test_whatever_happens_the_innocent_get_every_token_once(
    draw: random.Random, seats: int
) -> None:
    house = House(seats)
    away: set[str] = set()  # cancelled
    for _ in range(60):
        alive = [name for name, tape in house.tapes.items() if not tape.end and name not in away]
        name = draw.choice(alive) if alive else None
        match draw.randrange(7):
            case 0 if len(house.tapes) < 12:
                house.start()
                if draw.random() < 0.2:
                    house.engine.deadly[str(len(house.tapes) - 1)] = draw.randrange(LENGTH)
            case 1 if house.engine.is_up:
                house.engine.die(crashed=False)
            case 2 if name and not house.tapes[name].paused:
                house.tapes[name].paused = True
                house.recovery.pause(name)
            case 3 if name and house.tapes[name].paused:
                house.tapes[name].paused = False
                house.recovery.unpause(name)
            case 4 if name and draw.random() < 0.3:
                house.recovery.cancel(name)
                away.add(name)
            case _ if house.engine.is_up:
                house.engine.step()
            case _:
                house.engine.come_back()
    for name, tape in house.tapes.items():
        if tape.paused and not tape.end and name not in away:
            tape.paused = False
            house.recovery.unpause(name)
    house.run()
    for name, tape in house.tapes.items():
        if name in away:
            continue
        if name in house.engine.deadly:
            assert tape.end
        else:
            assert complete(tape), name
