"""A JSON object (RFC 8259) read in pieces, as a model writes it: where it ends, or cannot go on.

Every character is looked at once, however the text is cut. Of what was read, only the open brackets
and one key are kept.
"""

import re
from enum import Enum, auto
from typing import Final

_BLANKS: Final = " \t\n\r"
_CLOSING: Final = {"{": "}", "[": "]"}


class Stop(Enum):
    """Why a scanner stopped."""

    MORE = auto()  # the text ended before the object did
    END = auto()  # the object ended
    WRONG = auto()  # the next character cannot follow
    WATCHED = auto()  # the next character opens an object, the value of a watched key


class _State(Enum):
    VALUE = auto()
    ITEM = auto()  # a value, or the end of the list
    KEY = auto()
    FIRST_KEY = auto()  # a key, or the end of the object
    COLON = auto()
    COMMA = auto()  # or a closing bracket
    STRING = auto()
    ESCAPE = auto()
    WORD = auto()  # a number, true, false or null
    END = auto()


class JSONScanner:
    """Reads one object. Whether a word is JSON, only its first character tells here."""

    _string = re.compile(r'[^"\\\x00-\x1f]*')
    _word = re.compile(r"[-+.0-9A-Za-z]*")
    _begins_word = re.compile(r"[-0-9tfn]")
    _after_comma = _State.VALUE, _State.KEY

    def __init__(self, watched: frozenset[str] = frozenset()) -> None:
        """`watched`: keys of the outermost object before whose values `read` stops."""
        self.watched = watched
        self._key = ""  # the last of the outermost object
        self._closing: list[str] = []
        self._state = _State.VALUE
        self._next = _State.COMMA  # after a string or a word

    def read(self, text: str) -> tuple[int, Stop]:
        """Read on; returns how many characters of `text` were read, and why not more."""
        at = 0
        while at < len(text):
            if self._state in (_State.STRING, _State.ESCAPE, _State.WORD):
                end = self._read_run(text, at)
                if end == at and self._state is _State.STRING:
                    return at, Stop.WRONG
                at = end
                continue
            if text[at] == "{" and self._at_watched():
                return at, Stop.WATCHED
            if text[at] not in _BLANKS and not self._take(text[at]):
                return at, Stop.WRONG
            at += 1
            if self._state is _State.END:
                return at, Stop.END
        return at, Stop.MORE

    def skip_value(self) -> None:
        """The value that would come next was read elsewhere."""
        self._state = _State.COMMA

    def _at_watched(self) -> bool:
        return self._state is _State.VALUE and len(self._closing) == 1 and self._key in self.watched

    def _read_run(self, text: str, at: int) -> int:
        """A run of one string's or word's characters, or what ends it; where the run ends."""
        if self._state is _State.WORD:
            end = _end(self._word, text, at)
            if end < len(text):
                self._state = self._next
            return end
        if self._state is _State.ESCAPE:
            self._state, end = _State.STRING, at + 1
        elif text[at] == '"':
            self._state = self._next
            return at + 1
        elif text[at] == "\\":
            self._state, end = _State.ESCAPE, at + 1
        else:
            end = _end(self._string, text, at)
        if self._next is _State.COLON and len(self._closing) == 1:
            self._key += text[at:end]
        return end

    def _take(self, character: str) -> bool:
        """A character between strings and words; False if it cannot follow."""
        match self._state:
            case _State.VALUE | _State.ITEM:
                return self._begin_value(character)
            case _State.KEY | _State.FIRST_KEY:
                return self._begin_key(character)
            case _State.COLON:
                self._state = _State.VALUE
                return character == ":"
            case _:
                if character != ",":
                    return self._close(character)
                in_list = self._closing[-1] == "]"
                self._state = self._after_comma[0 if in_list else 1]
                return True

    def _begin_value(self, character: str) -> bool:
        if character in _CLOSING and (self._closing or character == "{"):
            self._state = _State.FIRST_KEY if character == "{" else _State.ITEM
            self._closing.append(_CLOSING[character])
            return True
        if not self._closing:
            return False
        return self._begin_run(character, _State.COMMA) or (
            self._state is _State.ITEM and self._close(character)
        )

    def _begin_key(self, character: str) -> bool:
        self._key = "" if len(self._closing) == 1 else self._key
        if character == '"':
            return self._begin_run(character, _State.COLON)
        return self._state is _State.FIRST_KEY and self._close(character)

    def _begin_run(self, character: str, after: _State) -> bool:
        if character == '"':
            self._state, self._next = _State.STRING, after
        elif self._begins_word.match(character):
            self._state, self._next = _State.WORD, after
        else:
            return False
        return True

    def _close(self, character: str) -> bool:
        if character != self._closing[-1]:
            return False
        self._closing.pop()
        self._state = _State.COMMA if self._closing else _State.END
        return True


class LenientScanner(JSONScanner):
    """Forgives what many readers of JSON forgive: line breaks in strings, other words as values,
    and a comma before a closing bracket.
    """

    _string = re.compile(r'[^"\\]*')
    _word = re.compile(r'[^\s,:{}\[\]"<]*')
    _begins_word = re.compile(r'[^\s,:{}\[\]"<]')
    _after_comma = _State.ITEM, _State.FIRST_KEY


def _end(run: re.Pattern[str], text: str, at: int) -> int:
    found = run.match(text, at)
    return found.end() if found else at
