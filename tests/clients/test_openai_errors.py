"""What goes wrong, as openai-python tells it: never half an answer as if it were a whole one."""

import asyncio
import re
from collections.abc import AsyncIterator

import httpx
import httpx2
import openai
import pytest
from openai import APIError, AsyncOpenAI, AsyncStream
from openai.types.chat import ChatCompletionChunk

from tests.clients.blocks import Fields
from tests.clients.conftest import KEY, PING, SEATS, WAITING, sdk
from tests.e2e.crashing_engine import AT, DEADLY, SPOILT
from tests.server import RunningServer
from tests.speed import patience

CHAT: Fields = {"model": "any", "messages": [{"role": "user", "content": "Hi"}]}
LONG: Fields = CHAT | {
    "max_tokens": 3000,
    "extra_body": {"ignore_eos": True, "on_disconnect": "abort"},
}


@pytest.fixture
def model(calling: RunningServer) -> str:
    name: str = httpx.get(f"{calling.url}/v1/models").json()["data"][0]["id"]
    return name


# ---- refused


@pytest.mark.parametrize(
    ("fields", "param", "code"),
    [
        ({"temperature": 3}, "temperature", "invalid_value"),
        ({"messages": []}, "messages", "invalid_value"),
        (
            {"messages": [{"role": "user", "content": "x" * 5000}]},
            "messages",
            "context_length_exceeded",
        ),
        ({"max_completion_tokens": 5000}, "max_completion_tokens", "context_length_exceeded"),
        ({"max_tokens": 5000}, "max_tokens", "context_length_exceeded"),
        ({"n": 200}, "n", "invalid_value"),
        ({"top_logprobs": 2}, "top_logprobs", "invalid_value"),
        ({"logit_bias": {"300": 1}}, "logit_bias", "invalid_value"),
        ({"store": True}, "store", "invalid_value"),
        ({"reasoning_effort": "low"}, "reasoning_effort", "unknown_field"),
        ({"extra_body": {"nonsense": 1}}, "nonsense", "unknown_field"),
        ({"response_format": {"type": "xml"}}, "response_format", "invalid_value"),
        ({"tool_choice": "required"}, "tool_choice", "invalid_value"),
    ],
)
async def test_a_bad_request_names_the_field(
    caller: AsyncOpenAI, model: str, fields: Fields, param: str, code: str
) -> None:
    with pytest.raises(openai.BadRequestError) as refused:
        await caller.chat.completions.create(**(CHAT | {"model": model} | fields))
    assert (refused.value.param, refused.value.code) == (param, code)
    assert refused.value.type == "invalid_request_error"
    assert param in refused.value.message


async def test_a_schema_that_cannot_be_followed(caller: AsyncOpenAI, model: str) -> None:
    for schema in ({"type": "nonsense"}, {"not": {"type": "string"}}, {"$ref": "http://x/y"}):
        named = {"type": "json_schema", "json_schema": {"name": "s", "schema": schema}}
        fields = CHAT | {"model": model, "response_format": named}
        with pytest.raises(openai.BadRequestError) as refused:
            await caller.chat.completions.create(**fields)
        assert (refused.value.param, refused.value.code) == ("response_format", "invalid_value")


async def test_what_is_not_there(caller: AsyncOpenAI, model: str) -> None:
    for unknown, code in (
        (caller.chat.completions.create(**(CHAT | {"model": "gpt-17"})), "model_not_found"),
        (caller.completions.create(model="gpt-17", prompt="Hi"), "model_not_found"),
        (caller.responses.create(model="gpt-17", input="Hi"), "model_not_found"),
        (caller.models.retrieve("gpt-17"), "model_not_found"),
        (caller.responses.retrieve("resp_unknown"), "tape_not_found"),
        (caller.responses.cancel("resp_unknown"), "tape_not_found"),
        (
            caller.responses.create(model=model, input="Hi", previous_response_id="resp_no"),
            "tape_not_found",
        ),
    ):
        with pytest.raises(openai.NotFoundError) as refused:
            await unknown
        assert refused.value.code == code


async def test_a_key_is_wanted(guarded: RunningServer) -> None:
    async with sdk(guarded, "wrong") as stranger:
        for refused in (
            stranger.models.list(),
            stranger.completions.create(model="any", prompt="Hi"),
            stranger.chat.completions.create(**CHAT),
            stranger.responses.create(model="any", input="Hi"),
            stranger.responses.retrieve("resp_any"),
        ):
            with pytest.raises(openai.AuthenticationError):
                await refused


async def test_who_asks_too_often_or_of_a_model_that_does_not_chat(guarded: RunningServer) -> None:
    async with sdk(guarded, KEY) as known:
        (model,) = (await known.models.list()).data
        with pytest.raises(openai.BadRequestError) as unable:
            await known.chat.completions.create(**(CHAT | {"model": model.id}))
        assert unable.value.param == "messages"
        with pytest.raises(openai.RateLimitError) as limited:  # that was a start, too
            await known.completions.create(model=model.id, prompt="Hi", max_tokens=1)
    assert limited.value.code == "rate_limited"
    assert int(limited.value.response.headers["Retry-After"]) > 3000


async def begin(client: AsyncOpenAI, model: str) -> AsyncStream[ChatCompletionChunk]:
    """A long answer, of which the first chunk is here."""
    stream: AsyncStream[ChatCompletionChunk] = await client.chat.completions.create(
        **(LONG | {"model": model}), stream=True
    )
    await anext(aiter(stream))
    return stream


async def test_a_full_queue_is_a_rate_limit_and_trying_again_helps(
    caller: AsyncOpenAI, calling: RunningServer, model: str
) -> None:
    streams = [await begin(caller, model) for _ in range(SEATS + WAITING)]
    with pytest.raises(openai.RateLimitError) as refused:
        await caller.chat.completions.create(**(LONG | {"model": model}))
    assert refused.value.code == "queue_full"
    assert int(refused.value.response.headers["Retry-After"]) >= 1
    async with sdk(calling, max_retries=5) as patient:
        fields = CHAT | {"model": model, "max_tokens": 2}
        answer = asyncio.create_task(patient.chat.completions.create(**fields))
        refusals = calling.log.read_text().count('"status": 429')
        while calling.log.read_text().count('"status": 429') == refusals:  # noqa: ASYNC110
            await asyncio.sleep(0.01)
        for stream in streams:
            await stream.close()
        await calling.health_becomes(10, running=0)
        assert (await answer).usage


# ---- in the middle of an answer


def poisoned(seed: int, model: str) -> Fields:
    extra = {"ignore_eos": True}
    return CHAT | {"model": model, "max_tokens": 8, "seed": seed, "extra_body": extra}


async def drain(client: AsyncOpenAI, fields: Fields) -> list[ChatCompletionChunk]:
    return [chunk async for chunk in await client.chat.completions.create(**fields, stream=True)]


async def test_a_failure_in_the_middle_of_a_stream_is_raised(
    caller: AsyncOpenAI, model: str
) -> None:
    fields = poisoned(SPOILT, model)
    texts: list[str] = []

    async def read() -> None:
        async for chunk in await caller.chat.completions.create(**fields, stream=True):
            texts.append(chunk.choices[0].delta.content or "")
            assert chunk.choices[0].finish_reason is None

    with pytest.raises(APIError) as failed:
        await read()
    assert failed.value.code == "error"
    assert failed.value.type == "server_error"
    assert any(texts), "what came before is not lost"
    assert len("".join(texts).encode()) <= 3 * AT


async def test_a_completion_that_fails_in_the_middle(calling: RunningServer, model: str) -> None:
    fields = poisoned(SPOILT, model) | {"prompt": "Hi"}
    del fields["messages"]
    async with sdk(calling, strict=False) as client:
        stream = await client.completions.create(**fields, stream=True)
        with pytest.raises(APIError):
            [chunk async for chunk in stream]


async def test_a_failure_is_a_500_where_the_answer_is_whole(
    caller: AsyncOpenAI, model: str
) -> None:
    with pytest.raises(openai.InternalServerError) as failed:
        await caller.chat.completions.create(**poisoned(SPOILT, model))
    assert failed.value.code == "engine_error"


async def test_one_choice_that_fails_fails_the_answer(caller: AsyncOpenAI, model: str) -> None:
    """The first of three has the seed."""
    fields = poisoned(SPOILT, model) | {"n": 3}
    with pytest.raises(openai.InternalServerError):
        await caller.chat.completions.create(**fields)


async def test_a_response_that_fails(caller: AsyncOpenAI, model: str) -> None:
    extra = {"ignore_eos": True, "seed": SPOILT}
    fields: Fields = {"model": model, "input": "Hi", "max_output_tokens": 8, "extra_body": extra}
    last = [event async for event in await caller.responses.create(**fields, stream=True)][-1]
    assert last.type == "response.failed"
    assert last.response.status == "failed"
    assert last.response.error
    assert last.response.error.code == "server_error"
    assert last.response.output_text
    assert await caller.responses.retrieve(last.response.id) == last.response
    with pytest.raises(openai.InternalServerError):
        await caller.responses.create(**fields)


async def test_a_timeout_in_the_middle_is_raised(caller: AsyncOpenAI, model: str) -> None:
    fields = LONG | {"model": model, "extra_body": {"ignore_eos": True, "timeout": 0.3}}
    with pytest.raises(APIError) as late:
        await drain(caller, fields)
    assert late.value.code == "timeout"


async def test_a_timeout_of_a_whole_answer_is_raised_once(caller: AsyncOpenAI, model: str) -> None:
    """Half an answer has no name in OpenAI's formats, and to try again would take as long."""
    fields = LONG | {"model": model, "extra_body": {"ignore_eos": True, "timeout": 0.3}}
    with pytest.raises(openai.APIStatusError) as late:
        await caller.chat.completions.create(**fields)
    assert (late.value.status_code, late.value.code) == (408, "timeout")


async def test_the_death_of_the_engine_is_raised_only_to_who_killed_it(
    caller: AsyncOpenAI, calling: RunningServer, model: str
) -> None:
    calm = CHAT | {"model": model, "max_tokens": 40, "seed": 1}
    alone = await caller.chat.completions.create(**calm)
    with pytest.raises(APIError, match="died twice"):
        await drain(caller, poisoned(DEADLY, model))
    await calling.health_becomes(60, engine="ready")
    again = await caller.chat.completions.create(**calm)
    assert again.choices == alone.choices


# ---- silence


async def replayed(raw: bytes) -> list[ChatCompletionChunk]:
    """What openai-python makes of these bytes."""
    answer = httpx2.Response(200, content=raw, headers={"Content-Type": "text/event-stream"})
    transport = httpx2.MockTransport(lambda _: answer)
    async with (
        httpx2.AsyncClient(transport=transport) as http,
        AsyncOpenAI(base_url="http://replay", api_key="any", http_client=http) as client,
    ):
        return await drain(client, CHAT)


async def waiting_stream(server: RunningServer, model: str) -> AsyncIterator[bytes]:
    body = CHAT | {"model": model, "max_tokens": 5, "stream": True}
    async with (
        httpx.AsyncClient(base_url=server.url, timeout=patience(30)) as http,
        http.stream("POST", "/v1/chat/completions", json=body) as response,
    ):
        async for piece in response.aiter_raw():
            yield piece


async def test_comments_on_a_silent_stream_are_nothing_to_the_sdk(
    caller: AsyncOpenAI, calling: RunningServer, model: str
) -> None:
    """Another has the only seat, until there were some pings."""
    first = await begin(caller, model)
    raw = b""
    async for piece in waiting_stream(calling, model):
        raw += piece
        if raw.count(b"\n: ") > 0.5 / PING:
            await first.close()
    comments: list[bytes] = re.findall(rb"^: .*\n", raw, re.MULTILINE)
    assert any(b"status" in comment for comment in comments)
    assert any(b"queued" in comment and b"status" not in comment for comment in comments)
    chunks = await replayed(raw)
    assert chunks[-1].choices[0].finish_reason
    # Had comments been blocks, as they are elsewhere, this client would fail at the first.
    usual = re.sub(rb"^(: .*\n)", rb"\1\n", raw, flags=re.MULTILINE)
    with pytest.raises(Exception, match="Expecting value"):
        await replayed(usual)
