"""Strict JSON: what means one thing to every reader, in a size that is read in milliseconds.

orjson refuses what Python's json lets in: NaN, Infinity, lone surrogates, bad UTF-8. Refused here
beyond that is what it would change in silence, keys that come twice and integers of more than 64
bits, and what would take it long: deep or countless values.
"""

import json
from collections.abc import Generator, Iterable
from itertools import chain
from typing import Any, TypeVar

import numpy as np
import orjson

T = TypeVar("T")

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
    return at_once(loads_in_steps(data))


def at_once(steps: Generator[None, None, T]) -> T:
    """What they return, without a pause."""
    while True:
        try:
            next(steps)
        except StopIteration as end:
            value: T = end.value
            return value


def loads_in_steps(data: bytes) -> Generator[None, None, Any]:
    """As `loads`, with a pause after each step: of 2 MiB none takes more than 10 ms."""
    written = _outside_strings(data)
    if len(written) > _DEEPEST:  # so few bytes hold nothing that is too much
        yield
        _check_counts(written)
        yield
        _check_depth(written)
        yield
    value = orjson.loads(data)
    yield
    if _num_long(written):
        _check_integers(written)
        yield
    if (colons := written.count(b":")) > 1 and not _has_keys(value, colons):
        raise _key_twice(data)
    return value


def check_together(texts: Iterable[str]) -> None:
    """Raises ValueError where JSON texts, each within bounds, are too much for one request."""
    written = b"".join(_outside_strings(text.encode()) for text in texts)
    _check_counts(written)
    _num_long(written)


def _outside_strings(data: bytes) -> bytes:
    """Brackets, commas, colons, numbers and words of a JSON text, and a quote for each string.

    Raises ValueError.
    """
    if b"\\" in data:
        data = data.replace(rb"\\", b"").replace(rb"\"", b"")
    if data.count(b'"') > 2 * _MOST_PARTS:
        raise _too_many_parts()
    return b'"'.join(data.split(b'"')[::2])


def _check_counts(written: bytes) -> None:
    """Before anything is parsed. Raises ValueError."""
    if written.count(b'"') > _MOST_PARTS or _nested(written) > _MOST_PARTS:
        raise _too_many_parts()
    if written.count(b",") > _MOST_VALUES:
        raise ValueError(f"it has more than {_MOST_VALUES} values; send fewer")


def _check_depth(written: bytes) -> None:
    """Raises ValueError."""
    if _nested(written) > _DEEPEST and _depth(written) > _DEEPEST:
        raise ValueError(f"it is nested more than {_DEEPEST} deep; send it flatter")


def _nested(written: bytes) -> int:
    return written.count(b"[") + written.count(b"{")


def _depth(written: bytes) -> int:
    steps = _STEPS[np.frombuffer(written, np.uint8)]
    return int(np.cumsum(steps, dtype=np.int32).max())


def _num_long(written: bytes) -> int:
    """How many numbers have 19 digits or more. Raises ValueError for too many of them."""
    long = written.translate(_ALL_DIGITS_ZERO).count(_LONG)
    if long > _MOST_LONG:
        raise ValueError(
            f"more than {_MOST_LONG} numbers have 19 digits or more; send shorter ones"
        )
    return long


def _check_integers(written: bytes) -> None:
    """orjson makes the nearest float of an integer that fits neither int64 nor uint64."""
    numbers = written.translate(_ALL_MARKS_COMMAS, b" \t\r\n").split(b",")
    for number in [number for number in numbers if len(number) >= _DIGITS]:
        if number.lstrip(b"-").isdigit() and not -(2**63) <= int(number) < 2**64:
            raise ValueError(
                f"the integer {number.decode():.40} has more than 64 bits; send a smaller one"
            )


def _has_keys(value: Any, count: int) -> bool:
    """Whether the objects of `value` have so many keys: one that came twice is lost in parsing."""
    level = [value]
    while level:
        objects = [part for part in level if type(part) is dict]
        count -= sum(map(len, objects))
        if not count:
            return True
        lists = [part for part in level if type(part) is list]
        inner = chain(chain.from_iterable(lists), *[part.values() for part in objects])
        level = [part for part in inner if type(part) in (dict, list)]
    return False


def _key_twice(data: bytes) -> ValueError:
    if len(data) <= _NAMED_UP_TO:
        try:
            json.loads(data, object_pairs_hook=_refuse_repeated)
        except ValueError as error:
            return error
    return ValueError("a key comes twice in one object; send each once")


def _refuse_repeated(pairs: list[tuple[str, Any]]) -> None:
    seen = set()
    for key, _ in pairs:
        if key in seen:
            raise ValueError(f"the key {key[:40]!r} comes twice in one object; send it once")
        seen.add(key)


def _too_many_parts() -> ValueError:
    return ValueError(f"it has more than {_MOST_PARTS} strings, lists and objects; send fewer")
