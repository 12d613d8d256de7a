"""`make test` runs both of its halves, and fails if either does."""

import os
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
# Stands in for pytest: what it was called with, and failure where the half is named in $FAILING.
PYTEST = """\
#!/bin/sh
printf '%s\\n' "$*" >>"$CALLS"
case "$FAILING" in *alone*) alone=1 ;; esac
case "$FAILING" in *two*) two=1 ;; esac
case "$*" in *"not alone"*) exit ${two:-0} ;; *) exit ${alone:-0} ;; esac
"""


@pytest.mark.parametrize(
    ("failing", "said", "code"),
    [
        ("", "two at a time: passed; alone: passed", 0),
        ("two", "two at a time: FAILED; alone: passed", 2),
        ("alone", "two at a time: passed; alone: FAILED", 2),
        ("two alone", "two at a time: FAILED; alone: FAILED", 2),
    ],
)
def test_both_halves_run_and_are_reported(
    failing: str, said: str, code: int, tmp_path: Path
) -> None:
    pytest_ = tmp_path / "pytest"
    pytest_.write_text(PYTEST)
    pytest_.chmod(0o755)
    calls = tmp_path / "calls"
    done = subprocess.run(
        [
            *("make", "--no-print-directory", "-o", ".venv/.test", "test"),
            *(f"BIN={tmp_path}", "ARGS=-k 'a or b'"),
        ],
        cwd=ROOT,
        env=os.environ | {"CALLS": str(calls), "FAILING": failing, "MAKEFLAGS": ""},
        capture_output=True,
        text=True,
    )
    assert done.stdout.splitlines()[-1] == said
    assert done.returncode == code
    two, alone = calls.read_text().splitlines()
    assert "not alone and not long" in two
    assert "not alone" not in alone
    assert two.endswith(" -k a or b")
    assert alone.endswith(" -k a or b")
