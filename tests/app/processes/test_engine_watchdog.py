"""What counts as hanging, look by look: no process and no clock."""

import os

import pytest

from app.processes import engine_watchdog
from app.processes.engine_watchdog import EngineWatchdog

PID = 4711


def looks(seconds: float, watchdog: EngineWatchdog) -> range:
    return range(round(seconds / watchdog.interval) + 2)


def test_an_engine_at_work_hangs_when_it_owes_a_report_for_too_long() -> None:
    watchdog = EngineWatchdog(10)
    silent = [watchdog.look_at_work(PID, 5, owes=True) for _ in looks(10, watchdog)]
    assert silent[-1] == "has not answered for 10 s"
    assert not any(silent[:-1])
    assert not any(watchdog.look_at_work(PID, n, owes=True) for n in looks(60, watchdog))
    assert not any(watchdog.look_at_work(PID, 5, owes=False) for _ in looks(60, watchdog))


def test_without_patience_it_may_be_silent_but_not_stop_loading(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    watchdog = EngineWatchdog(1e9)
    monkeypatch.setattr(engine_watchdog, "_processor_time", lambda pid: 0)
    assert not any(watchdog.look_at_work(PID, 5, owes=True) for _ in looks(600, watchdog))
    assert any(watchdog.look_at_load(PID) for _ in looks(15, watchdog))


def test_a_load_hangs_without_progress_and_the_next_has_twice_as_long(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    watchdog = EngineWatchdog(300)
    monkeypatch.setattr(engine_watchdog, "_processor_time", lambda pid: 0)
    for seconds in (15, 30, 60):
        watchdog.launched()
        told = [watchdog.look_at_load(PID + seconds) for _ in looks(seconds, watchdog)]
        assert told[-1] == f"has used no processor time for {seconds} s while it loads"
        assert not any(told[:-1])
    watchdog.look_at_work(PID, 1, owes=False)
    told = [watchdog.look_at_load(PID) for _ in looks(15, watchdog)]
    assert told[-1], "one that was ready counts for all before"


def test_a_load_that_computes_may_take_long_the_first_time_only(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    watchdog, used = EngineWatchdog(300), iter(range(1 << 20))
    monkeypatch.setattr(engine_watchdog, "_processor_time", lambda pid: next(used))
    assert not any(watchdog.look_at_load(PID) for _ in looks(30, watchdog))
    watchdog.look_at_work(PID, 1, owes=False)
    watchdog.launched()
    told = [watchdog.look_at_load(PID) for _ in looks(10 * 33, watchdog)]
    assert any(told)
    assert not any(told[: len(looks(290, watchdog))])


def test_progress_that_cannot_be_seen_counts_as_progress() -> None:
    watchdog = EngineWatchdog(300)
    assert not any(watchdog.look_at_load(-1) for _ in looks(600, watchdog))


def test_the_processor_time_of_a_process_grows_as_it_works() -> None:
    before = engine_watchdog._processor_time(os.getpid())
    while engine_watchdog._processor_time(os.getpid()) == before:
        pass
