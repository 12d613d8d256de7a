"""How much one client may start, with a clock of its own."""

from dataclasses import dataclass

import pytest

from app.errors import APIError
from app.guard.rate_limits import Limits, parse_rates


@dataclass
class Clock:
    now: float = 0.0

    def __call__(self) -> float:
        return self.now


@dataclass
class Ending:
    end: object | None = None


def refused(limits: Limits, client: str = "", sequences: int = 1) -> APIError:
    with pytest.raises(APIError) as error, limits.begin(client, sequences):
        pass
    return error.value


def start(limits: Limits, client: str = "", sequences: int = 1) -> Ending:
    with limits.begin(client, sequences) as place:
        tape = Ending()
        place.hold(tape)
        return tape


def test_without_limits_everything_may_start() -> None:
    limits = Limits()
    for _ in range(1000):
        start(limits)


def test_a_window_moves_with_the_clock() -> None:
    clock = Clock()
    limits = Limits(parse_rates("3/minute"), clock=clock)
    for clock.now in (1000.0, 1010.0, 1020.0):
        start(limits, "alice")
    clock.now = 1030.5
    error = refused(limits, "alice")
    assert (error.status_code, error.code) == (429, "rate_limited")
    assert error.headers is not None
    assert error.headers["Retry-After"] == "30"
    start(limits, "bob")
    clock.now = 1060.0
    start(limits, "alice")
    refused(limits, "alice")


def test_of_several_rates_each_holds() -> None:
    clock = Clock()
    limits = Limits(parse_rates("2/second, 3/minute"), clock=clock)
    start(limits)
    start(limits)
    assert (refused(limits).headers or {})["Retry-After"] == "1"
    clock.now = 1.0
    start(limits)
    assert (refused(limits).headers or {})["Retry-After"] == "59"


def test_clients_without_keys_count_by_address() -> None:
    limits = Limits(parse_rates("1/minute"), at_once=1)
    tape = start(limits, client="10.0.0.1")
    start(limits, client="10.0.0.2")
    refused(limits, client="10.0.0.1")
    tape.end = "done"
    assert refused(limits, client="10.0.0.1").code == "rate_limited"


def test_a_place_is_free_when_its_tape_has_ended() -> None:
    limits = Limits(at_once=3)
    first, second = start(limits, "alice", sequences=2), start(limits, "alice")
    error = refused(limits, "alice")
    assert (error.status_code, error.code) == (429, "too_many_concurrent")
    assert "Retry-After" in (error.headers or {})
    start(limits, "bob")
    first.end = "done"
    start(limits, "alice", sequences=2)
    refused(limits, "alice")
    second.end = "done"
    start(limits, "alice")


def test_a_place_is_taken_before_its_tape_is_there_and_free_without_one() -> None:
    limits = Limits(at_once=1)
    with limits.begin("alice"):
        assert refused(limits, "alice").code == "too_many_concurrent"
    start(limits, "alice")


def test_what_can_never_run_is_not_asked_to_come_back() -> None:
    error = refused(Limits(at_once=2), sequences=3)
    assert (error.status_code, error.param) == (422, "n")


def test_what_is_refused_counts_for_nothing() -> None:
    clock = Clock()
    limits = Limits(parse_rates("1/minute"), at_once=1, clock=clock)
    tape = start(limits)
    for _ in range(10):
        refused(limits)
    tape.end = "done"
    clock.now = 60.0
    start(limits)


def test_clients_that_come_once_are_forgotten() -> None:
    clock = Clock()
    limits = Limits(parse_rates("1/second"), at_once=1, clock=clock)
    for number in range(10_000):
        clock.now = number / 100
        start(limits, client=str(number)).end = "done"
    assert len(limits._starts) <= 101
    assert len(limits._places) <= 2
