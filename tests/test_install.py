"""scripts/install.py says what pip fetches, and how large it is."""

import subprocess
import sys
from pathlib import Path

import pytest

from tests.terminal import on_terminal

SCRIPT = Path(__file__).parents[1] / "scripts" / "install.py"
# Stands in for pip, as the first `pip` on the path of modules.
PIP = """\
import sys
print("Collecting torch==2.13.0")
print("  Downloading torch-2.13.0-cp311-cp311-linux_x86_64.whl (192.0 MB)")
print("  Downloading small-1.0-py3-none-any.whl (12 kB)")
print("  Downloading some-1.0.whl.metadata (30.0 MB)")
print("Installing collected packages: small, torch")
if "fails" in sys.argv:
    sys.exit("ERROR: there is no room")
print("Successfully installed small-1.0 torch-2.13.0")
"""


@pytest.fixture
def stub(tmp_path: Path) -> dict[str, str]:
    (tmp_path / "pip").mkdir()
    (tmp_path / "pip" / "__init__.py").touch()
    (tmp_path / "pip" / "__main__.py").write_text(PIP)
    return {"PYTHONPATH": str(tmp_path)}


def install(stub: dict[str, str], *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, SCRIPT, "1/3 torch", "install", *arguments],
        env=stub,
        capture_output=True,
        text=True,
        check=False,
    )


def test_elsewhere_large_downloads_have_a_line(stub: dict[str, str]) -> None:
    done = install(stub, "torch")
    first, fetching, last = done.stdout.splitlines()
    assert first == "1/3 torch"
    assert fetching == "  fetching torch 2.13.0, 192.0 MB"
    assert last.startswith("  2 packages installed; ")
    assert done.returncode == 0


def test_on_a_terminal_one_line_is_rewritten(stub: dict[str, str]) -> None:
    command = [sys.executable, str(SCRIPT), "1/3 torch", "install", "torch"]
    with on_terminal(command, stub) as terminal:
        terminal.until("2 packages installed")
        assert terminal.exit_code() == 0
        assert terminal.shown.count("\n") == 2


def test_what_pip_says_is_shown_when_it_fails(stub: dict[str, str]) -> None:
    done = install(stub, "fails")
    assert done.returncode == 1
    assert "ERROR: there is no room" in done.stdout
