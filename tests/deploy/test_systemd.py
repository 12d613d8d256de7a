"""systemd reads the unit without a word, and thinks it well shut in."""

import re
import subprocess
from pathlib import Path

import pytest

from app.settings import Settings
from tests.deploy.tools import DEPLOY, complaints, tool
from tests.speed import patience

UNIT = DEPLOY / "systemd" / "tickertape.service"


def value(key: str) -> str:
    (found,) = re.findall(rf"^{key}=(.*)$", UNIT.read_text(), re.MULTILINE)
    return str(found)


def verified(folder: Path, unit: str) -> str:
    """What systemd says of a unit. That the program is not installed here is not its matter."""
    file = folder / "tickertape.service"
    program = "ExecStart=/opt/tickertape/.venv/bin/tickertape serve"
    assert program in unit
    file.write_text(unit.replace(program, "ExecStart=/bin/true serve"))
    # It ends with 0 when it has only warned, as of a key that it does not know.
    asked = [tool("systemd-analyze"), "verify", "--man=no", "--recursive-errors=no", str(file)]
    done = subprocess.run(asked, capture_output=True, text=True, timeout=patience(60))
    return done.stdout + done.stderr


def test_systemd_can_read_it(tmp_path: Path) -> None:
    assert verified(tmp_path, UNIT.read_text()) == ""


@pytest.mark.parametrize(
    ("right", "wrong"),
    [
        ("KillMode=mixed", "KillMode=gentle"),
        ("OOMPolicy=", "OOMPolitics="),
        ("TimeoutStopSec=45", "TimeoutStopSec=long"),
        ("[Service]", "[Sevrice]"),
    ],
)
def test_a_broken_unit_would_be_found(tmp_path: Path, right: str, wrong: str) -> None:
    unit = UNIT.read_text()
    assert right in unit
    assert verified(tmp_path, unit.replace(right, wrong))


def test_it_is_well_shut_in() -> None:
    """systemd's own measure, 0 to 10 (here times ten). A service without any of it has 9.6."""
    asked = ("security", "--offline=true", "--no-pager")
    assert complaints("systemd-analyze", *asked, "--threshold=20", UNIT) == ""
    assert "Overall exposure" in complaints("systemd-analyze", *asked, "--threshold=5", UNIT)


def test_it_does_not_take_away_what_is_needed() -> None:
    """Without /proc/cpuinfo there are no kernels; torch and ctypes write code that they run."""
    unit = re.sub(r"^#.*", "", UNIT.read_text(), flags=re.MULTILINE)
    assert "ProcSubset" not in unit
    assert "MemoryDenyWriteExecute" not in unit


def test_streams_may_end_before_it_is_killed() -> None:
    assert int(value("TimeoutStopSec")) > Settings.model_fields["shutdown_grace"].default + 10
    assert value("KillMode") == "mixed"
