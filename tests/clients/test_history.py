"""Answers go back as earlier turns, as openai-python and LangChain gave them."""

from typing import Any

import pytest
from langchain_core.exceptions import ContextOverflowError
from langchain_core.messages import AIMessage, AIMessageChunk, HumanMessage, ToolMessage
from langchain_openai import ChatOpenAI
from openai import AsyncOpenAI, BadRequestError, NotFoundError, pydantic_function_tool
from pydantic import SecretStr

from tests.clients.blocks import Fields
from tests.clients.conftest import MODEL, sdk
from tests.clients.test_openai_chat import Person
from tests.clients.test_openai_tools import KINDS, NAMED, Add, asked
from tests.server import RunningServer

QUESTION: Fields = {"role": "user", "content": "Who wrote the first program?"}
NEXT: Fields = {"role": "user", "content": "And then?"}
CHAT: Fields = {
    "model": MODEL,
    "messages": [QUESTION],
    "temperature": 0,
    "max_completion_tokens": 100,
}

__all__ = ["asked"]  # a fixture

# openai-python's own: it warns of `parsed` when it writes one of its messages.
pytestmark = pytest.mark.filterwarnings("ignore:Pydantic serializer warnings")


async def prompt_after(client: AsyncOpenAI, fields: Fields, message: Any) -> int:
    """How many tokens the conversation has when it goes on after this answer."""
    turn = message if isinstance(message, dict) else message.model_dump()
    calls = turn.get("tool_calls") or []
    results = [{"role": "tool", "tool_call_id": call["id"], "content": "3"} for call in calls]
    kept = {k: v for k, v in fields.items() if k not in ("tools", "tool_choice")}
    turns = [QUESTION, message, *results, NEXT]
    answer = await client.chat.completions.create(**(kept | {"messages": turns}))
    assert answer.usage
    return int(answer.usage.prompt_tokens)


def dumps(message: Any) -> list[Any]:
    return [
        message,
        message.model_dump(),
        message.model_dump(exclude_none=True),
        message.model_dump(mode="json", exclude_unset=True),
        message.to_dict(),
    ]


async def gathered(client: AsyncOpenAI, fields: Fields) -> Fields:
    """Raw deltas put together by hand, as many do, with the indexes of calls."""
    message: Fields = {}
    async for chunk in await client.chat.completions.create(**fields, stream=True):
        for name, value in chunk.choices[0].delta.model_dump().items():
            if name == "tool_calls" and value:
                calls = message["tool_calls"] = message.get("tool_calls") or []
                for piece in value:
                    if piece["index"] == len(calls):
                        calls.append(piece)
                    else:
                        function = calls[piece["index"]]["function"]
                        function["arguments"] += piece["function"]["arguments"]
            elif isinstance(value, str) and name != "role":
                message[name] = (message.get(name) or "") + value
            else:
                message[name] = message.get(name) or value
    return message


async def ways(client: AsyncOpenAI, fields: Fields, **parsed: Any) -> list[Any]:
    """The same answer, by each way to get one."""
    completions = client.chat.completions
    found = [*dumps((await completions.create(**fields)).choices[0].message)]
    found += dumps((await completions.parse(**(fields | parsed))).choices[0].message)
    async with completions.stream(**(fields | parsed)) as stream:
        final = await stream.get_final_completion()
    found += dumps(final.choices[0].message)
    return [*found, await gathered(client, fields)]


async def test_openais_answers_go_back_as_they_are(server: RunningServer) -> None:
    async with sdk(server, strict=False) as client:
        counts = {await prompt_after(client, CHAT, one) for one in await ways(client, CHAT)}
        assert len(counts) == 1
        answer = await client.chat.completions.parse(**CHAT, response_format=Person)
        for one in dumps(answer.choices[0].message):
            assert await prompt_after(client, CHAT, one)


async def test_openais_calls_go_back_as_they_are(calling: RunningServer, asked: Fields) -> None:
    tool = pydantic_function_tool(Add, name="add")
    fields = asked | {"messages": [QUESTION], "tools": [tool], "tool_choice": NAMED}
    async with sdk(calling, strict=False) as client:
        found = await ways(client, fields)
        assert all(one["tool_calls"] for one in found if isinstance(one, dict))
        assert len({await prompt_after(client, fields, one) for one in found}) == 1


async def test_langchains_messages_go_back(server: RunningServer) -> None:
    chat = ChatOpenAI(
        model=MODEL,
        base_url=f"{server.url}/v1",
        api_key=SecretStr("any"),
        temperature=0,
        max_completion_tokens=20,
    )
    question = HumanMessage("Just say: hi")
    streamed: AIMessageChunk | None = None
    async for chunk in chat.astream([question]):
        streamed = chunk if streamed is None else streamed + chunk
    for answer in (await chat.ainvoke([question]), streamed):
        assert isinstance(answer, AIMessage)
        assert (await chat.ainvoke([question, answer, HumanMessage("Again")])).text


async def test_langchain_sees_that_the_context_is_too_short(server: RunningServer) -> None:
    """So that its middleware can shorten the conversation."""
    address = f"{server.url}/v1"
    chat = ChatOpenAI(model=MODEL, base_url=address, api_key=SecretStr("any"), max_retries=0)
    for limited, text in ((chat, "word " * 9000), (chat.bind(max_completion_tokens=9000), "Hi")):
        with pytest.raises(ContextOverflowError, match="maximum context length is 8192 tokens"):
            await limited.ainvoke([HumanMessage(text)])


async def test_langchains_calls_go_back(calling: RunningServer, asked: Fields) -> None:
    chat = ChatOpenAI(
        model=asked["model"],
        base_url=f"{calling.url}/v1",
        api_key=SecretStr("any"),
        max_completion_tokens=600,
        seed=1,
    )
    tools = chat.bind_tools([KINDS["add"]], tool_choice="Add")
    question = HumanMessage("What is 1 and 2?")
    answer = await tools.ainvoke([question])
    (call,) = answer.tool_calls
    result = ToolMessage("3", tool_call_id=call["id"])
    assert (await chat.ainvoke([question, answer, result])).usage_metadata


# ---- responses

ASK: Fields = {"model": MODEL, "temperature": 0, "max_output_tokens": 20}


async def test_what_a_response_put_out_goes_back_as_it_is(server: RunningServer) -> None:
    asking = ASK | {"input": [QUESTION], "max_output_tokens": 100}
    include: Any = ["message.output_text.logprobs"]
    async with sdk(server, strict=False) as client:
        first = await client.responses.create(**asking, include=include)
        parsed = await client.responses.parse(**asking, text_format=Person)
        counts = []
        for response in (first, parsed):
            dumped = [
                response.output,
                response.model_dump()["output"],
                response.model_dump(exclude_none=True)["output"],
                response.to_dict()["output"],
                [{"type": "item_reference", "id": response.output[0].id}],
                [{"id": response.output[0].id}],
                [{"role": "assistant", "content": response.output_text}],
            ]
            tokens = set()
            for output in dumped:
                turns: Any = [QUESTION, *output, NEXT]
                again = await client.responses.create(**ASK, input=turns)
                assert again.usage
                tokens.add(again.usage.input_tokens)
            counts.append(tokens)
        assert [len(tokens) for tokens in counts] == [1, 1]
        assert counts[0] != counts[1]


async def test_items_that_are_not_kept_are_named(client: AsyncOpenAI) -> None:
    unstored = await client.responses.create(**ASK, input="Hi", store=False)
    chat = await client.chat.completions.create(**CHAT)
    for item in (
        unstored.output[0].id,
        "msg_0123456789abcdef01234567",
        "msg_",
        "rs_1",
        chat.id.replace("chatcmpl-", "msg_"),
    ):
        turns: Any = [QUESTION, {"type": "item_reference", "id": item}, NEXT]
        with pytest.raises(NotFoundError, match="send the message itself") as refused:
            await client.responses.create(**ASK, input=turns)
        assert (refused.value.param, refused.value.code) == ("input.1", "item_not_found")


async def test_an_item_may_come_often_but_not_without_end(client: AsyncOpenAI) -> None:
    """A request of a few bytes an item must not become a conversation of megabytes."""
    first = await client.responses.create(**ASK, input="Tell me about the sea.")
    reference: Fields = {"type": "item_reference", "id": first.output[0].id}
    twice: Any = [QUESTION, reference, NEXT, reference, NEXT]
    assert (await client.responses.create(**ASK, input=twice)).output_text
    with pytest.raises(BadRequestError, match="Leave some out") as refused:
        await client.responses.create(**ASK, input=[reference, NEXT] * 1000)  # type: ignore[arg-type]
    assert refused.value.code == "context_length_exceeded"


async def test_an_item_that_has_not_ended_is_named(client: AsyncOpenAI) -> None:
    begun = await client.responses.create(
        **(ASK | {"max_output_tokens": 2000}),
        input="Hi",
        background=True,
        extra_body={"ignore_eos": True},
    )
    reference: Any = [{"type": "item_reference", "id": begun.id.replace("resp_", "msg_")}]
    with pytest.raises(Exception, match="not ended yet") as refused:
        await client.responses.create(**ASK, input=reference)
    assert getattr(refused.value, "code", None) == "response_not_ended"
    await client.responses.cancel(begun.id)


CALLS: list[Fields] = [
    {"type": "reasoning", "id": "rs_1", "summary": [], "encrypted_content": "x"},
    {"role": "assistant", "content": "I add."},
    {
        "type": "function_call",
        "call_id": "a",
        "name": "add",
        "arguments": '{"numbers": [1, 2]}',
        "id": "fc_1",
        "status": "completed",
        "parsed_arguments": {"numbers": [1, 2]},
    },
    {"type": "function_call", "call_id": "b", "name": "add", "arguments": "", "async": False},
    {"type": "function_call_output", "call_id": "a", "output": "3", "id": None, "status": None},
    {
        "type": "function_call_output",
        "call_id": "b",
        "output": [{"type": "input_text", "text": "4"}],
    },
]


async def test_calls_in_a_history_are_turns(caller: AsyncOpenAI, asked: Fields) -> None:
    """As a chat with the same calls has them."""
    call = {"type": "function", "function": {"name": "add", "arguments": '{"numbers": [1, 2]}'}}
    bare = {"type": "function", "function": {"name": "add", "arguments": "{}"}}
    turns: Any = [
        QUESTION,
        {
            "role": "assistant",
            "content": "I add.",
            "tool_calls": [call | {"id": "a"}, bare | {"id": "b"}],
        },
        {"role": "tool", "tool_call_id": "a", "content": "3"},
        {"role": "tool", "tool_call_id": "b", "content": "4"},
        NEXT,
    ]
    fields = {"model": asked["model"], "max_tokens": 5, "messages": turns}
    chat = await caller.chat.completions.create(**fields)
    items: Any = [QUESTION, *CALLS, NEXT]
    response = await caller.responses.create(model=asked["model"], input=items, max_output_tokens=5)
    assert chat.usage
    assert response.usage
    assert response.usage.input_tokens == chat.usage.prompt_tokens


async def test_a_model_without_tools_refuses_calls(client: AsyncOpenAI) -> None:
    items: Any = [QUESTION, *CALLS, NEXT]
    with pytest.raises(Exception, match="chat template has no tools") as refused:
        await client.responses.create(**ASK, input=items)
    assert getattr(refused.value, "param", None) == "input"
