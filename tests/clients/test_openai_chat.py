"""Chat completions as openai-python reads them: whole, streamed, with every option."""

import itertools
import json
from typing import Any, Literal

import httpx
import pytest
from openai import AsyncOpenAI, OpenAI
from openai.types.chat import ChatCompletion, ChatCompletionChunk
from pydantic import BaseModel, ConfigDict, Field

from tests.clients.blocks import Fields, blocks_of, told
from tests.clients.conftest import MODEL
from tests.server import RunningServer

CHAT: Fields = {
    "model": MODEL,
    "messages": [{"role": "user", "content": "Tell me about the sea."}],
    "max_completion_tokens": 16,
}
GREEDY: Fields = CHAT | {"temperature": 0}
FORTY: Fields = GREEDY | {"max_completion_tokens": 40}
RANDOM: Fields = CHAT | {"temperature": 1.3, "seed": 7}
THREE: Fields = RANDOM | {"n": 3}


async def whole(client: AsyncOpenAI, **fields: Any) -> ChatCompletion:
    answer: ChatCompletion = await client.chat.completions.create(**fields)
    return answer


async def streamed(client: AsyncOpenAI, **fields: Any) -> list[ChatCompletionChunk]:
    return [chunk async for chunk in await client.chat.completions.create(**fields, stream=True)]


async def text_of(client: AsyncOpenAI, **fields: Any) -> str:
    return (await whole(client, **fields)).choices[0].message.content or ""


def joined(chunks: list[ChatCompletionChunk], index: int = 0) -> str:
    choices = [choice for chunk in chunks for choice in chunk.choices]
    return "".join(choice.delta.content or "" for choice in choices if choice.index == index)


async def test_a_whole_answer(client: AsyncOpenAI) -> None:
    answer = await whole(client, **GREEDY)
    assert answer.id.startswith("chatcmpl-")
    assert (answer.object, answer.model) == ("chat.completion", MODEL)
    (choice,) = answer.choices
    assert (choice.index, choice.finish_reason, choice.logprobs) == (0, "length", None)
    assert (choice.message.role, choice.message.refusal) == ("assistant", None)
    assert "sea" in (choice.message.content or "")
    assert answer.usage
    assert answer.usage.completion_tokens == 16
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + 16


def test_the_client_that_is_not_async(server: RunningServer) -> None:
    with OpenAI(base_url=f"{server.url}/v1", api_key="any", max_retries=0) as client:
        answer = client.chat.completions.create(**GREEDY)
        chunks = list(client.chat.completions.create(**GREEDY, stream=True))
    assert joined(chunks) == answer.choices[0].message.content


async def test_a_stream_has_the_shape_of_openais(client: AsyncOpenAI) -> None:
    """One role for each choice, one reason for each, one id for all."""
    chunks = await streamed(client, **THREE)
    assert len({(chunk.id, chunk.created, chunk.object, chunk.model) for chunk in chunks}) == 1
    assert all(chunk.usage is None for chunk in chunks)
    for index in range(3):
        choices = [c for chunk in chunks for c in chunk.choices if c.index == index]
        assert [choice.delta.role for choice in choices[:2]] == ["assistant", None]
        assert choices[-1].finish_reason == "length"
        assert not any(choice.finish_reason for choice in choices[:-1])


async def test_three_streams_at_once_equal_the_three_whole_answers(client: AsyncOpenAI) -> None:
    answer, chunks = await whole(client, **THREE), await streamed(client, **THREE)
    texts = [choice.message.content for choice in answer.choices]
    assert [joined(chunks, index) for index in range(3)] == texts
    assert len(set(texts)) == 3, "each choice has a seed of its own"
    assert texts[0] == await text_of(client, **RANDOM)


async def test_usage_counts_the_prompt_once(client: AsyncOpenAI) -> None:
    alone, three = (await whole(client, **RANDOM)).usage, (await whole(client, **THREE)).usage
    assert alone
    assert three
    assert three.prompt_tokens == alone.prompt_tokens
    assert three.completion_tokens == 3 * 16
    chunks = await streamed(client, **THREE, stream_options={"include_usage": True})
    *others, last = chunks
    assert last.choices == []
    assert last.usage
    assert last.usage.prompt_tokens == alone.prompt_tokens
    assert last.usage.completion_tokens == 3 * 16
    assert all(chunk.usage is None for chunk in others)


async def test_the_bytes_of_the_logprobs_are_the_text(client: AsyncOpenAI) -> None:
    """Also where a character is several tokens, and where the answer comes to its own end."""
    fields = RANDOM | {"max_completion_tokens": 40, "temperature": 2, "logprobs": True}
    short = GREEDY | {"messages": [{"role": "user", "content": "Just say: hi"}], "logprobs": True}
    for asked in (fields, short | {"max_completion_tokens": 100}):
        answer, chunks = await whole(client, **asked), await streamed(client, **asked)
        (choice,) = answer.choices
        assert choice.logprobs
        assert choice.message.content
        content = choice.logprobs.content or []
        whole_text = bytes(itertools.chain(*(token.bytes or [] for token in content)))
        assert whole_text.decode(errors="replace") == choice.message.content
        logged = [c.logprobs.content or [] for chunk in chunks for c in chunk.choices if c.logprobs]
        assert list(itertools.chain(*logged)) == content
        assert answer.usage
        assert len(content) in (answer.usage.completion_tokens, answer.usage.completion_tokens - 1)


async def test_top_logprobs_are_the_likeliest(client: AsyncOpenAI) -> None:
    answer = await whole(client, **GREEDY, logprobs=True, top_logprobs=3)
    assert answer.choices[0].logprobs
    for token in answer.choices[0].logprobs.content or []:
        assert token.token == token.top_logprobs[0].token
        assert token.logprob == token.top_logprobs[0].logprob
        probabilities = [top.logprob for top in token.top_logprobs]
        assert len(probabilities) == 3
        assert probabilities == sorted(probabilities, reverse=True)


async def test_a_seed_repeats_the_answer(client: AsyncOpenAI) -> None:
    first = await text_of(client, **RANDOM)
    assert await text_of(client, **RANDOM) == first
    assert await text_of(client, **(RANDOM | {"seed": 8})) != first


async def test_stop_ends_it_and_is_left_out(client: AsyncOpenAI) -> None:
    free = await text_of(client, **GREEDY)
    assert " sea" in free
    answer = await whole(client, **GREEDY, stop=[" sea", "never"])
    assert answer.choices[0].message.content == free.partition(" sea")[0]
    assert answer.choices[0].finish_reason == "stop"
    assert joined(await streamed(client, **GREEDY, stop=" sea")) == free.partition(" sea")[0]


async def test_an_answer_that_ends_by_itself(client: AsyncOpenAI) -> None:
    short = GREEDY | {"messages": [{"role": "user", "content": "Just say: hi"}]}
    answer = await whole(client, **(short | {"max_completion_tokens": None}))
    assert answer.choices[0].finish_reason == "stop"
    assert answer.usage
    length = answer.usage.completion_tokens
    longer = short | {"max_completion_tokens": length + 5}
    for extra in ({"ignore_eos": True}, {"min_tokens": length + 3}):
        answer = await whole(client, **longer, extra_body=extra)
        assert answer.usage
        assert answer.usage.completion_tokens > length


async def test_logit_bias_bans_and_forces(client: AsyncOpenAI, http: httpx.AsyncClient) -> None:
    free = await whole(client, **GREEDY, logprobs=True)
    assert free.choices[0].logprobs
    (first, *_) = free.choices[0].logprobs.content or []
    asked = await http.post("/tokenize", json={"prompt": first.token})
    (token,) = asked.json()["tokens"]
    banned = await text_of(client, **GREEDY, logit_bias={str(token): -100})
    assert not banned.startswith(first.token)
    forced = await text_of(client, **GREEDY, logit_bias={str(token): 100})
    assert forced == first.token * 16


@pytest.mark.parametrize(
    "penalty",
    [
        {"frequency_penalty": 2},
        {"presence_penalty": 2},
        {"extra_body": {"repetition_penalty": 1.5}},
    ],
)
async def test_penalties_make_it_repeat_itself_less(client: AsyncOpenAI, penalty: Fields) -> None:
    """A token that is forced on it, until the penalty outweighs the bias.

    Of several biases together: at one alone both answers may be nothing but that token.
    """

    async def newlines(**more: Any) -> int:
        asked = {"messages": [{"role": "user", "content": "Say something."}], **more}
        biased = ({"logit_bias": {"198": bias}} for bias in (6, 8, 14))
        texts = [await text_of(client, **(FORTY | asked | bias)) for bias in biased]
        return "".join(texts).count("\n")

    assert await newlines(**penalty) < await newlines()


@pytest.mark.parametrize(
    "narrow", [{"extra_body": {"top_k": 1}}, {"extra_body": {"min_p": 1}}, {"top_p": 0.0001}]
)
async def test_a_draw_among_one_is_greedy(client: AsyncOpenAI, narrow: Fields) -> None:
    assert await text_of(client, **RANDOM, **narrow) == await text_of(client, **GREEDY)


async def test_max_tokens_is_the_older_name(client: AsyncOpenAI) -> None:
    older = CHAT | {"max_completion_tokens": None, "max_tokens": 3}
    answer = await whole(client, **older)
    assert answer.usage
    assert answer.usage.completion_tokens == 3


async def test_parts_developers_and_earlier_turns(client: AsyncOpenAI) -> None:
    """Two ways to write one conversation."""
    plain = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Name a colour."},
        {"role": "assistant", "content": "Blue."},
        {"role": "user", "content": "Another."},
    ]
    parts: list[Fields] = [
        turn | {"content": [{"type": "text", "text": turn["content"]}], "name": None}
        for turn in plain
    ]
    parts[0]["role"] = "developer"
    texts = [await text_of(client, **(GREEDY | {"messages": m})) for m in (plain, parts)]
    assert texts[0] == texts[1]
    assert texts[0] != await text_of(client, **(GREEDY | {"messages": plain[1:2]}))


@pytest.mark.parametrize(("policy", "reason"), [("abort", "cancelled"), ("continue", "length")])
async def test_leaving_a_stream(
    client: AsyncOpenAI, server: RunningServer, http: httpx.AsyncClient, policy: str, reason: str
) -> None:
    fields = CHAT | {"max_completion_tokens": 100}
    fields["extra_body"] = {"on_disconnect": policy, "ignore_eos": True}
    async with await client.chat.completions.create(**fields, stream=True) as stream:
        async for chunk in stream:
            if chunk.choices[0].delta.content:
                break
    await server.health_becomes(20, running=0, paused=0, kv_blocks_used=0)
    url = f"/v1/tapes/{chunk.id.removeprefix('chatcmpl-')}"
    tape = (await http.get(url, headers={"Accept": "application/json"})).json()
    assert tape["finish_reason"] == reason


# ---- JSON


class Person(BaseModel):
    model_config = ConfigDict(extra="forbid")

    name: Literal["Ada", "Grace"]
    born: int = Field(ge=1800, le=2000)
    alive: bool


JSON: Fields = GREEDY | {
    "messages": [{"role": "user", "content": "Who wrote the first program?"}],
    "max_completion_tokens": 80,
}


async def test_response_format_json_object(client: AsyncOpenAI) -> None:
    answer = await whole(client, **JSON, response_format={"type": "json_object"})
    assert answer.choices[0].finish_reason == "stop"
    assert isinstance(json.loads(answer.choices[0].message.content or ""), dict)
    chunks = await streamed(client, **JSON, response_format={"type": "json_object"})
    assert joined(chunks) == answer.choices[0].message.content


async def test_response_format_json_schema(client: AsyncOpenAI) -> None:
    """Also where every draw is as random as can be, in three choices."""
    named = {"name": "person", "schema": Person.model_json_schema(), "strict": True}
    random = JSON | {"temperature": 2, "seed": 3, "n": 3}
    answer = await whole(
        client, **random, response_format={"type": "json_schema", "json_schema": named}
    )
    for choice in answer.choices:
        assert choice.finish_reason == "stop"
        Person.model_validate_json(choice.message.content or "")


async def test_parse_gives_a_model_of_pydantic(client: AsyncOpenAI) -> None:
    answer = await client.chat.completions.parse(**JSON, response_format=Person)
    parsed = answer.choices[0].message.parsed
    assert isinstance(parsed, Person)
    async with client.chat.completions.stream(**JSON, response_format=Person) as stream:
        async for _ in stream:
            pass
        final = await stream.get_final_completion()
    assert final.choices[0].message.parsed == parsed


# ---- resuming, which openai-python cannot: over plain HTTP


async def test_a_stream_cut_anywhere_goes_on_with_nothing_lost_and_nothing_twice(
    http: httpx.AsyncClient,
) -> None:
    url = "/v1/chat/completions"
    body = THREE | {"stream": True, "logprobs": True, "stream_options": {"include_usage": True}}
    blocks = blocks_of((await http.post(url, json=body)).text)
    assert len(blocks) > 3 + 3 * 16
    for cut in range(1, len(blocks)):
        last = blocks[cut - 1][0]
        answer = await http.post(url, json=body, headers={"Last-Event-ID": last})
        resumed = blocks_of(answer.text)
        assert told(blocks[:cut] + resumed) == told(blocks), f"cut after {last}"
        assert resumed[-2:] == blocks[-2:], "usage and [DONE]"
        assert resumed[0][1]["id"] == blocks[0][1]["id"]
    answer = await http.post(url, json=body, headers={"Last-Event-ID": blocks[-1][0]})
    assert answer.status_code == 204
