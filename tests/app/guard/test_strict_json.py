"""JSON means one thing, or is refused, and no text takes longer than an ordinary one."""

import contextlib
import json
import time
from collections.abc import Callable
from statistics import median
from typing import Any

import orjson
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from app.guard.strict_json import loads

SIZE = 2 << 20  # --max-body-size

json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(exclude_categories=["Cs"])),
    lambda inner: st.lists(inner) | st.dictionaries(st.text('ab":,{[\\é'), inner),
)


@given(json_values)
@example({'":': 1, "\\": '"', '\\"': {"a": "{", "b": "}"}})
@example("9" * 30)
@example([1e300, -1e-300, 12345678901234567890.5])
def test_what_is_json_is_read(value: Any) -> None:
    for text in (orjson.dumps(value), json.dumps(value, indent=1).encode()):
        assert loads(text) == orjson.loads(text)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('{"a": 1, "a": 1}', "the key 'a' comes twice"),
        ('{"a" :1, "\\u0061":2}', "the key 'a' comes twice"),
        ('[{"x": {"a:": "b", "c": 1, "a:" : 2}}]', "the key 'a:' comes twice"),
        ('{"\\\\": 1, "\\"": 2, "\\\\": 3}', "comes twice"),
        ("[" * 65 + "]" * 65, "more than 64 deep"),
        ('{"a":' * 65 + "1" + "}" * 65, "more than 64 deep"),
        ("[" * 100_000, "deep|lists and objects"),
        ("18446744073709551616", "18446744073709551616 has more than 64 bits"),
        ("[-9223372036854775809]", "more than 64 bits"),
        ("[1, 99999999999999999999]", "more than 64 bits"),
        ("[-99999999999999999999 ]", "more than 64 bits"),
        ('{"seed": 100000000000000000000000000000}', "more than 64 bits"),
        ("9" * 5000, "infinity"),
        ("NaN", "unexpected|invalid|expected"),
        ("[Infinity]", "unexpected|invalid|expected"),
        ("1e999", "infinity"),
        ('"\\ud800"', "surrogate"),
        ("", "empty"),
        ("[1,]", "trailing comma"),
        ("[" + "1," * 200_001 + "1]", "more than 200000 values"),
        ("[" + '"",' * 40_001 + "1]", "more than 40000 strings"),
        ("[" + "[]," * 40_001 + "1]", "more than 40000 strings"),
    ],
    ids=lambda value: value[:20],
)
def test_what_is_ambiguous_or_countless_is_refused(text: str, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        loads(text.encode())


@pytest.mark.parametrize(
    "text",
    [
        "[" * 64 + "]" * 64,
        "[" + "[1]," * 1000 + "1]",
        "[18446744073709551615, -9223372036854775808, 1e30, 123456789012345678901234567890.0]",
        '{"prompt": "' + "[" * 1000 + '"}',
        '{"a": {"a": 1}, "b": {"a": 1}}',
        '{"prompt": "{\\"a\\": 1, \\"a\\": 2}", "seed": 1}',
        '{"prompt": "' + "9" * 40 + '", "x": -0.1e-12345678901234567890123}',
    ],
    ids=lambda value: value[:20],
)
def test_what_only_looks_so_is_read(text: str) -> None:
    assert loads(text.encode()) == orjson.loads(text)


def lines(item: str, count: int = SIZE) -> str:
    return "[" + ",".join([item] * min(count, SIZE // (len(item) + 1) - 1)) + "]"


HOSTILE = {
    "lists": lines("[]"),
    "lists, as many as may be": lines("[]", 39_000),
    "depth": lines("[" * 60 + "]" * 60, 600),
    "objects": lines("{}"),
    "keys": "{" + ",".join(f'"{key:x}":1' for key in range(39_000)) + "}",
    "a key twice at the end": "{" + ",".join(f'"{key}":1' for key in range(39_000)) + ',"0":2}',
    "strings": lines('""'),
    "escapes": '["' + '\\"' * (SIZE // 2 - 4) + '"]',
    "ints": lines("1"),
    "long ints": lines("1" * 19),
    "longer ints": lines("1" * 20),
    "negative ints": lines("-" + "1" * 19),
    "long floats": lines("9.1" + "1" * 20),
    "floats and two keys": '{"a":1,"b":' + lines("1e5", 190_000) + "}",
    "digits": "[" + "1" * (SIZE - 2) + "]",
    "spaces": "[" + " " * (SIZE - 2) + "]",
    "text": '{"a":1,"prompt":"' + "é" * (SIZE // 2 - 20) + '"}',
}


def seconds(loads: Callable[[bytes], Any], data: bytes) -> list[float]:
    """How long it takes, five times."""
    times = []
    for _ in range(5):
        began = time.thread_time()
        with contextlib.suppress(ValueError):
            loads(data)
        times.append(time.thread_time() - began)
    return times


@pytest.fixture(scope="module")
def harmless() -> float:
    """How long json takes for two megabytes of small numbers."""
    return median(seconds(json.loads, HOSTILE["ints"].encode()))


@pytest.mark.parametrize("text", HOSTILE.values(), ids=HOSTILE)
def test_no_two_megabytes_take_the_loop_for_long(text: str, harmless: float) -> None:
    data = text.encode()
    assert len(data) <= SIZE
    times = seconds(loads, data)
    print(f"{min(times) * 1000:.1f} ms, json {harmless * 1000:.1f} ms")
    assert min(times) < harmless


def test_an_ordinary_body_takes_about_as_long_as_json() -> None:
    body = orjson.dumps({"prompt": "Once\nupon", "max_length": 100, "stop": ["\n"], "stream": True})
    ours, json_s = min(seconds(loads, body)), median(seconds(json.loads, body))
    print(f"{ours * 1e6:.1f} us, json {json_s * 1e6:.1f} us")
    assert ours < 10 * json_s
