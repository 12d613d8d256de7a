"""Time limits follow the speed of the machine, and see a core that others keep busy."""

import subprocess
import sys
from collections.abc import Iterator

import pytest

from tests import speed


@pytest.fixture(autouse=True)
def _forget() -> Iterator[None]:
    """What a test measures stays its own."""
    speed.slowness.cache_clear()
    yield
    speed.slowness.cache_clear()


def test_a_limit_is_never_shorter_than_written(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(speed, "samples", lambda: [speed.REFERENCE / 10])
    monkeypatch.delenv(speed.VARIABLE)
    assert speed.patience(10) == 10 * speed.SLACK


def test_the_slowest_sample_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    found = [speed.REFERENCE, 4 * speed.REFERENCE]
    monkeypatch.setattr(speed, "samples", lambda: found)
    monkeypatch.delenv(speed.VARIABLE)
    assert speed.patience(10) == 40 * speed.SLACK
    found.append(9 * speed.REFERENCE)
    assert speed.patience(10) == 40 * speed.SLACK, "measured once"


def test_every_process_of_a_run_has_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(speed.VARIABLE, "3.0")
    code = "from tests.speed import slowness; print(slowness())"
    assert subprocess.check_output([sys.executable, "-c", code], text=True) == "3.0\n"
