"""Requests that are nearly right: valid bodies of all POST routes, with something wrong in them.

For Hypothesis. A body is a tree of JSON values in which objects are lists of pairs, so that a key
can come twice, and Raw is written as it is.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from hypothesis import strategies as st


@dataclass(frozen=True)
class Raw:
    text: bytes


@dataclass(frozen=True)
class Request:
    path: str
    headers: tuple[tuple[bytes, bytes], ...]
    body: bytes

    def written(self) -> bytes:
        lines = [b"POST %b HTTP/1.1" % self.path.encode(), b"Host: localhost", b"Connection: close"]
        lines += [b"%b: %b" % header for header in self.headers]
        lines += [b"Content-Length: %d" % len(self.body)]
        return b"\r\n".join(lines) + b"\r\n\r\n" + self.body


SAMPLING: dict[str, Any] = {
    "temperature": 1.0,
    "top_k": 5,
    "seed": 7,
    "stop": ["ab", "c"],
    "stop_token_ids": [3],
    "logit_bias": {"5": 1.5},
    "min_tokens": 1,
    "on_disconnect": "abort",
    "timeout": 2.5,
}
SCHEMA = {"type": "object", "properties": {"a": {"type": "integer", "maximum": 9}}}
FUNCTION = {"name": "look", "description": "?", "parameters": SCHEMA}
CALL = {"id": "1", "type": "function", "function": {"name": "look", "arguments": "{}"}}
TALK = [
    {"role": "system", "content": "s"},
    {"role": "user", "content": [{"type": "text", "text": "u"}]},
    {"role": "assistant", "tool_calls": [CALL]},
    {"role": "tool", "tool_call_id": "1", "content": "t"},
]

NATIVE = {"prompt": "ab", "max_length": 3, "logprobs": 2, **SAMPLING}
VALID: list[tuple[str, dict[str, Any]]] = [
    ("/generate", NATIVE),
    ("/generate", NATIVE | {"stream": True}),
    ("/v1/tapes", NATIVE),
    ("/v1/completions", {"prompt": ["a", "b"], "max_tokens": 3, "n": 2, "logprobs": 1, **SAMPLING}),
    ("/v1/completions", {"prompt": [1, 2], "max_tokens": 3, "echo": True, "stream": True}),
    ("/v1/chat/completions", {"messages": TALK, "max_tokens": 3, "n": 2, **SAMPLING}),
    (
        "/v1/chat/completions",
        {
            "messages": TALK[1:2],
            "max_completion_tokens": 3,
            "tools": [{"type": "function", "function": FUNCTION}],
            "tool_choice": {"type": "function", "function": {"name": "look"}},
            "stream": True,
            "stream_options": {"include_usage": True},
        },
    ),
    (
        "/v1/chat/completions",
        {
            "messages": TALK[1:2],
            "max_tokens": 3,
            "logprobs": True,
            "response_format": {
                "type": "json_schema",
                "json_schema": {"name": "n", "schema": SCHEMA},
            },
        },
    ),
    (
        "/v1/responses",
        {
            "input": [{"role": "user", "content": [{"type": "input_text", "text": "u"}]}],
            "instructions": "i",
            "max_output_tokens": 3,
            "metadata": {"k": "v"},
            "text": {"format": {"type": "json_schema", "name": "n", "schema": SCHEMA}},
            **SAMPLING,
        },
    ),
    ("/v1/responses", {"input": "u", "max_output_tokens": 3, "background": True}),
    ("/v1/responses", {"input": "u", "max_output_tokens": 3, "stream": True}),
    ("/v1/responses/resp_AAAAAAAAAAAAAAAAAAAAAA/cancel", {}),
    ("/tokenize", {"messages": TALK}),
    ("/tokenize", {"prompt": "ab"}),
    ("/detokenize", {"tokens": [1, 2, 255]}),
]

NAMES = sorted({name for _, body in VALID for name in body} | {"type", "role", "content", "schema"})
NUMBERS = [
    b"1e999",
    b"-1e999",
    b"NaN",
    b"Infinity",
    b"9" * 400,
    b"0.1" + b"0" * 400,
    b"-0",
    b"1e308",
]
NUMBERS += [b"18446744073709551616", b"-9223372036854775809", b"01", b"0x1", b"1e-999", b"3.0"]
PIECES = [
    b"\xff",
    b"\xc3\x28",
    b"\xed\xa0\x80",
    b"\xef\xbb\xbf",
    b"\x00",
    b"\\ud800",
    b"{",
    b"]",
    b",",
]
PIECES += [b'"', b"\\", b"//", b"\r\n\r\n"]


class Pairs(list[tuple[str, Any]]):
    """An object."""


leaves = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(2**70), 2**70),
    st.sampled_from([0, 1, 127, 128, 2**31, 2**63 - 1, -(2**63)]),
    st.floats(allow_nan=False, allow_infinity=False),
    st.text(max_size=8),
    st.sampled_from(["", "true", "text", "json_schema", "required", "user", "\x00", "x" * 5000]),
    st.sampled_from(NUMBERS).map(Raw),
    st.sampled_from([b"[" * 70 + b"]" * 70, b'{"a":' * 70 + b"1" + b"}" * 70]).map(Raw),
    st.sampled_from([b"[" + b"1," * 3000 + b"1]", b"[" + b'"",' * 3000 + b'""]']).map(Raw),
)
keys = st.one_of(st.sampled_from(NAMES), st.text(max_size=5))
values = st.recursive(
    leaves,
    lambda inner: st.one_of(
        st.lists(inner, max_size=4), st.lists(st.tuples(keys, inner), max_size=4).map(Pairs)
    ),
    max_leaves=8,
)


def tree(value: Any) -> Any:
    if isinstance(value, dict):
        return Pairs((key, tree(item)) for key, item in value.items())
    return [tree(item) for item in value] if isinstance(value, list) else value


def written(value: Any) -> bytes:
    match value:
        case Raw(text):
            return text
        case Pairs():
            pairs = (json.dumps(key).encode() + b":" + written(item) for key, item in value)
            return b"{" + b",".join(pairs) + b"}"
        case list():
            return b"[" + b",".join(map(written, value)) + b"]"
        case _:
            return json.dumps(value).encode()


def places(value: Any) -> Iterator[tuple[list[Any], int]]:
    """Every value inside, as the list that holds it and where."""
    for at, item in enumerate(value if isinstance(value, list) else ()):
        yield value, at
        yield from places(item[1] if isinstance(value, Pairs) else item)


@st.composite
def bodies(draw: st.DrawFn, valid: dict[str, Any]) -> bytes:
    body = tree(valid)
    for _ in range(draw(st.integers(0, 3))):
        if found := list(places(body)):
            _mutate(draw, *draw(st.sampled_from(found)))
    data = draw(values.map(written)) if draw(st.integers(0, 30)) == 0 else written(body)
    match draw(st.integers(0, 9)):
        case 0:
            return data[: draw(st.integers(0, len(data)))]
        case 1:
            at = draw(st.integers(0, len(data)))
            return data[:at] + draw(st.sampled_from(PIECES)) + data[at:]
        case _:
            return data


def _mutate(draw: st.DrawFn, holder: list[Any], at: int) -> None:
    """Another value, none, twice the same, one more, or another key."""
    pair = isinstance(holder, Pairs)
    match draw(st.integers(0, 5)):
        case 0:
            del holder[at]
        case 1:
            holder.insert(at, holder[at])
        case 2:
            holder.insert(at, draw(st.tuples(keys, values)) if pair else draw(values))
        case 3 if pair:
            holder[at] = (draw(keys), holder[at][1])
        case _:
            new = draw(values)
            holder[at] = (holder[at][0], new) if pair else new


texts = st.binary(max_size=40).map(lambda text: text.translate(None, b"\r\n\x00"))
JSON = (b"Content-Type", b"application/json")
types = st.sampled_from(
    [b"text/plain", b"application/json; charset=latin-1", b"", b"a/b/c", b"\xff"]
)
ids = st.one_of(
    texts,
    st.sampled_from([b"A" * 22 + b":0", b"A" * 22 + b":99999999999", b"A" * 22, b":", b"0:0"]),
)
TOKEN = st.text("abcdefghijklmnopqrstuvwxyz-", min_size=1, max_size=12).map(str.encode)
others = st.one_of(
    st.tuples(st.just(b"Last-Event-ID"), ids),
    st.tuples(st.just(b"Idempotency-Key"), texts),
    st.tuples(st.just(b"Accept"), st.one_of(texts, st.just(b"text/event-stream"))),
    st.tuples(st.just(b"Authorization"), texts),
    st.tuples(st.just(b"Content-Type"), types),
    st.tuples(TOKEN.map(lambda name: b"x-" + name), texts),
)


@st.composite
def requests(draw: st.DrawFn) -> Request:
    path, valid = draw(st.sampled_from(VALID))
    labelled = draw(st.integers(0, 19)) > 0
    label = JSON if labelled else (b"Content-Type", draw(types))
    headers = (label, *draw(st.lists(others, max_size=2)))
    return Request(path, headers, draw(bodies(valid)))
