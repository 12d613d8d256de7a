"""A program on a terminal of its own, driven as a person does: read, type, read."""

import contextlib
import os
import pty
import re
import select
import termios
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from tests.speed import patience

CTRL_C, CTRL_D, UP = "\x03", "\x04", "\x1b[A"

_ESCAPES = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")


@dataclass
class Terminal:
    """`shown` is all that it has shown, colours and the like left out."""

    pid: int
    descriptor: int
    shown: str = ""
    _raw: bytes = b""
    _read_to: int = 0

    def until(self, words: str) -> str:
        """What is shown from the last call up to `words`. Raises TimeoutError, EOFError."""
        while (found := self.shown.find(words, self._read_to)) < 0:
            if not self._more():
                raise EOFError(f"it ended, and never showed {words!r}:\n{self.shown}")
        begin, self._read_to = self._read_to, found + len(words)
        return self.shown[begin : self._read_to]

    def until_more_than(self, count: int) -> None:
        """Until so many characters are shown since the last call."""
        while len(self.shown) - self._read_to <= count:
            assert self._more(), self.shown

    def type(self, text: str) -> None:
        os.write(self.descriptor, text.encode())

    def enter(self, line: str) -> None:
        self.type(f"{line}\r")

    def interrupt_at_prompt(self, reaction: str) -> None:
        """Ctrl-C, again where readline was not yet listening: one in between its prompt and its
        wait is seen with the next key only."""
        self.type(CTRL_C)
        while reaction not in self.shown[self._read_to :]:
            if not self._more(0.5):
                self.type(CTRL_C)

    def interrupt_at_end(self) -> None:
        """Ctrl-C until it has ended."""
        with contextlib.suppress(OSError):
            while True:
                self.type(CTRL_C)
                if select.select([self.descriptor], [], [], 0.5)[0] and not self._more():
                    return

    def exit_code(self) -> int:
        """Once it has ended by itself."""
        while self._more():
            pass
        return os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])

    def _more(self, seconds: float | None = None) -> bool:
        """Read on; False at the end, or when nothing came in these seconds."""
        limit = patience(60) if seconds is None else seconds
        if not select.select([self.descriptor], [], [], limit)[0]:
            if seconds is None:
                raise TimeoutError(f"nothing more is shown:\n{self.shown}")
            return False
        try:
            data = os.read(self.descriptor, 4096)
        except OSError:  # the end of a terminal
            return False
        self._raw += data
        self.shown = _ESCAPES.sub("", self._raw.decode(errors="replace"))
        return bool(data)


@contextlib.contextmanager
def on_terminal(command: Sequence[str], environment: Mapping[str, str]) -> Iterator[Terminal]:
    """`command` on a terminal; it is hung up on at the end of the block."""
    pid, descriptor = pty.fork()
    if pid == 0:
        termios.tcsetwinsize(0, (24, 100))
        os.environ.update({"TERM": "xterm", **environment})
        os.execv(command[0], list(command))
    terminal = Terminal(pid, descriptor)
    try:
        yield terminal
    finally:
        os.close(descriptor)
        with contextlib.suppress(ChildProcessError, ProcessLookupError):
            if os.waitpid(pid, os.WNOHANG) == (0, 0):
                os.kill(pid, 9)
                os.waitpid(pid, 0)
