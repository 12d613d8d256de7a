"""The tools that judge what is in deploy/: where they are, and how they are asked."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.speed import patience

ROOT = Path(__file__).parents[2]
DEPLOY = ROOT / "deploy"

# Debian keeps nginx where only root's PATH leads.
_PATH = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"], "/usr/sbin"])


def tool(name: str) -> str:
    """The program's path. Skips the test where it is missing and cannot be installed unasked."""
    if path := shutil.which(name, path=_PATH):
        return path
    missing = f"{name} is missing: run scripts/install-ops-tools.sh as root on Debian"
    if os.geteuid() == 0 and shutil.which("apt-get"):
        pytest.fail(missing)
    pytest.skip(missing)


def complaints(name: str, *arguments: object, cwd: Path = ROOT) -> str:
    """What the tool says against it, or "" when it has nothing to say against it."""
    command = [tool(name), *map(str, arguments)]
    done = subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=patience(60))
    said = done.stdout + done.stderr
    return said or f"exit code {done.returncode}" if done.returncode else ""
