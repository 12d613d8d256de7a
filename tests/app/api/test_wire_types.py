"""What a body costs that is refused, and one that is taken: for every field of every route.

Bodies are made from the JSON schema of each route's wire type: at each place of it, far too many of
what may and of what may not be there. Work is counted, in complaints and in calls of Python; a
clock is looked at only to hold one body against another of the same size.
"""

import sys
import time
from collections.abc import Iterator
from types import FrameType
from typing import Any

import orjson
import pytest
from fastapi.routing import APIRoute
from pydantic import BaseModel, TypeAdapter, ValidationError

from app.api import tokenize
from app.api.native import generate, tapes
from app.api.native.types import GenerateQuery
from app.api.openai import chat, completions, responses
from app.api.openai.chat_types import ChatBody
from app.errors import from_validation
from app.guard import strict_json

Object = dict[str, Any]

MANY = 30_000
U = {"role": "user", "content": "x"}


def body_types() -> dict[str, type[BaseModel]]:
    """The wire type of each route that takes a body, by its path."""
    routers = (chat, completions, generate, responses, tapes, tokenize)
    routes = [route for module in routers for route in module.router.routes]
    return {
        route.path: route.body_field.field_info.annotation
        for route in routes
        if isinstance(route, APIRoute) and route.body_field
    }


TYPES = body_types()
ADAPTERS: dict[str, TypeAdapter[Any]] = {path: TypeAdapter(TYPES[path]) for path in TYPES}

# The least that each takes.
LEAST: dict[str, Object] = {
    "/v1/chat/completions": {"messages": [U]},
    "/v1/completions": {"prompt": "x"},
    "/generate": {"prompt": "x"},
    "/v1/responses": {"input": "x"},
    "/v1/tapes": {"prompt": "x"},
    "/v1/tapes/{tape_id}/fork": {"after": 0},
    "/tokenize": {"prompt": "x"},
    "/detokenize": {"tokens": [1]},
}


# ---- bodies that are too much, at every place of a schema

WORST: dict[str, Any] = {
    "numbers": [1] * 4 * MANY,
    "halves": [1.5] * 4 * MANY,
    "empty strings": [""] * MANY,
    "empty lists": [[]] * MANY,
    "empty objects": [{}] * MANY,
    "nulls": [None] * 4 * MANY,
    "unknown keys": {f"k{n}": 1 for n in range(MANY)},
    "unknown nulls": {f"k{n}": None for n in range(MANY)},
    "numbered keys": {f"{n}": "" for n in range(MANY)},
    "a long text": "x" * 20 * MANY,
    "a long number": 1.5,
}


def worst_bodies(path: str) -> Iterator[tuple[str, Any]]:
    """(where and what, body), with the worst in each place that the schema knows."""
    schema = TYPES[path].model_json_schema(by_alias=True)
    for name, worst in WORST.items():
        yield f"body: {name}", worst
        if isinstance(worst, dict):
            yield f"beside: {name}", LEAST[path] | worst
    for place, build in places(schema, schema.get("$defs", {}), LEAST[path]):
        for name, worst in WORST.items():
            yield f"{place}: {name}", build(worst)
            if isinstance(worst, dict):
                yield f"{place}, beside: {name}", build(least(place) | worst)


def least(place: str) -> Object:
    """What an object must have, to be wrong for nothing else."""
    return {"type": "text", "text": ""} if place.endswith("[]") else {}


def places(schema: Object, defs: Object, around: Any, depth: int = 0) -> Iterator[tuple[str, Any]]:
    """(name, a function that puts a value there) for each field, and each item of each."""
    for option in options(schema, defs):
        for key, inner in option.get("properties", {}).items():
            rest = around if isinstance(around, dict) else constants(option, defs)
            rest = {k: v for k, v in rest.items() if k != key}

            def put(value: Any, key: str = key, rest: Object = rest) -> Object:
                return {**rest, key: value}

            yield key, put
            if depth < 6:
                for name, build in places(inner, defs, None, depth + 1):
                    yield (
                        f"{key}.{name}",
                        lambda value, put=put, build=build: put(build(value)),
                    )
        if isinstance(items := option.get("items"), dict):
            yield "[]", lambda value: [value]
            for name, build in places(items, defs, None, depth):
                yield f"[].{name}", lambda value, build=build: [build(value)]


def options(schema: Object, defs: Object) -> list[Object]:
    if reference := schema.get("$ref"):
        return options(defs[reference.rpartition("/")[2]], defs)
    if several := schema.get("anyOf") or schema.get("oneOf"):
        own = [schema] if "properties" in schema else []
        return own + [one for option in several for one in options(option, defs)]
    return [schema]


def constants(option: Object, defs: Object) -> Object:
    """The fields of an object that choose among kinds of objects."""
    return {
        key: inner.get("const", (inner.get("enum") or [None])[0])
        for key, inner in option.get("properties", {}).items()
        if inner.get("const") or inner.get("enum")
    }


# ---- what they cost


def complaints(path: str, body: Any) -> tuple[int, str]:
    """How many pydantic made, and ours."""
    try:
        ADAPTERS[path].validate_python(body, from_attributes=True)
    except ValidationError as error:
        return error.error_count(), from_validation(error.errors()[0]).detail
    return 0, ""


def calls_of_validation(path: str, body: Any) -> int:
    """Of functions written in Python, until the body is refused or taken."""
    adapter, calls = ADAPTERS[path], 0

    def count(frame: FrameType, event: str, arg: Any) -> None:
        nonlocal calls
        calls += event == "call"

    sys.setprofile(count)
    try:
        adapter.validate_python(body, from_attributes=True)
    except ValidationError:
        pass
    finally:
        sys.setprofile(None)
    return calls


@pytest.mark.parametrize("path", TYPES)
def test_a_body_is_refused_at_its_first_faults(path: str) -> None:
    """However many it has, in whatever field. Two or three of one object may be found at once."""
    checked = refused = 0
    for name, body in worst_bodies(path):
        count, words = complaints(path, body)
        checked, refused = checked + 1, refused + bool(count)
        assert count < 20, (name, count, words)
        assert len(words) < 1000, name
        if count:
            assert calls_of_validation(path, body) < 500, name
    print(f"{path}: {checked} bodies, {refused} refused")
    assert refused > 20


PART = {"type": "text", "text": ""}
CALL = {"id": "", "function": {"name": "", "arguments": "{}"}}
TOOL = {"type": "function", "function": {"name": "f", "parameters": {"enum": [1] * 1000}}}

# As many of each as strict_json and the types let in.
LARGEST: dict[str, tuple[str, Object]] = {
    "messages": ("/v1/chat/completions", {"messages": [U] * 2048}),
    "parts": ("/v1/chat/completions", {"messages": [{**U, "content": [PART] * 9000}]}),
    "calls": (
        "/v1/chat/completions",
        {"messages": [{"role": "assistant", "tool_calls": [CALL] * 4000}]},
    ),
    "tools": ("/v1/chat/completions", {"messages": [U], "tools": [TOOL] * 128}),
    "biases": ("/generate", {"prompt": "x", "logit_bias": {f"{n}": 1 for n in range(1024)}}),
    "ids": ("/v1/completions", {"prompt": [49151] * 190_000}),
    "ids as floats": ("/v1/completions", {"prompt": [4915.0] * 190_000}),
    "lists of ids": ("/v1/completions", {"prompt": [[49151] * 1400] * 128}),
    "ids to detokenize": ("/detokenize", {"tokens": [49151.0] * 131_000}),
    "input": ("/v1/responses", {"input": [U] * 2048}),
}


@pytest.mark.parametrize("name", LARGEST)
def test_what_is_taken_costs_a_few_calls_for_each_object(name: str) -> None:
    """None for each number: of these there may be a hundred times as many."""
    path, body = LARGEST[name]
    text = orjson.dumps(body)
    assert complaints(path, strict_json.loads(text)) == (0, "")
    calls = calls_of_validation(path, body)
    print(f"{calls} calls, {text.count(b'{')} objects")
    assert calls < 500 + 16 * text.count(b"{")


@pytest.mark.alone
@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/chat/completions", {"messages": [{**U, "content": [1] * 190_000}]}),
        ("/v1/chat/completions", {"messages": [U], **{f"k{n}": 1 for n in range(39_000)}}),
        ("/v1/chat/completions", {"messages": [U], "tools": [1] * 190_000}),
        ("/v1/responses", {"input": "x", "metadata": {f"{n}": 1 for n in range(39_000)}}),
        ("/v1/responses", {"input": "x", "include": [1] * 190_000}),
        ("/detokenize", {"tokens": [""] * 39_000}),
        *LARGEST.values(),
    ],
    ids=lambda value: str(value)[:60],
)
def test_nothing_takes_much_longer_than_an_ordinary_body(path: str, body: Object) -> None:
    """An hour of chat, as large as a body may be."""
    ordinary = {"messages": [{**U, "content": "It rains. " * 200}] * 1000}
    worst, usual = seconds(path, body), seconds("/v1/chat/completions", ordinary)
    print(f"{worst * 1000:.1f} ms, {usual * 1000:.1f} ms")
    assert worst < 12 * usual


def seconds(path: str, body: Object) -> float:
    """Processor time to read and to validate it."""
    text, times = orjson.dumps(body), []
    for _ in range(4):
        began = time.thread_time()
        complaints(path, strict_json.loads(text))
        times.append(time.thread_time() - began)
    return min(times)


# ---- JSON in JSON


def conversation(*arguments: str) -> Object:
    calls = [{"id": "c", "function": {"name": "f", "arguments": each}} for each in arguments]
    return {"messages": [{"role": "assistant", "tool_calls": calls}]}


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/tokenize"])
@pytest.mark.parametrize(
    "arguments",
    [
        ["[" + "[]," * 600_000 + "[]]"],
        ["[" + "{}," * 3000 + "{}]"] * 20,
        ["[" + '"",' * 3000 + '""]'] * 20,
        ["[" + "1," * 15_000 + "1]"] * 20,
        ["[" + "1" * 30 + ",1]"] * 20_001,
        ['"', "[" + "[]," * 600_000 + "[]]"],
        ["\\", '{"a": "\\"', "[" * 600_000],
    ],
    ids=lambda value: f"{len(value)} of {value[-1][:20]}",
)
def test_arguments_of_calls_count_together_as_a_body_does(path: str, arguments: list[str]) -> None:
    count, words = complaints(path, conversation(*arguments))
    assert count == 1
    assert words.startswith("messages: the arguments of all calls together")
    assert "send" in words


@pytest.mark.parametrize(
    ("arguments", "shown"),
    [
        ('{"city": "Paris"}', {"city": "Paris"}),
        ("", {}),
        ('{"city": "Par', '{"city": "Par'),
        ("[" * 65 + "]" * 65, "[" * 65 + "]" * 65),
        ('{"a": 1, "a": 2}', '{"a": 1, "a": 2}'),
        ('{"a": 123456789012345678901234}', '{"a": 123456789012345678901234}'),
        ("NaN", "NaN"),
        ('{"a": "\\ud800"}', '{"a": "\\ud800"}'),
    ],
)
def test_arguments_that_are_no_strict_json_are_shown_as_they_are(
    arguments: str, shown: Any
) -> None:
    body = ChatBody.model_validate(conversation(arguments))
    (turn,) = body.conversation().messages
    assert turn["tool_calls"][0]["function"]["arguments"] == shown


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("{", "must be a JSON object"),
        ("[" * 8000, "nested more than 64 deep"),
        ('{"7": 1, "7": 2}', "the key '7' comes twice"),
        ("[]", "should be an object"),
        ('{"07": 1}', "the key must be an integer"),
        ('{"7": true}', "must be a number from -100 to 100"),
    ],
)
def test_a_bias_in_a_query_is_strict_json(text: str, words: str) -> None:
    with pytest.raises(ValidationError) as error:
        GenerateQuery.model_validate({"prompt": "x", "logit_bias": text})
    refusal = from_validation(error.value.errors()[0])
    assert str(refusal.param).startswith("logit_bias")
    assert words in refusal.detail
