"""Tools as openai-python has them: calls that are forced keep to their schemas."""

from pathlib import Path
from typing import Any

import httpx
import pytest
from openai import AsyncOpenAI, BadRequestError, pydantic_function_tool
from openai.types.chat import ChatCompletionMessage, ChatCompletionMessageFunctionToolCall
from pydantic import BaseModel, ConfigDict, Field

from tests.clients.blocks import Fields, blocks_of
from tests.clients.conftest import MODEL, sdk
from tests.server import RunningServer, running
from tests.speed import patience
from tests.tiny import HERMES, tiny_llama


def tool(name: str, parameters: Fields) -> Fields:
    return {"type": "function", "function": {"name": name, "parameters": parameters}}


class Weather(BaseModel):
    """The weather at a place."""

    model_config = ConfigDict(extra="forbid")

    place: str = Field(max_length=5)
    days: int = Field(ge=1, le=7)


class Add(BaseModel):
    model_config = ConfigDict(extra="forbid")

    numbers: list[int] = Field(max_length=3)
    nested: dict[str, bool] = Field({}, max_length=0)


KINDS: dict[str, type[BaseModel]] = {"weather": Weather, "add": Add}
TOOLS = [tool(name, kind.model_json_schema()) for name, kind in KINDS.items()]
NAMED = {"type": "function", "function": {"name": "add"}}


@pytest.fixture
def asked(calling: RunningServer) -> Fields:
    (model,) = httpx.get(f"{calling.url}/v1/models").json()["data"]
    message = {"role": "user", "content": "How is the weather in Rome?"}
    return {
        "model": model["id"],
        "messages": [message],
        "max_completion_tokens": 600,
        "tools": TOOLS,
        "seed": 1,
    }


def calls_of(message: ChatCompletionMessage) -> list[ChatCompletionMessageFunctionToolCall]:
    """Each is valid under the schema of its tool."""
    calls = [call for call in message.tool_calls or [] if call.type == "function"]
    for call in calls:
        KINDS[call.function.name].model_validate_json(call.function.arguments)
    assert len({call.id for call in calls}) == len(calls)
    return calls


async def streamed(client: AsyncOpenAI, fields: Fields) -> tuple[list[Fields], Fields]:
    """Calls and texts by their choices, put together from the deltas, and reasons."""
    calls: dict[tuple[int, int], Fields] = {}
    reasons: Fields = {}
    async for chunk in await client.chat.completions.create(**fields, stream=True):
        for choice in chunk.choices:
            reasons[str(choice.index)] = choice.finish_reason
            for delta in choice.delta.tool_calls or []:
                assert delta.function
                call = calls.setdefault(
                    (choice.index, delta.index), {"id": delta.id, "name": "", "arguments": ""}
                )
                call["name"] += delta.function.name or ""
                call["arguments"] += delta.function.arguments or ""
    return [calls[place] for place in sorted(calls)], reasons


@pytest.mark.parametrize("choice", ["required", NAMED])
async def test_a_forced_call_is_valid_and_streams_as_it_is_whole(
    caller: AsyncOpenAI, asked: Fields, choice: Any
) -> None:
    fields = asked | {"tool_choice": choice, "n": 3, "parallel_tool_calls": False}
    answer = await caller.chat.completions.create(**fields)
    whole = []
    for one in answer.choices:
        assert (one.finish_reason, one.message.content) == ("tool_calls", None)
        (call,) = calls_of(one.message)
        if choice == NAMED:
            assert call.function.name == "add"
        whole.append(call.function.to_dict())
    deltas, reasons = await streamed(caller, fields)
    assert [{k: v for k, v in call.items() if k != "id"} for call in deltas] == whole
    assert set(reasons.values()) == {"tool_calls"}
    assert len({call["id"] for call in deltas}) == 3


async def test_several_calls_unless_only_one_is_wanted(caller: AsyncOpenAI, asked: Fields) -> None:
    """A random model: of four answers some call twice, where they may."""
    fields = asked | {"tool_choice": "required", "n": 4, "seed": 2}
    answers = (await caller.chat.completions.create(**fields)).choices
    counts = [len(calls_of(c.message)) for c in answers if c.finish_reason == "tool_calls"]
    assert max(counts) > 1
    single = fields | {"parallel_tool_calls": False}
    answers = (await caller.chat.completions.create(**single)).choices
    assert [len(calls_of(choice.message)) for choice in answers] == [1] * 4


async def test_a_stream_with_a_call_cut_anywhere(
    caller: AsyncOpenAI, calling: RunningServer, asked: Fields
) -> None:
    """No piece of a name or of arguments is lost, and none comes twice."""

    def told(blocks: list[tuple[str, Fields]]) -> tuple[str, str]:
        deltas = [c["delta"] for _, chunk in blocks for c in chunk.get("choices", [])]
        functions = [call["function"] for d in deltas for call in d.get("tool_calls", [])]
        names = "".join(function.get("name", "") for function in functions)
        return names, "".join(function["arguments"] for function in functions)

    body = asked | {"stream": True, "tool_choice": NAMED}
    async with httpx.AsyncClient(base_url=calling.url, timeout=patience(60)) as http:
        blocks = blocks_of((await http.post("/v1/chat/completions", json=body)).text)
        assert told(blocks)[0] == "add"
        for cut in range(1, len(blocks)):
            headers = {"Last-Event-ID": blocks[cut - 1][0]}
            rest = await http.post("/v1/chat/completions", json=body, headers=headers)
            assert told(blocks[:cut] + blocks_of(rest.text)) == told(blocks), headers


async def test_the_sdks_own_way_to_define_and_to_parse(caller: AsyncOpenAI, asked: Fields) -> None:
    made = pydantic_function_tool(Weather, name="weather")
    answer = await caller.chat.completions.parse(
        **(asked | {"tools": [made], "tool_choice": "required", "parallel_tool_calls": False})
    )
    (call,) = answer.choices[0].message.tool_calls or []
    assert isinstance(call.function.parsed_arguments, Weather)


async def test_the_result_of_a_call_goes_back(caller: AsyncOpenAI, asked: Fields) -> None:
    fields = asked | {"tool_choice": NAMED}
    message = (await caller.chat.completions.create(**fields)).choices[0].message
    (call,) = calls_of(message)
    result = {"role": "tool", "tool_call_id": call.id, "content": "42"}
    turns = [*asked["messages"], message.to_dict(), result]
    answer = await caller.chat.completions.create(
        **(asked | {"messages": turns, "tool_choice": "none", "max_completion_tokens": 5})
    )
    assert answer.choices[0].message.tool_calls is None
    assert answer.usage
    assert answer.usage.completion_tokens == 5


async def test_a_model_that_is_free_may_say_anything(caller: AsyncOpenAI, asked: Fields) -> None:
    """No grammar with `auto`: a random model calls nothing."""
    answer = await caller.chat.completions.create(
        **(asked | {"max_completion_tokens": 20}), extra_body={"ignore_eos": True}
    )
    assert answer.choices[0].finish_reason == "length"
    assert answer.choices[0].message.content


async def test_a_tool_that_cannot_be_is_named(caller: AsyncOpenAI, asked: Fields) -> None:
    wrong: list[tuple[Fields, str]] = [
        ({"tool_choice": {"type": "function", "function": {"name": "other"}}}, "tool_choice"),
        ({"response_format": {"type": "json_object"}}, "response_format"),
        ({"tools": [tool("f", {"$ref": "x"})], "tool_choice": "required"}, "tools"),
        ({"tools": [tool("no blanks", {})]}, "tools"),
    ]
    for fields, param in wrong:
        with pytest.raises(BadRequestError) as refused:
            await caller.chat.completions.create(**(asked | fields))
        assert (refused.value.param or "").startswith(param)


async def test_a_model_without_tools_refuses_them(client: AsyncOpenAI, asked: Fields) -> None:
    for choice in ("auto", "required", "none"):
        with pytest.raises(BadRequestError, match="chat template has no tools") as refused:
            await client.chat.completions.create(
                **(asked | {"model": MODEL, "tool_choice": choice})
            )
        assert refused.value.param == "tools"


# As Qwen3-Coder's: the tags are those of Hermes, what is between them is not.
OTHER_WAY = HERMES.replace(
    '{"name": "{{ call.function.name }}"', "<function={{ call.function.name }}>"
)


async def test_a_model_that_calls_in_another_way_refuses_tools(
    tmp_path: Path, asked: Fields
) -> None:
    """Its calls would be told as text, and no tool would ever run."""
    path = tiny_llama(tmp_path / "other", OTHER_WAY)
    with running(tmp_path / "log", "--model", str(path), "--dtype", "float32") as server:
        async with sdk(server) as client:
            with pytest.raises(BadRequestError, match="tools") as refused:
                await client.chat.completions.create(**(asked | {"model": path.name}))
            assert refused.value.param == "tools"
