"""Lines that a person types: with editing and history on a terminal, plain elsewhere."""

import contextlib
import os
import sys
from pathlib import Path
from types import ModuleType

from app.cli.terminal import notes

_QUOTES = '"""'
_KEPT = 1000  # lines of history


class LineEditor:
    """Asks for messages. On a terminal the arrow keys edit, and go through earlier lines."""

    def __init__(self) -> None:
        self._readline = _readline() if _on_terminal() else None
        if self._readline:
            with contextlib.suppress(OSError):
                self._readline.read_history_file(_history())
            self._readline.set_history_length(_KEPT)

    def message(self, prompt: str) -> str:
        '''The next message: a line, or all lines between two """.

        Raises EOFError at the end of the input, KeyboardInterrupt at Ctrl-C.
        '''
        line = self._line(prompt)
        if not line.lstrip().startswith(_QUOTES):
            return line.strip()
        text = line.lstrip().removeprefix(_QUOTES)
        while not text.rstrip().endswith(_QUOTES):
            text += "\n" + self._line("...")
        return text.rstrip().removesuffix(_QUOTES).strip()

    def keep_history(self) -> None:
        """Write the lines to a file of this user's own, if there can be one."""
        if not self._readline:
            return
        path = _history()
        with contextlib.suppress(OSError):
            path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            path.touch(mode=0o600)
            self._readline.write_history_file(path)

    def _line(self, prompt: str) -> str:
        if self._readline:
            return input(_shown(prompt))
        notes.print(prompt, style="bold", markup=False, end=" ")
        try:
            return input()
        except RuntimeError:  # there is no stdin
            raise EOFError from None


def _on_terminal() -> bool:
    """Python edits lines where both are terminals."""
    return bool(sys.stdin and sys.stdout and sys.stdin.isatty() and sys.stdout.isatty())


def _readline() -> ModuleType | None:
    try:
        import readline  # where it is, input() uses it
    except ImportError:
        return None
    return readline


def _shown(prompt: str) -> str:
    """In bold. Between \\x01 and \\x02 is what takes no room: readline counts the columns."""
    if notes.no_color or notes.is_dumb_terminal:
        return f"{prompt} "
    return f"\x01\x1b[1m\x02{prompt}\x01\x1b[0m\x02 "


def _history() -> Path:
    state = os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state"
    return Path(state) / "tickertape" / "chat_history"
