"""A text that the model writes -> what is said in it, and the calls of tools.

The way of Hermes (Teknium et al. 2024), which Qwen and others are trained for: a call is

    <tool_call>
    {"name": "...", "arguments": {...}}
    </tool_call>

Models write other spellings, too. After `<tool_call>`, a JSON object with a `name` is a call:

- its keys come in any order, and other keys are left out;
- `parameters` is another name of `arguments`;
- no arguments, null and "" are {}; a string that holds an object is that object;
- {"function": {...}} is what it holds;
- `</tool_call>` may be missing, and brackets after the object are left out.

Whatever else there is, is text: Python's quotes, a list, a name that no tool can have. vLLM's
parser for Hermes (hermes_tool_parser.py) and SGLang's (qwen25_detector.py) read the body with
json.loads, too; SGLang takes `parameters` and calls without arguments.
"""

import json
import re
from collections.abc import Generator, Iterator
from dataclasses import dataclass
from enum import Enum, auto
from typing import Final

from model.protocol.messages import Conversation
from model.text.json_scanner import JSONScanner, LenientScanner, Stop

OPEN: Final = "<tool_call>"
CLOSE: Final = "</tool_call>"

MAX_HELD: Final = 1 << 14  # characters held back while they may be a call whose name is not known
_BLOCK: Final = 1 << 10  # characters read at a time: what is read again after a wrong head is short

_NAME = re.compile(r"[A-Za-z0-9_-]+")  # as a request's tools may have
_ARGUMENTS: Final = frozenset({"arguments", "parameters"})

# A raw line break cannot be in a JSON string, so a tag after one ends a call that was not closed.
_TAGS: Final = (f"\n{OPEN}", f"\n{CLOSE}")
_TAG = re.compile("|".join(_TAGS))
_AFTER_OBJECT = re.compile(r"[\s}\]]*")


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
_Rest = Generator[Piece, None, str]  # pieces, and the text that is still to be read


_CALLED: Final = "called_before"

# A conversation with a call, to see how a chat template writes one.
CALLING: Final = Conversation(
    [
        {"role": "user", "content": "How is the weather?"},
        {
            "role": "assistant",
            "content": "",
            "tool_calls": [
                {
                    "id": "call_0000",
                    "type": "function",
                    "function": {"name": _CALLED, "arguments": {"place": "Rome"}},
                }
            ],
        },
        {"role": "tool", "content": "Fine.", "tool_call_id": "call_0000"},
    ],
    {
        "tools": [
            {
                "type": "function",
                "function": {
                    "name": "a_tool",
                    "description": "",
                    "parameters": {"type": "object", "properties": {}},
                },
            }
        ]
    },
)


def mentioned(chat_template: str) -> bool:
    """Whether a chat template knows tools, and the tags of this way to call them."""
    return "tools" in chat_template and OPEN in chat_template


def is_ours(written: str) -> bool:
    """Whether a template that writes CALLING so has taught its model this way.

    Others have the same tags around something else (`<function=...>`, `<arg_key>`). A template that
    writes no calls is taken by its tags.
    """
    if _CALLED not in written:
        return True
    parser = ToolCallParser()
    pieces = [*parser.push(written), *parser.finish()]
    numbers = [p.number for p in pieces if isinstance(p, Called) and p.name == _CALLED]
    texts = [p.text for p in pieces if isinstance(p, Arguments) and p.number in numbers]
    return "".join(texts).replace(" ", "") == '{"place":"Rome"}'


class _State(Enum):
    TEXT = auto()
    HEAD = auto()  # after <tool_call>, until it is known whether it is a call
    ARGUMENTS = auto()  # of a call, told while they are written
    TAIL = auto()  # after them, until the call's object ends
    CLOSING = auto()  # after the object, until </tool_call> or something else


class ToolCallParser:
    """Text piece by piece -> what can be told already. What is no call after all is text.

    The pieces of a text are the same however it is cut. All of it is told but the calls' syntax,
    the blanks between calls, and those after the last.
    """

    def __init__(self) -> None:
        self._state = _State.TEXT
        self._unread = ""  # the beginning of a tag, perhaps
        self._held: list[str] = []  # what was read of a head or a tail
        self._num_held = 0  # characters of it
        self._blanks: list[str] = []  # after a call: told only if text follows
        self._after_call = False
        self._calls = 0
        self._object = JSONScanner()  # of the call
        self._arguments = LenientScanner()

    @property
    def num_calls(self) -> int:
        return self._calls

    def push(self, text: str) -> Iterator[Piece]:
        """Take more of the text."""
        for at in range(0, len(text), _BLOCK):
            yield from self._read(text[at : at + _BLOCK])

    def finish(self) -> Iterator[Piece]:
        """The text is over: a head that was held back was no call."""
        while self._state in (_State.HEAD, _State.TAIL):
            yield from self._read((yield from self._give_up("")))
        if self._state is _State.TEXT:
            yield from self._say(self._unread)
        elif self._state is _State.ARGUMENTS and self._unread:
            yield Arguments(self._calls - 1, self._unread)
        self._state, self._unread = _State.TEXT, ""

    def _read(self, text: str) -> Iterator[Piece]:
        rest, self._unread = self._unread + text, ""
        while rest:
            match self._state:
                case _State.TEXT:
                    rest = yield from self._read_text(rest)
                case _State.HEAD:
                    rest = yield from self._read_head(rest)
                case _State.ARGUMENTS:
                    rest = yield from self._read_arguments(rest)
                case _State.TAIL:
                    rest = yield from self._read_tail(rest)
                case _State.CLOSING:
                    rest = self._read_closing(rest)

    def _read_text(self, text: str) -> _Rest:
        said, opened, rest = text.partition(OPEN)
        if opened:
            self._state, self._object = _State.HEAD, JSONScanner(_ARGUMENTS)
        else:
            kept = _partial(said, OPEN)
            said, self._unread = said[: len(said) - kept], said[len(said) - kept :]
        yield from self._say(said)
        return rest

    def _say(self, text: str) -> Iterator[Piece]:
        if self._after_call:
            self._blanks.append(text)
            if not text or text.isspace():
                return
            text = "".join(self._blanks)
            self._blanks.clear()
            self._after_call = False
        if text:
            yield Said(text)

    def _read_head(self, text: str) -> _Rest:
        rest, stop = self._hold(text)
        head = "".join(self._held) if stop in (Stop.WATCHED, Stop.END) else ""
        if stop is Stop.WATCHED:
            self._object.watched = frozenset()
            if call := _call(head + "null}"):
                yield self._begin_call(call[0], _State.ARGUMENTS)
                self._arguments = LenientScanner()
                self._object.skip_value()
        elif stop is Stop.END and (call := _call(head)):
            yield self._begin_call(call[0], _State.CLOSING)
            yield Arguments(self._calls - 1, call[1])
        elif stop is not Stop.MORE:
            rest = yield from self._give_up(rest)
        return rest

    def _hold(self, text: str) -> tuple[str, Stop]:
        """Read on in the call's object; what was not read, and why."""
        room = MAX_HELD - self._num_held
        at, stop = self._object.read(text[:room])
        self._held.append(text[:at])
        self._num_held += at
        return text[at:], Stop.WRONG if stop is Stop.MORE and at == room else stop

    def _release(self) -> str:
        """What was held, which is held no longer."""
        held = "".join(self._held)
        self._held.clear()
        self._num_held = 0
        return held

    def _begin_call(self, name: str, state: _State) -> Called:
        self._state = state
        self._release()
        self._blanks.clear()
        self._after_call = True
        self._calls += 1
        return Called(self._calls - 1, name)

    def _give_up(self, rest: str) -> _Rest:
        """What is held is no part of a call: it is read again, as text."""
        rest = self._release() + rest
        if self._state is _State.HEAD:
            self._state = _State.TEXT
            yield from self._say(OPEN)
        else:
            self._state = _State.CLOSING
        return rest

    def _read_arguments(self, text: str) -> _Rest:
        tag = _TAG.search(text)
        end = tag.start() if tag else len(text) - max(_partial(text, word) for word in _TAGS)
        at, stop = self._arguments.read(text[:end])
        if at:
            yield Arguments(self._calls - 1, text[:at])
        if stop is Stop.MORE and not tag:
            self._unread = text[at:]
            return ""
        self._state = _State.TAIL if stop is Stop.END else _State.CLOSING
        return text[at:]

    def _read_tail(self, text: str) -> _Rest:
        rest, stop = self._hold(text)
        if stop is Stop.END:
            self._state = _State.CLOSING
            self._release()
        elif stop is not Stop.MORE:
            rest = yield from self._give_up(rest)
        return rest

    def _read_closing(self, text: str) -> str:
        found = _AFTER_OBJECT.match(text)
        at = found.end() if found else 0
        self._blanks += [character for character in text[:at] if character.isspace()]
        rest = text[at:]
        if rest.startswith(CLOSE):
            self._state = _State.TEXT
            self._blanks.clear()
            return rest[len(CLOSE) :]
        if CLOSE.startswith(rest):
            self._unread = rest
            return ""
        self._state = _State.TEXT
        return rest


def _call(text: str) -> tuple[str, str] | None:
    """Name and arguments of a call's object, these as JSON; None if it is no call."""
    try:
        call = json.loads(text)
        if isinstance(call.get("function"), dict):
            call = call["function"]
        name, arguments = call.get("name"), call.get("arguments")
        if arguments is None:
            arguments = call.get("parameters")
        if isinstance(arguments, str):
            arguments = json.loads(arguments or "null")
        written = json.dumps({} if arguments is None else arguments, allow_nan=False)
    except (ValueError, RecursionError):
        return None
    is_call = isinstance(name, str) and _NAME.fullmatch(name) and written.startswith("{")
    return (name, written) if is_call else None


def _partial(text: str, word: str) -> int:
    """Length of the longest end of `text` that is a proper beginning of `word`."""
    lengths = range(min(len(word) - 1, len(text)), 0, -1)
    return next((length for length in lengths if text.endswith(word[:length])), 0)
