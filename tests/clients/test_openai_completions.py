"""Completions, models and timeouts as openai-python reads them."""

from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest
from openai import AsyncOpenAI, NotFoundError
from openai.types import Completion

from model.text.tokenizer import Tokenizer
from tests.clients.blocks import Fields, blocks_of, told
from tests.clients.conftest import MODEL, sdk
from tests.server import RunningServer

PROMPT = "The capital of France is"
GREEDY: Fields = {"model": MODEL, "prompt": PROMPT, "max_tokens": 8, "temperature": 0}
RANDOM: Fields = GREEDY | {"temperature": 1.3, "seed": 7}


@pytest.fixture
async def client(server: RunningServer) -> AsyncIterator[AsyncOpenAI]:
    """Its type for chunks wants a finish_reason in each, which OpenAI's own do not have either."""
    async with sdk(server, strict=False) as client:
        yield client


async def whole(client: AsyncOpenAI, **fields: Any) -> Completion:
    answer = await client.completions.create(**fields)
    return Completion.model_validate(answer.to_dict(), strict=True)


async def texts_of(client: AsyncOpenAI, **fields: Any) -> list[str]:
    """Of a whole answer, and a stream says the same."""
    answer = await whole(client, **fields)
    chunks = [chunk async for chunk in await client.completions.create(**fields, stream=True)]
    assert [choice.index for choice in answer.choices] == [*range(len(answer.choices))]
    streamed = ["" for _ in answer.choices]
    reasons: list[Any] = [None for _ in answer.choices]
    for chunk in chunks:
        for choice in chunk.choices:
            streamed[choice.index] += choice.text
            reasons[choice.index] = choice.finish_reason
    assert streamed == [choice.text for choice in answer.choices]
    assert reasons == [choice.finish_reason for choice in answer.choices]
    return streamed


async def test_a_whole_answer(client: AsyncOpenAI) -> None:
    answer = await whole(client, **GREEDY)
    assert answer.id.startswith("cmpl-")
    assert (answer.object, answer.model) == ("text_completion", MODEL)
    (choice,) = answer.choices
    assert choice.text.startswith(" Paris")
    assert (choice.index, choice.finish_reason, choice.logprobs) == (0, "length", None)
    assert answer.usage
    assert (answer.usage.prompt_tokens, answer.usage.completion_tokens) == (5, 8)
    assert answer.usage.total_tokens == 13


async def test_prompts_of_every_kind_say_the_same(
    client: AsyncOpenAI, tokenizer: Tokenizer
) -> None:
    (text,) = await texts_of(client, **GREEDY)
    ids = tokenizer.encode(PROMPT)
    for prompt in ([PROMPT], ids, [ids]):
        assert await texts_of(client, **(GREEDY | {"prompt": prompt})) == [text]
    for several in ([PROMPT, "Once upon"], [ids, tokenizer.encode("Once upon")]):
        first, second = await texts_of(client, **(GREEDY | {"prompt": several}))
        assert first == text
        assert second != text


async def test_three_of_each_of_two_prompts(client: AsyncOpenAI) -> None:
    fields = RANDOM | {"prompt": [PROMPT, "Once upon"], "n": 3}
    texts = await texts_of(client, **fields)
    assert len(set(texts)) == 6
    assert texts[:3] == await texts_of(client, **(RANDOM | {"n": 3}))
    assert texts[3:] == await texts_of(client, **(RANDOM | {"prompt": "Once upon", "n": 3}))
    usage = (await whole(client, **fields)).usage
    assert usage
    assert (usage.prompt_tokens, usage.completion_tokens) == (5 + 2, 6 * 8)


async def test_echo_begins_with_the_prompt(client: AsyncOpenAI, tokenizer: Tokenizer) -> None:
    (text,) = await texts_of(client, **GREEDY)
    for prompt in (PROMPT, tokenizer.encode(PROMPT)):
        assert await texts_of(client, **(GREEDY | {"prompt": prompt, "echo": True})) == [
            PROMPT + text
        ]
    fields = GREEDY | {"prompt": [PROMPT, "Once upon"], "n": 2, "echo": True}
    texts = await texts_of(client, **fields)
    assert [text.startswith(PROMPT) for text in texts] == [True, True, False, False]


async def test_logprobs_have_four_lists_of_one_length(client: AsyncOpenAI) -> None:
    fields = RANDOM | {"logprobs": 2, "n": 2, "max_tokens": 12}
    answer = await whole(client, **fields)
    chunks = [chunk async for chunk in await client.completions.create(**fields, stream=True)]
    for choice in answer.choices:
        logprobs = choice.logprobs
        assert logprobs
        assert logprobs.tokens
        assert logprobs.text_offset is not None
        assert logprobs.top_logprobs
        assert "".join(logprobs.tokens) == choice.text
        assert len(logprobs.token_logprobs or []) == len(logprobs.tokens) == 12
        places = zip(logprobs.tokens, logprobs.text_offset, logprobs.top_logprobs, strict=True)
        for token, offset, top in places:
            assert choice.text[offset:].startswith(token)
            assert len(top) in (2, 3), "the token itself is one more, if it is not among them"
            assert token in top
        pieces = [
            piece.logprobs
            for chunk in chunks
            for piece in chunk.choices
            if piece.index == choice.index and piece.logprobs
        ]
        for name in ("tokens", "token_logprobs", "top_logprobs", "text_offset"):
            joined = [value for piece in pieces for value in getattr(piece, name)]
            assert joined == getattr(logprobs, name)


async def test_usage_of_a_stream_comes_last(client: AsyncOpenAI) -> None:
    fields = GREEDY | {"stream_options": {"include_usage": True}}
    stream = await client.completions.create(**fields, stream=True)
    *others, last = [chunk async for chunk in stream]
    assert last.choices == []
    assert last.usage
    assert (last.usage.prompt_tokens, last.usage.completion_tokens) == (5, 8)
    assert all(chunk.usage is None for chunk in others)


@pytest.mark.parametrize(
    ("option", "ends", "at"),
    [
        ({"stop": [" the"]}, "stop", ""),
        ({"stop": " the"}, "stop", ""),
        ({"extra_body": {"stop_token_ids": [260]}}, "stop", " the"),
        ({"extra_body": {"ignore_eos": True, "min_tokens": 8}}, "length", None),
    ],
)
async def test_how_it_ends(
    client: AsyncOpenAI, tokenizer: Tokenizer, option: Fields, ends: str, at: str | None
) -> None:
    """A stop string is left out, a token is not."""
    assert tokenizer.encode(" the") == [260]
    fields = GREEDY | {"prompt": "We saw the sun, and then"}
    (free,) = await texts_of(client, **fields)
    before, the, _ = free.partition(" the")
    assert before
    assert the
    answer = await whole(client, **fields, **option)
    assert answer.choices[0].finish_reason == ends
    assert answer.choices[0].text == (free if at is None else before + at)


async def test_a_stream_cut_anywhere_goes_on_with_nothing_lost_and_nothing_twice(
    http: httpx.AsyncClient,
) -> None:
    body = RANDOM | {"stream": True, "n": 2, "prompt": [PROMPT, "Once upon"]}
    blocks = blocks_of((await http.post("/v1/completions", json=body)).text)
    assert len(blocks) > 4 * 8
    for cut in range(1, len(blocks)):
        headers = {"Last-Event-ID": blocks[cut - 1][0]}
        answer = await http.post("/v1/completions", json=body, headers=headers)
        assert told(blocks[:cut] + blocks_of(answer.text)) == told(blocks), headers


# ---- models


async def test_the_model_that_is_served(client: AsyncOpenAI) -> None:
    (model,) = (await client.models.list()).data
    assert (model.id, model.object, model.owned_by) == (MODEL, "model", "tickertape")
    assert model.created > 1_700_000_000
    assert await client.models.retrieve(MODEL) == model
    with pytest.raises(NotFoundError):
        await client.models.retrieve("gpt-17")
