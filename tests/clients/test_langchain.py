"""LangChain's ChatOpenAI, which knows nothing of this server but its address."""

import pytest
from langchain_core.messages import AIMessage, AIMessageChunk, HumanMessage, SystemMessage
from langchain_openai import ChatOpenAI
from pydantic import SecretStr

from tests.clients.conftest import MODEL
from tests.clients.test_openai_chat import Person
from tests.server import RunningServer

TURNS = [SystemMessage("You are brief."), HumanMessage("Tell me about the sea.")]


@pytest.fixture
def chat(server: RunningServer) -> ChatOpenAI:
    return ChatOpenAI(
        model=MODEL,
        base_url=f"{server.url}/v1",
        api_key=SecretStr("any"),
        temperature=0,
        max_completion_tokens=24,
        max_retries=0,
    )


async def test_invoke_and_stream_say_the_same(chat: ChatOpenAI) -> None:
    whole = await chat.ainvoke(TURNS)
    assert isinstance(whole, AIMessage)
    assert "sea" in whole.text
    assert whole.response_metadata["finish_reason"] == "length"
    assert whole.usage_metadata
    assert whole.usage_metadata["output_tokens"] == 24
    streamed: AIMessageChunk | None = None
    pieces = 0
    async for chunk in chat.astream(TURNS, stream_usage=True):
        streamed = chunk if streamed is None else streamed + chunk
        pieces += bool(chunk.text)
    assert streamed
    assert pieces > 1
    assert streamed.text == whole.text
    assert streamed.response_metadata["finish_reason"] == "length"
    assert streamed.usage_metadata
    assert streamed.usage_metadata["output_tokens"] == 24


async def test_structured_output(chat: ChatOpenAI) -> None:
    people = chat.with_structured_output(Person, method="json_schema")
    assert isinstance(await people.ainvoke("Who wrote the first program?"), Person)
