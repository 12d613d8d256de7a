"""What the model writes, cut anywhere, becomes what is said and what is called."""

import itertools
import json
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from app.dialects.tool_calls import Arguments, Called, Said, ToolCallParser

OPEN, CLOSE = "<tool_call>", "</tool_call>"


@dataclass
class Told:
    """All pieces put together."""

    text: str = ""
    names: list[str] = field(default_factory=list)
    arguments: list[str] = field(default_factory=list)


def read(pieces: Iterable[str]) -> Told:
    """Calls are numbered from 0, and arguments follow the name."""
    parser, told = ToolCallParser(), Told()
    for piece in [*(p for text in pieces for p in parser.push(text)), *parser.finish()]:
        match piece:
            case Said(text):
                assert text, "a piece that says nothing"
                told.text += text
            case Called(number, name):
                assert number == len(told.names)
                told.names.append(name)
                told.arguments.append("")
            case Arguments(number, text):
                assert text
                assert number == len(told.names) - 1
                told.arguments[number] += text
    assert parser.num_calls == len(told.names)
    return told


def call(name: str, arguments: Any) -> str:
    return f"{OPEN}\n{json.dumps({'name': name, 'arguments': arguments})}\n{CLOSE}"


def pieces(text: str, cuts: Iterable[int]) -> list[str]:
    at = [0, *sorted(cut % (len(text) + 1) for cut in cuts), len(text)]
    return [text[a:b] for a, b in itertools.pairwise(at)]


NAMES = st.from_regex(r"[A-Za-z0-9_-]{1,64}", fullmatch=True)
# Whatever could be taken for the end of something.
TRICKY = st.sampled_from(['"', "\\", "{", "}", "[", "]", '\\"', OPEN, CLOSE, "<tool", " ", "\n"])
STRINGS = st.lists(st.text(max_size=5) | TRICKY, max_size=5).map("".join)
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | STRINGS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(STRINGS, inner, max_size=3),
    max_leaves=8,
)
OBJECTS = st.dictionaries(STRINGS, VALUES, max_size=4)
CALLS = st.builds(call, NAMES, OBJECTS)
HEADS = st.sampled_from(
    [
        OPEN,
        CLOSE,
        "<tool_call",
        '{"name": "f"',
        '{"name": "f", "arguments": ',
        '"}',
        "{}",
        '{"name": "</tool_call>", "arguments": {}}',
    ]
)
TEXTS = st.lists(CALLS | TRICKY | HEADS | st.text(max_size=8), max_size=8).map("".join)
CUTS = st.lists(st.integers(0, 2000), max_size=12)


@given(TEXTS, CUTS)
@example(call("f", {}) + " and", [len(call("f", {})) + 1])
@example(f'{OPEN}{{"name": "{CLOSE}", "arguments": {{}}}}', [35])
def test_how_a_text_is_cut_changes_nothing(text: str, cuts: list[int]) -> None:
    whole = read([text])
    assert read(pieces(text, cuts)) == whole
    assert read(text) == whole, "character by character"


PLAIN = st.text(max_size=20).filter(lambda text: "<" not in text)


@given(st.lists(st.tuples(NAMES, OBJECTS), min_size=1, max_size=3), PLAIN, PLAIN, CUTS)
def test_calls_come_out_as_they_were(
    calls: list[tuple[str, Any]], before: str, after: str, cuts: list[int]
) -> None:
    text = before + "\n".join(call(*one) for one in calls) + after
    told = read(pieces(text, cuts))
    assert told.names == [name for name, _ in calls]
    assert [json.loads(arguments) for arguments in told.arguments] == [a for _, a in calls]
    assert told.text == before + ("" if after.isspace() else after)


@given(TEXTS, CUTS)
def test_a_text_without_calls_is_all_there(text: str, cuts: list[int]) -> None:
    told = read(pieces(text, cuts))
    if not told.names:
        assert told.text == text


@pytest.mark.parametrize(
    "body",
    [
        "",
        "no json",
        "{}",
        '{"arguments": {"a": 1}, "name": "f"}',
        '{"name": "f"}',
        '{"name": "f", "arguments": "text"}',
        '{"name": "f", "arguments": [1]}',
        '{"name": "", "arguments": {}}',
        '{"name": "a b", "arguments": {}}',
        '{"name": 7, "arguments": {}}',
        '["f", {}]',
    ],
)
def test_what_is_no_call_is_text(body: str) -> None:
    text = f"Look: {OPEN}{body}{CLOSE} there."
    assert read(text) == Told(text)
    assert read(text[: -len(" there.") - 3]) == Told(text[: -len(" there.") - 3]), "not closed"
    assert read(text + call("f", {"a": 1})).names == ["f"], "and a call may follow"


def test_text_before_between_and_after() -> None:
    text = f"First {call('f', {'a': 1})} then {call('g', {})}\n{call('h', {})}\n\n"
    assert read(text) == Told("First  then ", ["f", "g", "h"], ['{"a": 1}', "{}", "{}"])


def test_arguments_come_while_they_are_written() -> None:
    parser = ToolCallParser()
    assert list(parser.push(f'{OPEN}{{"name": "f", "arguments": ')) == []
    assert list(parser.push('{"a"')) == [Called(0, "f"), Arguments(0, '{"a"')]
    assert list(parser.push(": 1")) == [Arguments(0, ": 1")]
    assert list(parser.push("}}")) == [Arguments(0, "}")]


def test_a_call_that_is_never_closed_keeps_what_it_has() -> None:
    unclosed = f'{OPEN}{{"name": "f", "arguments": {{"a": "x'
    assert read(unclosed) == Told("", ["f"], ['{"a": "x'])
