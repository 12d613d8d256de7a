"""Hostile values, as JSON of about a given size: each is a kind, whatever field it is put into."""

import json
from collections.abc import Callable, Mapping

Value = Callable[[int], bytes]  # its size in bytes, at most -> JSON

# The parser's own bounds, of app/guard/strict_json.py: just below them, a body is read.
VALUES = 199_000
PARTS = 39_000
LONG_NUMBERS = 19_900


def repeated(item: bytes, most: int = VALUES, brackets: bytes = b"[]") -> Value:
    """A list of one item, over and over."""

    def made(size: int) -> bytes:
        count = max(1, min(most, (size - 2) // (len(item) + 1)))
        return brackets[:1] + b",".join([item] * count) + brackets[1:]

    return made


def members(key: str, value: bytes, most: int = PARTS) -> Value:
    """An object of many different keys."""

    def made(size: int) -> bytes:
        each = len(key) + len(value) + 10
        count = max(1, min(most, size // each))
        return (
            b"{" + b",".join(b'"%b%d":%b' % (key.encode(), i, value) for i in range(count)) + b"}"
        )

    return made


def text(unit: str) -> Value:
    """A string of one unit, over and over, as it is written raw."""
    return _string(json.dumps(unit, ensure_ascii=False)[1:-1].encode())


def escaped(unit: str) -> Value:
    """The same, in escapes."""
    return _string("".join(rf"\u{ord(c):04x}" for c in unit).encode())


def _string(unit: bytes) -> Value:
    return lambda size: b'"' + unit * max(1, (size - 2) // len(unit)) + b'"'


def inside_text(value: Value) -> Value:
    """JSON in a string."""

    def made(size: int) -> bytes:
        inner = value(size)
        quoted = json.dumps(inner.decode()).encode()
        return quoted if len(quoted) <= size + 2 else json.dumps(value(size // 2).decode()).encode()

    return made


def deep(opening: bytes, closing: bytes, most: int, core: bytes = b"1") -> Value:
    def made(size: int) -> bytes:
        depth = max(1, min(most, size // (len(opening) + len(closing))))
        return opening * depth + core + closing * depth

    return made


def wide_and_deep(size: int) -> bytes:
    """Lists 60 deep, and as many beside each other on every level as fit."""
    beside = b"[]," * max(1, min(PARTS, size // 3) // 60)
    return b"[" * 60 + b",".join([beside + b"[]]"] * 60)


def digits(size: int) -> bytes:
    return b"9" * size


def fraction(size: int) -> bytes:
    return b"0." + b"3" * size


def exponent(size: int) -> bytes:
    return b"1e" + b"9" * size


def same_keys(size: int) -> bytes:
    return b"{" + b",".join([b'"a":1'] * min(PARTS, size // 6)) + b"}"


def late_fault(size: int) -> bytes:
    """A list of numbers with something else at its end."""
    return b"[" + b"1," * min(VALUES, size // 2) + b'"x"]'


KINDS: Mapping[str, Value] = {
    "numbers": repeated(b"1"),
    "too many numbers": repeated(b"1", 1 << 30),
    "floats": repeated(b"0.12345678901234567"),
    "huge floats": repeated(b"1e308"),
    "long integers": repeated(b"9999999999999999999", LONG_NUMBERS),
    "negative numbers": repeated(b"-1"),
    "nulls": repeated(b"null"),
    "booleans": repeated(b"true"),
    "empty strings": repeated(b'""', PARTS),
    "strings": repeated(json.dumps("ab" * 20).encode(), PARTS),
    "lists": repeated(b"[]", PARTS),
    "objects": repeated(b"{}", PARTS),
    "objects with a type": repeated(b'{"type":"text"}', PARTS // 3),
    "messages": repeated(b'{"role":"user","content":"a"}', PARTS // 5),
    "keys": members("", b"1"),
    "keys of digits": members("1", b"1"),
    "keys with texts": members("stop", b'"a"', PARTS // 2),
    "long keys": members("k" * 200, b"1"),
    "keys with nulls": members("k", b"null"),
    "same keys": same_keys,
    "deep lists": deep(b"[", b"]", 55),
    "deeper lists": deep(b"[", b"]", 1 << 30),
    "deep objects": deep(b'{"a":', b"}", 55),
    "deeper objects": deep(b'{"a":', b"}", 1 << 30),
    "wide and deep": wide_and_deep,
    "digits": digits,
    "fraction": fraction,
    "exponent": exponent,
    "late fault": late_fault,
    "letters": text("a"),
    "blanks": text(" "),
    "lines": text("\n"),
    "text of digits": text("7"),
    "combining marks": text("\u0301"),
    "letters with marks": text("e\u0301\u0323"),
    "emoji": text("\U0001f469\u200d\U0001f4bb"),
    "characters": text("\u6f22"),
    "words": text("the quick brown fox "),
    "no words": text("qzx7#\u00e9\u6f22 \n"),
    "nul": escaped("\0"),
    "quotes": text('"'),
    "escapes": escaped("a"),
    "surrogate pairs": _string(rb"\ud83d\ude00"),
    "lone surrogates": _string(rb"\ud83d"),
    "line separators": text("\u2028"),
    "control tokens": text("<|im_start|>"),
    "calls": text('<tool_call>{"name":'),
    "lists in text": inside_text(repeated(b"[]", 1 << 30)),
    "deep lists in text": inside_text(deep(b"[", b"]", 1 << 30)),
    "deep objects in text": inside_text(deep(b'{"a":', b"}", 1 << 30)),
    "keys in text": inside_text(members("", b"1", 1 << 30)),
    "numbers in text": inside_text(repeated(b"1", 1 << 30)),
    "long integers in text": inside_text(repeated(b"9" * 40, 1 << 30)),
    "digits in text": inside_text(digits),
}

# Those that are not JSON, or are cut: where the parser itself has to say no.
BROKEN: Mapping[str, Value] = {
    "open lists": lambda size: b"[" * size,
    "open objects": lambda size: b'{"a":' * (size // 5),
    "open string": lambda size: b'"' + b"a" * size,
    "open escapes": lambda size: b'"' + b"\\" * (size | 1),
    "blanks outside": lambda size: b" " * size,
    "commas": lambda size: b"[" + b"," * size,
    "colons": lambda size: b"{" + b'"":' * (size // 3),
    "minus signs": lambda size: b"-" * size,
    "no UTF-8": lambda size: b'"' + b"\xff" * size + b'"',
    "long UTF-8": lambda size: b'"' + b"\xc0\x80" * (size // 2) + b'"',
    "control characters": lambda size: b'"' + b"\x01" * size + b'"',
    "NaN": lambda size: b"[" + b"NaN," * (size // 4) + b"1]",
}
