"""A text that the model writes -> what is said in it, and the calls of tools.

The way of Hermes (Teknium et al. 2024), which Qwen and others are trained for: a call is

    <tool_call>
    {"name": "...", "arguments": {...}}
    </tool_call>
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from enum import Enum, auto
from typing import Final

OPEN: Final = "<tool_call>"
CLOSE: Final = "</tool_call>"

# Names as a request may have them, and no others: what follows must not depend on how it is cut.
_HEAD = re.compile(
    r'\s*\{\s*"name"\s*:\s*"([A-Za-z0-9_-]+)"\s*,\s*"(?:arguments|parameters)"\s*:\s*(?=\{)'
)


@dataclass(frozen=True, slots=True)
class Said:
    """Text outside of calls."""

    text: str


@dataclass(frozen=True, slots=True)
class Called:
    """A call begins; calls are numbered from 0."""

    number: int
    name: str


@dataclass(frozen=True, slots=True)
class Arguments:
    """More of a call's arguments: all pieces together are the JSON text of an object."""

    number: int
    text: str


Piece = Said | Called | Arguments


def understands(chat_template: str) -> bool:
    """Whether a model with this template is shown tools, and asked to call them in this way."""
    return "tools" in chat_template and OPEN in chat_template


class _State(Enum):
    TEXT = auto()
    HEAD = auto()  # after <tool_call>, until the arguments begin
    ARGUMENTS = auto()
    TAIL = auto()  # after them, until </tool_call>


class ToolCallParser:
    """Text piece by piece -> what can be told already. What is no call after all is text."""

    def __init__(self) -> None:
        self._state = _State.TEXT
        self._held = ""  # not told yet
        self._calls = 0
        self._after_call = False
        self._depth = 0
        self._in_string = False
        self._escaped = False

    @property
    def num_calls(self) -> int:
        return self._calls

    def push(self, text: str) -> Iterator[Piece]:
        """Take more of the text."""
        self._held += text
        while True:
            before = self._state, self._held
            yield from self._step()
            if (self._state, self._held) == before:
                return

    def finish(self) -> Iterator[Piece]:
        """The text is over: what was held back was no call."""
        opened = OPEN if self._state is _State.HEAD else ""
        if self._state in (_State.TEXT, _State.HEAD):
            yield from self._say(opened + self._held)
        self._held = ""

    def _step(self) -> Iterator[Piece]:
        match self._state:
            case _State.TEXT:
                yield from self._read_text()
            case _State.HEAD:
                yield from self._read_head()
            case _State.ARGUMENTS:
                yield from self._read_arguments()
            case _State.TAIL:
                self._skip_to_close()

    def _read_text(self) -> Iterator[Piece]:
        said, opened, rest = self._held.partition(OPEN)
        if opened:
            self._state = _State.HEAD
        else:
            kept = _partial(said, OPEN)
            said, rest = said[: len(said) - kept], said[len(said) - kept :]
            if self._after_call and said.isspace():  # another call may follow, or text
                return
        self._held = rest
        yield from self._say(said)

    def _say(self, text: str) -> Iterator[Piece]:
        if text and not (self._after_call and text.isspace()):  # blanks after calls say nothing
            self._after_call = False
            yield Said(text)

    def _read_head(self) -> Iterator[Piece]:
        if match := _HEAD.match(self._held):
            yield Called(self._calls, match[1])
            self._calls += 1
            self._state, self._held = _State.ARGUMENTS, self._held[match.end() :]
        elif CLOSE in self._held:  # whatever it is, it is no call
            said, _, rest = self._held.partition(CLOSE)
            self._state, self._held = _State.TEXT, rest
            yield from self._say(OPEN + said + CLOSE)

    def _read_arguments(self) -> Iterator[Piece]:
        end = self._end_of_object()
        text, self._held = self._held[:end], self._held[end:]
        if text:
            yield Arguments(self._calls - 1, text)

    def _end_of_object(self) -> int:
        """How far the object goes in what is held; moves on to the tail at its end."""
        for at, character in enumerate(self._held):
            if self._escaped:
                self._escaped = False
            elif self._in_string:
                self._escaped = character == "\\"
                self._in_string = character != '"'
            elif character == '"':
                self._in_string = True
            else:
                self._depth += (character in "{[") - (character in "}]")
                if not self._depth:
                    self._state = _State.TAIL
                    return at + 1
        return len(self._held)

    def _skip_to_close(self) -> None:
        _, closed, rest = self._held.partition(CLOSE)
        if closed:
            self._state, self._held, self._after_call = _State.TEXT, rest, True
        else:
            self._held = self._held[len(self._held) - _partial(self._held, CLOSE) :]


def _partial(text: str, word: str) -> int:
    """Length of the longest end of `text` that is a proper beginning of `word`."""
    lengths = range(min(len(word) - 1, len(text)), 0, -1)
    return next((length for length in lengths if text.endswith(word[:length])), 0)
