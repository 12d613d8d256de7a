"""What the model writes, cut anywhere, becomes what is said and what is called."""

import itertools
import json
import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from model.text.chat_template import ChatTemplate
from model.text.json_scanner import JSONScanner
from model.text.tool_calls import (
    CALLING,
    MAX_HELD,
    Arguments,
    Called,
    Said,
    ToolCallParser,
    is_ours,
    mentioned,
)
from tests.tiny import CHAT_TEMPLATE, HERMES, TOOLS_TEMPLATE

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
        '{"arguments": {"a": 1}}',
        '{"name": null, "arguments": {}}',
        '{"name": "f", "arguments": "text"}',
        '{"name": "f", "arguments": "[1]"}',
        '{"name": "f", "arguments": 7}',
        '{"name": "f", "arguments": false}',
        '{"name": "f", "a": 1e999, "arguments": [NaN]}',
        '{"function": {"arguments": {}}}',
        '{"function": "f", "arguments": {}}',
        "{'name': 'f', 'arguments': {}}",
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


@pytest.mark.parametrize(
    ("body", "arguments"),
    [
        ('{"name": "f"}', {}),
        ('{"name": "f", "arguments": null}', {}),
        ('{"name": "f", "arguments": ""}', {}),
        ('{"name": "f", "arguments": "{}"}', {}),
        ('{"name": "f", "arguments": "null"}', {}),
        ('{"name": "f", "parameters": null}', {}),
        ('{"name": "f", "arguments": {}}', {}),
        ('{"name": "f", "arguments": {"a": 1}}', {"a": 1}),
        ('{"name": "f", "parameters": {"a": 1}}', {"a": 1}),
        ('{"name": "f", "arguments": null, "parameters": {"a": 1}}', {"a": 1}),
        ('{"name": "f", "arguments": "{\\"a\\": 1}"}', {"a": 1}),
        ('{"arguments": {"a": {"b": [1]}}, "name": "f"}', {"a": {"b": [1]}}),
        ('{"arguments": "{\\"a\\": 1}", "name": "f"}', {"a": 1}),
        ('{"parameters": {"a": 1}, "id": 7, "name": "f"}', {"a": 1}),
        ('{"id": {"x": []}, "name": "f", "arguments": {"a": 1}}', {"a": 1}),
        ('{"name": "f", "arguments": {"a": 1}, "id": {"name": "g"}}', {"a": 1}),
        ('{"type": "function", "function": {"name": "f", "arguments": {"a": 1}}}', {"a": 1}),
        ('{"function": {"name": "f"}}', {}),
        ('{"na\\u006de": "f", "arguments": {"a": "\\ud83d"}}', {"a": "\ud83d"}),
        ('\n\t{\r\n"name"\n:"f",\n"arguments":\n{"a"\n: 1}\n}\n', {"a": 1}),
        ('{"name": "f", "arguments": {"a": 1}}}', {"a": 1}),
    ],
)
def test_other_spellings_are_calls_too(body: str, arguments: Any) -> None:
    for text in (f"{OPEN}{body}{CLOSE}", f"{OPEN}{body}"):
        for told in (read([text]), read(text)):
            assert (told.text, told.names) == ("", ["f"])
            assert json.loads(told.arguments[0]) == arguments
    both = read(f"Look: {OPEN}{body}\n{call('g', {})} there.")
    assert (both.text, both.names) == ("Look:  there.", ["f", "g"]), (
        "closed or not, another follows"
    )


# ---- nothing is lost after a call that is not closed


@pytest.mark.parametrize(
    ("after", "text", "names"),
    [
        (" Some words.", " Some words.", ["f"]),
        ("}} Some words.", " Some words.", ["f"]),
        (f"\n{CLOSE} Some words.", " Some words.", ["f"]),
        (f"{call('g', {})} and more", " and more", ["f", "g"]),
        (f"\n{call('g', {})}", "", ["f", "g"]),
        (f"\nThen\n{call('g', {})}", "\nThen\n", ["f", "g"]),
        (', "id": 7', ', "id": 7', ["f"]),
        (", and so on}", ", and so on}", ["f"]),
        (f" x {OPEN} y", f" x {OPEN} y", ["f"]),
        ("  \n", "", ["f"]),
        ("</tool_c", "", ["f"]),
    ],
)
@pytest.mark.parametrize("brace", ["", "}"])
def test_what_follows_a_call_that_is_not_closed(
    brace: str, after: str, text: str, names: list[str]
) -> None:
    if brace and after.startswith(", "):
        text = after
    whole = f'{OPEN}{{"name": "f", "arguments": {{"a": 1}}{brace}{after}'
    for told in (read([whole]), read(whole)):
        assert (told.text, told.names) == (text, names)
        assert told.arguments[0] == '{"a": 1}'


@pytest.mark.parametrize(
    "arguments", ['{"a": 1', '{"a": [1, {', '{"a": "x', '{"a": "x\\', "{", '{"a": tru', '{"a"']
)
@pytest.mark.parametrize(
    ("tag", "text", "names"),
    [(f"{CLOSE} there.", " there.", ["f"]), (call("g", {}), "", ["f", "g"])],
)
def test_a_tag_on_a_line_of_its_own_ends_arguments_that_do_not_end(
    arguments: str, tag: str, text: str, names: list[str]
) -> None:
    """A JSON string has no raw line break."""
    told = read(f'{OPEN}{{"name": "f", "arguments": {arguments}\n{tag}')
    assert (told.text, told.names, told.arguments[0]) == (text, names, arguments)


def test_prose_after_arguments_that_do_not_end_is_text() -> None:
    told = read(f'{OPEN}{{"name": "f", "arguments": {{"a": 1\n\nSo it is one.')
    assert told == Told("So it is one.", ["f"], ['{"a": 1\n\n'])


WORDS = st.from_regex(r"[a-z.,]([a-z {}\[\]:,]*[a-z.,])?", fullmatch=True)
OPEN_CALLS = st.builds(lambda one: one.removesuffix(CLOSE), CALLS)


@given(st.lists(st.tuples(WORDS | st.just(""), CALLS | OPEN_CALLS), max_size=5), WORDS, CUTS)
def test_every_word_between_calls_is_told(
    parts: list[tuple[str, str]], last: str, cuts: list[int]
) -> None:
    text = "".join(f"{words}{one}" for words, one in parts) + last
    told = read(pieces(text, cuts))
    words = "".join(words for words, _ in parts) + last
    assert len(told.names) == len(parts)
    assert re.sub(r"\s", "", told.text) == re.sub(r"\s", "", words)


@given(TEXTS, CUTS)
def test_all_but_the_syntax_of_calls_is_told(text: str, cuts: list[int]) -> None:
    """In its order. What is between begins with a tag, if it is more than blanks and brackets."""
    parser, at = ToolCallParser(), 0
    told = [*(p for one in pieces(text, cuts) for p in parser.push(one)), *parser.finish()]
    for kind, run in itertools.groupby(told, type):
        if kind is Called:
            continue
        written = "".join(piece.text for piece in run if not isinstance(piece, Called))
        before = r":\s*" if kind is Arguments else ""  # a brace may stand in the call's head, too
        found = re.compile(f"{before}({re.escape(written)})").search(text, at)
        if not found:  # arguments that were written in another way
            assert kind is Arguments
            continue
        assert re.match(r"[\s}\]]*($|</?tool_call>)", text[at : found.start(1)])
        at = found.end(1)
    assert re.match(r"[\s}\]]*($|</?tool_call>|<$|</)", text[at:])


# ---- nothing is held longer than it may become a call


@pytest.mark.parametrize(
    "text",
    [
        f"The tag {OPEN} is",
        f"The tag {OPEN}, then",
        f"{OPEN}\n<x",
        f"{OPEN}[",
        f"{OPEN}{{}}",
        f"{OPEN}{{ 7",
        f"{OPEN}{{'",
        f'{OPEN}{{"name" "',
        f'{OPEN}{{"name": <x',
        f'{OPEN}{{"name": "f"}}x',
        f'{OPEN}{{"name": "f\n',
        f"{OPEN}{CLOSE}x",
        f"{OPEN}{OPEN}{OPEN}x",
        "<tool_calls",
    ],
)
def test_text_goes_out_as_soon_as_it_cannot_be_a_call(text: str) -> None:
    parser = ToolCallParser()
    told = "".join(p.text for c in text for p in parser.push(c) if isinstance(p, Said))
    held = '{"name": "f"}'  # is a call
    assert told == (text if held not in text else "x")
    assert [p.text for p in parser.push(" and on") if isinstance(p, Said)] == [" and on"]


@pytest.mark.parametrize(
    "unit",
    [
        "a",
        " ",
        OPEN,
        f"{OPEN} ",
        f'{OPEN}{{"',
        f'{OPEN}{{"arguments": {{"',
        f'{OPEN}{{"arguments": {{}}, ',
        f'{OPEN}{{"a": [',
        "[",
        '"',
        "\\",
        "\n<tool_call",
        "</tool_call",
        call("f", {}),
        call("f", {}) + " ",
        f'{OPEN}{{"name": "f", "arguments": {{"a": 1}}',
        f'{OPEN}{{"name": "f", "arguments": {{"a": "\n',
    ],
)
@pytest.mark.parametrize("begun", ["", f'{OPEN}{{"', call("f", {}), f"{OPEN}{{"])
@pytest.mark.parametrize("size", [1, 1 << 20])
def test_the_work_grows_with_the_text_alone(
    begun: str, unit: str, size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In characters that are looked at, however hostile the text is."""
    looked_at = 0
    read, scan = ToolCallParser._read, JSONScanner.read

    def counted(self: Any, text: str) -> Any:
        nonlocal looked_at
        looked_at += len(text)
        return read(self, text)

    def scanned(self: Any, text: str) -> Any:
        nonlocal looked_at
        at, stop = scan(self, text)
        looked_at += at + 1
        return at, stop

    monkeypatch.setattr(ToolCallParser, "_read", counted)
    monkeypatch.setattr(JSONScanner, "read", scanned)
    length = 1 << (14 if size == 1 else 17)
    text = begun + unit * (length // len(unit))
    parser = ToolCallParser()
    held = 0
    for at in range(0, len(text), size):
        list(parser.push(text[at : at + size]))
        held = max(held, parser._num_held)
    list(parser.finish())
    assert held <= MAX_HELD
    assert looked_at < 8 * len(text)


# ---- whose way it is

QWEN = """\
{%- if tools %}<|im_start|>system
# Tools
<tools>{% for tool in tools %}
{{ tool | tojson }}{% endfor %}
</tools>
For each function call, return a json object with function name and arguments within \
<tool_call></tool_call> XML tags:
<tool_call>
{"name": <function-name>, "arguments": <args-json-object>}
</tool_call><|im_end|>
{% endif %}
{%- for message in messages %}<|im_start|>{{ message.role }}
{{ message.content }}
{%- for call in message.tool_calls or [] %}CALL{% endfor %}<|im_end|>
{% endfor %}"""
OURS = """
<tool_call>
{"name": "{{ call.function.name }}", "arguments": {{ call.function.arguments | tojson }}}
</tool_call>"""
QWEN_CODER = """
<tool_call>
<function={{ call.function.name }}>
{% for name, value in call.function.arguments.items() %}<parameter={{ name }}>
{{ value }}
</parameter>
{% endfor %}</function>
</tool_call>"""
GLM = """
<tool_call>{{ call.function.name }}
{% for name, value in call.function.arguments.items() %}<arg_key>{{ name }}</arg_key>
<arg_value>{{ value }}</arg_value>
{% endfor %}</tool_call>"""
LIST = """
<tool_call>[{"name": "{{ call.function.name }}", \
"arguments": {{ call.function.arguments | tojson }}}]</tool_call>"""


@pytest.mark.parametrize(
    ("template", "ours"),
    [
        (QWEN.replace("CALL", OURS), True),
        (QWEN.replace("CALL", QWEN_CODER), False),
        (QWEN.replace("CALL", GLM), False),
        (QWEN.replace("CALL", LIST), False),
        (QWEN.replace("CALL", ""), True),
        (HERMES, True),
        (TOOLS_TEMPLATE, True),
        (CHAT_TEMPLATE, False),
        (QWEN.replace("CALL", OURS).replace("tool_call>", "toolcall>"), False),
    ],
)
def test_tools_are_for_templates_whose_way_is_ours(template: str, ours: bool) -> None:
    """What such a model would write is read by nobody here."""
    written = ChatTemplate(template, None, None).render(CALLING.messages, **CALLING.extra)
    assert (mentioned(template) and is_ours(written)) is ours
