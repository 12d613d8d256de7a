"""Strict JSON: what means one thing to every reader, in a size that is read in milliseconds.

orjson refuses what Python's json lets in: NaN, Infinity, lone surrogates, bad UTF-8. Refused here
beyond that is what it would change in silence, keys that come twice and integers of more than 64
bits, and what would take it long: deep or countless values.
"""

import json
from typing import Any

import numpy as np
import orjson

_DEEPEST = 64
_MOST_VALUES = 200_000  # numbers above all: the token ids of a long prompt
_MOST_PARTS = 40_000  # strings, lists and objects, which take longer: a million lists half a second
_MOST_LONG = 20_000  # numbers that may not fit, and have to be looked at one by one
_NAMED_UP_TO = 1 << 16  # bytes; to find the key that comes twice takes Python's slower reader

_STEPS = np.zeros(256, np.int8)
_STEPS[list(b"[{")] = 1
_STEPS[list(b"]}")] = -1

_ALL_DIGITS_ZERO = bytes.maketrans(b"123456789", b"0" * 9)
_LONG = b"0" * 19
_DIGITS = 20  # of the greatest that fits, and of the least with its sign
_ALL_MARKS_COMMAS = bytes.maketrans(b"[]{}:", b"," * 5)


def loads(data: bytes) -> Any:
    """Raises ValueError, which says what is wrong and where or what to do about it."""
    written = _outside_strings(data)
    _check_size(written)
    value = orjson.loads(data)
    _check_integers(written)
    if written.count(b":") > 1:
        _check_keys(data, written, value)
    return value


def _outside_strings(data: bytes) -> bytes:
    """The brackets, commas, colons, numbers and words of a JSON text. Raises ValueError."""
    if b"\\" in data:
        data = data.replace(rb"\\", b"").replace(rb"\"", b"")
    if data.count(b'"') > 2 * _MOST_PARTS:
        raise _too_many_parts()
    return b"".join(data.split(b'"')[::2])


def _check_size(written: bytes) -> None:
    """Before anything is parsed. Raises ValueError."""
    nested = written.count(b"[") + written.count(b"{")
    if nested > _MOST_PARTS:
        raise _too_many_parts()
    if written.count(b",") > _MOST_VALUES:
        raise ValueError(f"it has more than {_MOST_VALUES} values; send fewer")
    if nested > _DEEPEST and _depth(written) > _DEEPEST:
        raise ValueError(f"it is nested more than {_DEEPEST} deep; send it flatter")


def _depth(written: bytes) -> int:
    steps = _STEPS[np.frombuffer(written, np.uint8)]
    return int(np.cumsum(steps, dtype=np.int32).max())


def _check_integers(written: bytes) -> None:
    """orjson makes the nearest float of an integer that fits neither int64 nor uint64."""
    long = written.translate(_ALL_DIGITS_ZERO).count(_LONG)
    if long > _MOST_LONG:
        raise ValueError(
            f"more than {_MOST_LONG} numbers have 19 digits or more; send shorter ones"
        )
    if not long:
        return
    numbers = written.translate(_ALL_MARKS_COMMAS, b" \t\r\n").split(b",")
    for number in [number for number in numbers if len(number) >= _DIGITS]:
        if number.lstrip(b"-").isdigit() and not -(2**63) <= int(number) < 2**64:
            raise ValueError(
                f"the integer {number.decode():.40} has more than 64 bits; send a smaller one"
            )


def _check_keys(data: bytes, written: bytes, value: Any) -> None:
    """A key that comes twice is lost in parsing: what is written again has fewer."""
    if _outside_strings(orjson.dumps(value)).count(b":") == written.count(b":"):
        return
    if len(data) <= _NAMED_UP_TO:
        json.loads(data, object_pairs_hook=_refuse_repeated)
    raise ValueError("a key comes twice in one object; send each once")


def _refuse_repeated(pairs: list[tuple[str, Any]]) -> None:
    seen = set()
    for key, _ in pairs:
        if key in seen:
            raise ValueError(f"the key {key[:40]!r} comes twice in one object; send it once")
        seen.add(key)


def _too_many_parts() -> ValueError:
    return ValueError(f"it has more than {_MOST_PARTS} strings, lists and objects; send fewer")
