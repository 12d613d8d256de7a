"""Long texts, tokenized by a process of its own."""

import asyncio
import os
import signal
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from app.errors import APIError
from app.long_texts import LongTexts
from model.messages import LongText
from model.tokenizer import Tokenizer

TEXTS = ["", "x", "One two. " * 10_000, "<|im_start|>" * 1000, "雪\n\0😀" * 20_000, " " * 100_000]


@pytest.fixture
async def long_texts(model_path: Path) -> AsyncIterator[LongTexts]:
    long_texts = LongTexts(model_path)
    yield long_texts
    await long_texts.stop()


def process_of(long_texts: LongTexts) -> asyncio.subprocess.Process:
    assert long_texts._worker
    return long_texts._worker.process


async def test_the_ids_are_those_of_the_tokenizer(
    long_texts: LongTexts, tokenizer: Tokenizer
) -> None:
    asked = [
        LongText(text, add_special_tokens, parse_special)
        for text in TEXTS
        for add_special_tokens in (True, False)
        for parse_special in (True, False)
    ]
    answers = await asyncio.gather(*map(long_texts.encode, asked))
    for text, ids in zip(asked, answers, strict=True):
        assert list(ids) == tokenizer.encode(
            text.text,
            add_special_tokens=text.add_special_tokens,
            parse_special=text.parse_special,
        )


async def test_it_leaves_the_processor_to_everybody_else(long_texts: LongTexts) -> None:
    await long_texts.encode(LongText("x"))
    assert os.sched_getscheduler(process_of(long_texts).pid) == os.SCHED_IDLE


async def test_a_process_that_is_lost_is_said_and_replaced(
    long_texts: LongTexts, tokenizer: Tokenizer
) -> None:
    await long_texts.encode(LongText("x"))
    os.kill(process_of(long_texts).pid, signal.SIGKILL)
    with pytest.raises(APIError, match="tokenizes long texts was lost") as refused:
        await long_texts.encode(LongText("y" * 100_000))
    assert refused.value.status_code == 503
    assert list(await long_texts.encode(LongText("y"))) == tokenizer.encode("y")


async def test_who_leaves_gets_nobody_elses_ids(
    long_texts: LongTexts, tokenizer: Tokenizer
) -> None:
    await long_texts.encode(LongText("x"))
    first = process_of(long_texts).pid
    leaving = asyncio.create_task(long_texts.encode(LongText("z" * 1_000_000)))
    staying = asyncio.create_task(long_texts.encode(LongText("y")))
    await asyncio.sleep(0)
    assert long_texts._turn.locked()
    leaving.cancel()
    assert list(await staying) == tokenizer.encode("y")
    with pytest.raises(ProcessLookupError):
        os.kill(first, 0)


async def test_it_goes_when_its_socket_closes_and_not_for_a_signal(long_texts: LongTexts) -> None:
    await long_texts.encode(LongText("x"))
    process = process_of(long_texts)
    process.send_signal(signal.SIGTERM)
    process.send_signal(signal.SIGINT)
    assert len(await long_texts.encode(LongText("x"))) == 1
    assert long_texts._worker
    long_texts._worker.transport.close()
    assert await process.wait() == 0
