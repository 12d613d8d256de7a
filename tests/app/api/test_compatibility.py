"""docs/compatibility.md: every field of OpenAI's has a row, and every row is true of the server."""

import asyncio
import copy
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import httpx
import pytest
from openai.types import completion_create_params
from openai.types.chat import completion_create_params as chat_params
from openai.types.responses import ResponseIncludable, response_create_params
from pydantic import BaseModel

from app.api.openai.chat_types import (
    CalledFunction,
    ChatBody,
    ChatMessage,
    FunctionDefinition,
    TextPart,
    Tool,
    ToolCall,
)
from app.api.openai.completions_types import CompletionBody
from app.api.openai.history_types import REASONING_PARTS
from app.api.openai.responses_types import InputMessage, InputText, ResponseBody
from app.api.openai.types import Nullable
from app.api.sampling_fields import SamplingFields
from tests.app.api.test_bad_input import error_of

DOCUMENT = Path(__file__).parents[3] / "docs" / "compatibility.md"

MODEL = "smollm2-135m"
PROMPT = {"prompt": "Once", "max_tokens": 2}
MESSAGES = {"messages": [{"role": "user", "content": "Hi"}], "max_completion_tokens": 2}
INPUT = {"input": "Hi", "max_output_tokens": 2}

ENDPOINTS: dict[str, tuple[type[BaseModel], Any, dict[str, Any]]] = {
    "/v1/completions": (
        CompletionBody,
        completion_create_params.CompletionCreateParamsBase,
        PROMPT,
    ),
    "/v1/chat/completions": (ChatBody, chat_params.CompletionCreateParamsBase, MESSAGES),
    "/v1/responses": (ResponseBody, response_create_params.ResponseCreateParamsBase, INPUT),
}

SCHEMA = {"type": "object", "properties": {"a": {"type": "boolean"}}, "required": ["a"]}

# What a field may be, where the body above has nothing better; all are taken.
ACCEPTED: dict[str, list[Any]] = {
    "model": [MODEL, None],
    "prompt": ["a", ["a", "b"], [1, 2], [[1, 2], [3]]],
    "max_tokens": [1, None],
    "n": [1, 3],
    "echo": [True],
    "temperature": [0, 2.0, 1],
    "top_p": [0.5],
    "presence_penalty": [2, -2],
    "frequency_penalty": [1.5],
    "logit_bias": [{"5": -100}, {}],
    "stop": ["x", ["x", "y"], None],
    "seed": [7, -7],
    "stream": [False, True],
    "user": ["somebody"],
    "messages": [
        [{"role": "developer", "content": "Be brief."}, {"role": "user", "content": "Hi"}],
        [{"role": "user", "content": [{"type": "text", "text": text} for text in ("H", "i")]}],
        [
            {"role": "system", "content": "Be brief."},
            {"role": "user", "content": "Hi", "name": "me"},
            {"role": "assistant", "content": "Hello", "refusal": None},
            {"role": "user", "content": "Go on"},
        ],
    ],
    "max_completion_tokens": [3],
    "modalities": [["text"]],
    "service_tier": ["auto", "default"],
    "safety_identifier": ["x"],
    "prompt_cache_key": ["x"],
    "parallel_tool_calls": [True, False],
    "response_format": [
        {"type": "text"},
        {"type": "json_object"},
        {"type": "json_schema", "json_schema": {"name": "a", "schema": SCHEMA, "strict": True}},
    ],
    "input": ["Hi", [{"role": "user", "content": [{"type": "input_text", "text": "Hi"}]}]],
    "instructions": ["Be brief."],
    "max_output_tokens": [16],
    "include": [[one] for one in get_args(ResponseIncludable)],
    "text": [
        {"format": {"type": "text"}},
        {"format": {"type": "json_schema", "name": "a", "schema": SCHEMA}},
    ],
    "background": [True],
    "metadata": [{"a": "b"}],
    "tools": [[]],
    "tool_choice": ["none", "auto"],
    "truncation": ["disabled"],
    "previous_response_id": [None],
}
ACCEPTED_AT: dict[tuple[str, str], list[Any]] = {
    ("/v1/completions", "logprobs"): [0, 5],
    ("/v1/chat/completions", "logprobs"): [True],
    ("/v1/chat/completions", "top_logprobs"): [0],
    ("/v1/responses", "top_logprobs"): [3],
    ("/v1/completions", "stream_options"): [{"include_usage": True}],
    ("/v1/chat/completions", "stream_options"): [{"include_usage": True}],
    ("/v1/responses", "stream_options"): [{"include_obfuscation": False}],
    ("/v1/chat/completions", "store"): [False],
    ("/v1/responses", "store"): [True, False],
}

# What is refused with its name, though the field exists.
REFUSED: list[tuple[str, dict[str, Any], str]] = [
    ("/v1/completions", {"prompt": ""}, "prompt"),
    ("/v1/completions", {"prompt": []}, "prompt"),
    ("/v1/completions", {"prompt": [[]]}, "prompt"),
    ("/v1/completions", {"prompt": [1, "a"]}, "prompt"),
    ("/v1/completions", {"prompt": [-1]}, "prompt"),
    ("/v1/completions", {"prompt": [49152]}, "prompt"),
    ("/v1/completions", {"prompt": ["a"] * 129}, "prompt"),
    ("/v1/completions", {"prompt": ["a"] * 65, "n": 2}, "n"),
    ("/v1/completions", {"n": 0}, "n"),
    ("/v1/completions", {"n": 1_000_000}, "n"),
    ("/v1/completions", {"logprobs": 21}, "logprobs"),
    ("/v1/completions", {"echo": True, "logprobs": 0}, "echo"),
    ("/v1/completions", {"max_tokens": 9000}, "max_tokens"),
    ("/v1/chat/completions", {"messages": []}, "messages"),
    ("/v1/chat/completions", {"messages": [{"role": "user"}]}, "messages.0.content"),
    ("/v1/chat/completions", {"messages": [{"role": "king", "content": "x"}]}, "messages.0.role"),
    (
        "/v1/chat/completions",
        {
            "messages": [
                {
                    "role": "user",
                    "content": [{"type": "image_url", "image_url": {"url": "http://127.0.0.1:1/"}}],
                }
            ]
        },
        "messages.0.content.0.type",
    ),
    ("/v1/chat/completions", {"top_logprobs": 2}, "top_logprobs"),
    ("/v1/chat/completions", {"top_logprobs": 21, "logprobs": True}, "top_logprobs"),
    ("/v1/chat/completions", {"n": 129}, "n"),
    ("/v1/chat/completions", {"store": True}, "store"),
    ("/v1/chat/completions", {"tool_choice": "required"}, "tool_choice"),
    (
        "/v1/chat/completions",
        {"tools": [{"type": "function", "function": {"name": "f"}}]},
        "tools",
    ),
    ("/v1/chat/completions", {"chat_template_kwargs": {"a": 1}}, "chat_template_kwargs"),
    ("/v1/chat/completions", {"max_completion_tokens": 9000}, "max_completion_tokens"),
    (
        "/v1/chat/completions",
        {
            "response_format": {
                "type": "json_schema",
                "json_schema": {"name": "a", "schema": {"type": "nothing"}},
            }
        },
        "response_format",
    ),
    ("/v1/responses", {"input": []}, "input"),
    ("/v1/responses", {"background": True, "store": False}, "store"),
    ("/v1/responses", {"tools": [{"type": "web_search"}]}, "tools"),
    (
        "/v1/responses",
        {"input": [{"role": "user", "content": [{"type": "input_image", "image_url": "x"}]}]},
        "input.0.content.0.type",
    ),
]


def rows(path: str) -> dict[str, str]:
    """The table under an endpoint's heading: field and verdict."""
    text = DOCUMENT.read_text()
    section = next(part for part in text.split("\n## ") if part.splitlines()[0].endswith(path))
    return dict(re.findall(r"^\| `(\w+)` \| (\w+) \|", section, re.MULTILINE))


def fields(path: str) -> set[str]:
    """OpenAI's, as its own client has them. It has the two kinds of `stream` elsewhere."""
    return set(ENDPOINTS[path][1].__annotations__) | {"stream"}


@pytest.mark.parametrize("path", ENDPOINTS)
def test_every_field_has_a_row_and_every_row_its_field(path: str) -> None:
    documented = rows(path)
    ours = set(ENDPOINTS[path][0].model_fields)
    assert documented.keys() - fields(path) <= {"user", "seed", "stop"} | ours
    assert fields(path) <= documented.keys()
    assert ours - SamplingFields.model_fields.keys() <= documented.keys()
    for name, verdict in documented.items():
        assert (verdict == "refused") == (name not in ours), name
        assert verdict in ("honoured", "differs", "refused")


def accepted(path: str) -> Iterator[tuple[str, Any]]:
    for name, verdict in rows(path).items():
        if verdict != "refused":
            for value in ACCEPTED_AT.get((path, name)) or ACCEPTED[name]:
                yield name, value


@pytest.mark.parametrize("path", ENDPOINTS)
async def test_fields_that_are_honoured_are_taken(http: httpx.AsyncClient, path: str) -> None:
    async def take(name: str, value: Any) -> None:
        answer = await http.post(path, json=ENDPOINTS[path][2] | {name: value})
        assert answer.status_code == 200, (name, value, answer.text)

    await asyncio.gather(*(take(name, value) for name, value in accepted(path)))


@pytest.mark.parametrize("path", ENDPOINTS)
async def test_fields_that_are_refused_are_named(http: httpx.AsyncClient, path: str) -> None:
    body = ENDPOINTS[path][2]

    async def refuse(name: str) -> None:
        answer = await http.post(path, json=body | {name: "something"})
        assert answer.status_code == 400, name
        assert error_of(answer)["param"] == name
        assert error_of(answer)["code"] == "unknown_field"
        assert (await http.post(path, json=body | {name: None})).status_code == 200, name

    names = [name for name, verdict in rows(path).items() if verdict == "refused"]
    await asyncio.gather(*(refuse(name) for name in names))


@pytest.mark.parametrize(("path", "change", "param"), REFUSED, ids=lambda value: str(value)[:50])
async def test_values_that_are_refused_are_named(
    http: httpx.AsyncClient, path: str, change: dict[str, Any], param: str
) -> None:
    answer = await http.post(path, json=ENDPOINTS[path][2] | change)
    assert answer.status_code == 400, answer.text
    error = error_of(answer)
    assert error["type"] == "invalid_request_error"
    assert error["param"] == param
    assert param.partition(".")[0] in error["message"]


# ---- earlier turns

CALL = {"id": "a", "type": "function", "function": {"name": "f", "arguments": "{}"}}
ANSWER = {"role": "assistant", "content": [{"type": "text", "text": "Hi"}], "tool_calls": [CALL]}
ITEM = {"role": "assistant", "content": [{"type": "output_text", "text": "Hi"}]}

# Whose field it is: the class, and the way to an object of that class in a body.
PLACES: dict[str, list[tuple[type[Nullable], str, list[Any]]]] = {
    "message": [(ChatMessage, "/v1/chat/completions", ["messages", 0])],
    "part": [
        (TextPart, "/v1/chat/completions", ["messages", 0, "content", 0]),
        (InputText, "/v1/responses", ["input", 0, "content", 0]),
    ],
    "call": [(ToolCall, "/v1/chat/completions", ["messages", 0, "tool_calls", 0])],
    "function": [
        (CalledFunction, "/v1/chat/completions", ["messages", 0, "tool_calls", 0, "function"])
    ],
    "tool": [(Tool, "", []), (FunctionDefinition, "", [])],  # this model has none
    "item": [(InputMessage, "/v1/responses", ["input", 0])],
}


def left_out() -> dict[str, set[str]]:
    """The table of earlier turns: field and places."""
    (section,) = re.findall(r"\n## Earlier turns\n(.*?)\n## ", DOCUMENT.read_text(), re.DOTALL)
    found = re.findall(r"^\| `(\w+)` \| ([a-z, ]+) \|", section, re.MULTILINE)
    return {name: set(places.split(", ")) for name, places in found}


def test_the_table_of_earlier_turns_has_every_field_that_is_left_out() -> None:
    documented = left_out()
    for place, objects in PLACES.items():
        fields = {name for name, places in documented.items() if place in places}
        for kind, _, _ in objects:
            assert kind.left_out == fields, (place, kind)


def earlier(path: str, way: list[Any], extra: dict[str, Any]) -> dict[str, Any]:
    """A body with `extra` in the object of an earlier turn at the end of `way`."""
    name, turn = way[0], ANSWER if path == "/v1/chat/completions" else ITEM
    body = copy.deepcopy(ENDPOINTS[path][2] | {name: [turn, {"role": "user", "content": "Hi"}]})
    found: Any = body
    for step in way:
        found = found[step]
    found |= extra
    return body


@pytest.mark.parametrize("name", left_out())
async def test_what_is_left_out_of_earlier_turns_changes_nothing(
    http: httpx.AsyncClient, name: str
) -> None:
    for place in left_out()[name]:
        for _, path, way in PLACES[place]:
            if not path:
                continue
            counts = set()
            for extra in ({}, {name: "x"}, {name: [{"a": {"b": 1}}]}, {name: None}):
                answer = await http.post(path, json=earlier(path, way, extra))
                assert answer.status_code == 200, answer.text
                usage = answer.json()["usage"]
                counts.add(usage.get("prompt_tokens") or usage["input_tokens"])
            assert len(counts) == 1


def test_marks_on_tools_are_left_out() -> None:
    function = {"name": "f", "cache_control": {"type": "ephemeral"}}
    tool = {"type": "function", "function": function, "cache_control": {"type": "ephemeral"}}
    assert Tool.model_validate(tool).model_dump()["function"]["name"] == "f"
    assert "cache_control" not in str(Tool.model_validate(tool).model_dump())


@pytest.mark.parametrize(
    ("path", "way", "extra", "param"),
    [
        ("/v1/chat/completions", [], {"audio": {"id": "a"}}, "audio"),
        ("/v1/chat/completions", [], {"function_call": {"name": "f"}}, "function_call"),
        ("/v1/chat/completions", [], {"images": ["x"]}, "images"),
        ("/v1/chat/completions", ["content", 0], {"type": "image_url"}, "content.0.type"),
        ("/v1/chat/completions", ["content", 0], {"type": "input_audio"}, "content.0.type"),
        ("/v1/chat/completions", ["tool_calls", 0], {"type": "custom"}, "tool_calls.0.type"),
        ("/v1/responses", [], {"type": "web_search_call"}, "type"),
        ("/v1/responses", [], {"colour": "red"}, "colour"),
        ("/v1/responses", ["content", 0], {"type": "input_image"}, "content.0.type"),
    ],
)
async def test_what_would_change_the_answer_is_refused_in_earlier_turns(
    http: httpx.AsyncClient, path: str, way: list[Any], extra: dict[str, Any], param: str
) -> None:
    name = "messages" if path == "/v1/chat/completions" else "input"
    answer = await http.post(path, json=earlier(path, [name, 0, *way], extra))
    assert answer.status_code == 400
    assert error_of(answer)["param"] == f"{name}.0.{param}"
    if "type" not in extra:
        nulls = dict.fromkeys(extra)
        answer = await http.post(path, json=earlier(path, [name, 0, *way], nulls))
        assert answer.status_code == 200


@pytest.mark.parametrize("kind", REASONING_PARTS)
async def test_reasoning_parts_are_left_out(http: httpx.AsyncClient, kind: str) -> None:
    path, counts = "/v1/chat/completions", set()
    for parts in ([], [{"type": kind, "thinking": "x", "signature": "y", "text": ["z"]}]):
        turn = {"role": "assistant", "content": [*parts, {"type": "text", "text": "Hi"}]}
        body = ENDPOINTS[path][2] | {"messages": [turn, {"role": "user", "content": "Hi"}]}
        answer = await http.post(path, json=body)
        assert answer.status_code == 200, answer.text
        counts.add(answer.json()["usage"]["prompt_tokens"])
    assert len(counts) == 1


@pytest.mark.parametrize(
    ("path", "change", "param", "counts"),
    [
        ("/v1/completions", {"prompt": "word " * 8300}, "prompt", ["8192", "8301"]),
        ("/v1/completions", {"prompt": [5] * 9000}, "prompt", ["8192", "9000"]),
        ("/v1/completions", {"prompt": "word " * 40_000}, "prompt", ["8192", "more than"]),
        ("/v1/completions", {"max_tokens": 8192}, "max_tokens", ["8192", "8193", "8191"]),
        (
            "/v1/chat/completions",
            {"messages": [{"role": "user", "content": "word " * 8300}]},
            "messages",
            ["8192"],
        ),
        (
            "/v1/chat/completions",
            {"max_tokens": 8192, "max_completion_tokens": None},
            "max_tokens",
            [],
        ),
        ("/v1/responses", {"input": "word " * 8300}, "input", ["8192"]),
        ("/v1/responses", {"max_output_tokens": 9000}, "max_output_tokens", ["9000"]),
    ],
    ids=lambda value: str(value)[:40],
)
async def test_a_context_overflow_is_told_as_openai_tells_it(
    http: httpx.AsyncClient, path: str, change: dict[str, Any], param: str, counts: list[str]
) -> None:
    """litellm looks for the words, LangChain for the code."""
    answer = await http.post(path, json=ENDPOINTS[path][2] | change)
    assert answer.status_code == 400
    error = error_of(answer)
    assert (error["code"], error["param"]) == ("context_length_exceeded", param)
    assert (
        "this model's maximum context length is 8192 tokens. however, " in error["message"].lower()
    )
    assert all(count in error["message"] for count in counts), error["message"]


async def test_ours_are_taken_beside_them(http: httpx.AsyncClient) -> None:
    extras = {
        "top_k": 5,
        "min_p": 0.1,
        "repetition_penalty": 1.1,
        "stop_token_ids": [3],
        "ignore_eos": True,
        "min_tokens": 1,
        "priority": 1,
        "cache_salt": "mine",
        "on_disconnect": "abort",
        "grace": 1,
        "timeout": 30,
    }
    assert get_args(SamplingFields.model_fields["on_disconnect"].annotation)
    for path, (_, _, body) in ENDPOINTS.items():
        answer = await http.post(path, json=body | extras)
        assert answer.status_code == 200, answer.text
