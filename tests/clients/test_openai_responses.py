"""Responses as openai-python reads them: whole, streamed, in the background, and from anywhere."""

import itertools
from typing import Any

import httpx
import pytest
from openai import APIConnectionError, AsyncOpenAI, BadRequestError, NotFoundError
from openai.types.responses import Response, ResponseStreamEvent

from tests.clients.blocks import Fields, blocks_of
from tests.clients.conftest import MODEL, sdk
from tests.clients.test_openai_chat import Person
from tests.proxy import Proxy
from tests.server import RunningServer
from tests.speed import patience

ASK: Fields = {
    "model": MODEL,
    "input": "Tell me about the sea.",
    "max_output_tokens": 16,
    "temperature": 0,
}
RANDOM: Fields = ASK | {"temperature": 1.3, "extra_body": {"seed": 7}}
LONG: Fields = ASK | {"max_output_tokens": 2000, "extra_body": {"ignore_eos": True}}
SHORT: Fields = ASK | {"input": "Just say: hi", "max_output_tokens": 100}


async def whole(client: AsyncOpenAI, **fields: Any) -> Response:
    response: Response = await client.responses.create(**fields)
    return response


async def streamed(client: AsyncOpenAI, **fields: Any) -> list[ResponseStreamEvent]:
    return [event async for event in await client.responses.create(**fields, stream=True)]


async def retrieved(client: AsyncOpenAI, response_id: str, **fields: Any) -> list[Fields]:
    stream = await client.responses.retrieve(response_id, stream=True, **fields)
    return [event.to_dict() async for event in stream]


def id_of(events: list[ResponseStreamEvent]) -> str:
    assert events[0].type == "response.created"
    return events[0].response.id


def texts(events: list[ResponseStreamEvent]) -> str:
    return "".join(e.delta for e in events if e.type == "response.output_text.delta")


async def test_a_whole_response(client: AsyncOpenAI) -> None:
    response = await whole(client, **SHORT, metadata={"for": "a test"}, instructions="Be brief.")
    assert response.id.startswith("resp_")
    assert (response.status, response.model) == ("completed", MODEL)
    assert (response.error, response.incomplete_details) == (None, None)
    assert (response.metadata, response.instructions) == ({"for": "a test"}, "Be brief.")
    assert response.output_text
    assert response.usage
    assert response.usage.output_tokens > 0
    assert await client.responses.retrieve(response.id) == response


async def test_one_that_is_cut_short_says_so(client: AsyncOpenAI) -> None:
    response = await whole(client, **ASK)
    assert response.status == "incomplete"
    assert response.incomplete_details
    assert response.incomplete_details.reason == "max_output_tokens"
    assert response.usage
    assert response.usage.output_tokens == 16
    assert "sea" in response.output_text


async def test_a_stream_has_openais_events_in_their_order(client: AsyncOpenAI) -> None:
    for fields, last in ((ASK, "response.incomplete"), (SHORT, "response.completed")):
        events = await streamed(client, **fields)
        assert [kind for kind, _ in itertools.groupby(event.type for event in events)] == [
            "response.created",
            "response.in_progress",
            "response.output_item.added",
            "response.content_part.added",
            "response.output_text.delta",
            "response.output_text.done",
            "response.content_part.done",
            "response.output_item.done",
            last,
        ]
        assert [event.sequence_number for event in events] == [*range(len(events))]
        final = events[-1]
        assert final.type in ("response.incomplete", "response.completed")
        assert final.response == await client.responses.retrieve(final.response.id)
        assert texts(events) == final.response.output_text
        assert texts(events) == (await whole(client, **fields)).output_text


async def test_the_sdks_own_way_to_gather_a_stream(client: AsyncOpenAI) -> None:
    async with client.responses.stream(**SHORT) as stream:
        gathered = [event async for event in stream]
        final = await stream.get_final_response()
    assert final.output_text == (await whole(client, **SHORT)).output_text
    assert gathered[-1].type == "response.completed"


async def test_a_stream_read_again_after_every_event(client: AsyncOpenAI) -> None:
    """The very same events, numbers and all, logprobs too."""
    include = ["message.output_text.logprobs"]
    events = await streamed(client, **RANDOM, include=include, top_logprobs=2)
    uncut, response_id = [event.to_dict() for event in events], id_of(events)
    assert len(uncut) == 4 + 16 + 4
    assert await retrieved(client, response_id) == uncut
    for after in range(len(uncut)):
        rest = await retrieved(client, response_id, starting_after=after)
        assert rest == uncut[after + 1 :], f"after {after}"
    assert await retrieved(client, response_id, starting_after=1000) == []


async def test_a_cut_connection_is_an_error_and_the_stream_goes_on(
    client: AsyncOpenAI, server: RunningServer
) -> None:
    """While it is being written: what comes before the cut and after it is the uncut stream."""
    events: list[Fields] = []
    async with Proxy(server.url) as proxy:
        through = sdk(server).with_options(base_url=f"{proxy.url}/v1")

        async def read() -> None:
            fields = RANDOM | {"max_output_tokens": 60}
            async for event in await through.responses.create(**fields, stream=True):
                events.append(event.to_dict())
                if len(events) == 12:
                    proxy.cut()

        with pytest.raises(APIConnectionError):
            await read()
        await through.close()
    assert 12 <= len(events) < 60, "the cut came in the middle"
    response_id = events[0]["response"]["id"]
    last = events[-1]["sequence_number"]
    events += await retrieved(client, response_id, starting_after=last)
    assert [event["sequence_number"] for event in events] == [*range(len(events))]
    assert events == await retrieved(client, response_id)
    assert events[-1]["response"]["usage"]["output_tokens"] == 60


async def test_last_event_id_resumes_as_well(client: AsyncOpenAI, server: RunningServer) -> None:
    body = ASK | {"stream": True}
    async with httpx.AsyncClient(base_url=server.url, timeout=patience(60)) as http:
        blocks = blocks_of((await http.post("/v1/responses", json=body)).text)
        numbers = [data.get("sequence_number") for _, data in blocks]
        for cut in range(1, len(blocks)):
            headers = {"Last-Event-ID": blocks[cut - 1][0]}
            rest = blocks_of((await http.post("/v1/responses", json=body, headers=headers)).text)
            begun = numbers.index(rest[0][1].get("sequence_number"))
            assert begun <= cut, "nothing is lost; what comes again has its old number"
            assert rest == blocks[begun:]


# ---- in the background


async def test_in_the_background(client: AsyncOpenAI) -> None:
    begun = await whole(client, **RANDOM, background=True)
    assert begun.status in ("queued", "in_progress")
    assert begun.background is True
    events = await retrieved(client, begun.id)
    assert events[-1]["type"] == "response.incomplete"
    ended = await client.responses.retrieve(begun.id)
    assert ended.status == "incomplete"
    assert ended.output_text == (await whole(client, **RANDOM)).output_text


async def test_a_stream_of_the_background_goes_on_when_its_reader_leaves(
    client: AsyncOpenAI, server: RunningServer
) -> None:
    stream = await client.responses.create(**RANDOM, background=True, stream=True)
    async with stream:
        async for event in stream:
            if event.type == "response.created":
                break
    await server.health_becomes(10, running=0, paused=0)
    assert event.type == "response.created"
    ended = await client.responses.retrieve(event.response.id)
    assert ended.usage
    assert ended.usage.output_tokens == 16


async def test_cancel(client: AsyncOpenAI, server: RunningServer) -> None:
    begun = await whole(client, **LONG, background=True)
    stream = await client.responses.retrieve(begun.id, stream=True)
    async for event in stream:
        if event.type == "response.output_text.delta":
            break
    cancelled = await client.responses.cancel(begun.id)
    assert cancelled.status == "cancelled"
    assert cancelled.output_text
    last = [event async for event in stream][-1]
    assert last.type == "response.incomplete"
    assert last.response == cancelled
    assert await client.responses.cancel(begun.id) == cancelled, "a second time changes nothing"
    await server.health_becomes(5, running=0, kv_blocks_used=0)


# ---- conversations


async def test_a_conversation_goes_on_after_an_earlier_response(client: AsyncOpenAI) -> None:
    """As if all of it had been given; instructions are those of each response alone."""
    first = await whole(client, **SHORT, instructions="Be brief.")
    turn: Fields = {"role": "user", "content": "And now say: bye"}
    second = await whole(client, **(SHORT | {"input": [turn]}), previous_response_id=first.id)
    assert second.previous_response_id == first.id
    turns = [{"role": "user", "content": SHORT["input"]}, *first.to_dict()["output"], turn]  # type: ignore[misc]
    written = await whole(client, **(SHORT | {"input": turns}))
    assert second.output_text == written.output_text
    assert second.usage
    assert written.usage
    assert second.usage.input_tokens == written.usage.input_tokens
    third = await whole(client, **SHORT, previous_response_id=second.id)
    assert third.usage
    assert third.usage.input_tokens > second.usage.input_tokens


async def test_one_that_has_not_ended_cannot_be_gone_on_from(client: AsyncOpenAI) -> None:
    begun = await whole(client, **LONG, background=True)
    with pytest.raises(BadRequestError) as refused:
        await whole(client, **ASK, previous_response_id=begun.id)
    assert refused.value.param == "previous_response_id"
    await client.responses.cancel(begun.id)


async def test_what_is_not_stored_cannot_be_retrieved(client: AsyncOpenAI) -> None:
    response = await whole(client, **ASK, store=False)
    assert response.output_text
    for again in (
        client.responses.retrieve(response.id),
        client.responses.cancel(response.id),
        whole(client, **ASK, previous_response_id=response.id),
    ):
        with pytest.raises(NotFoundError) as refused:
            await again
        assert "store: false" in refused.value.message
    with pytest.raises(BadRequestError) as unlikely:
        await whole(client, **ASK, store=False, background=True)
    assert unlikely.value.param == "store"


# ---- JSON


async def test_parse_gives_a_model_of_pydantic(client: AsyncOpenAI) -> None:
    asked = SHORT | {"input": "Who wrote the first program?"}
    response = await client.responses.parse(**asked, text_format=Person)
    assert isinstance(response.output_parsed, Person)
    async with client.responses.stream(**asked, text_format=Person) as stream:
        async for _ in stream:
            pass
        assert (await stream.get_final_response()).output_parsed == response.output_parsed
