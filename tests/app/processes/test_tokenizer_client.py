"""A job of one client does not hold up another, and a job that nobody waits for is not done."""

import asyncio
import os
import signal
from collections.abc import AsyncIterator
from pathlib import Path

import psutil
import pytest

from app.errors import APIError
from app.guard.fair_share import FairQueue, Shares
from app.processes.tokenizer_client import TokenizerClient
from model.protocol.messages import (
    Conversation,
    Decode,
    Encode,
    ForcedCalls,
    JSONSchema,
    Tokenize,
    id_array,
    ids_of,
)
from model.text.tokenizer import Tokenizer

LONG = Encode(["one two three " * 20_000])


@pytest.fixture
async def tokenizer_client(model_path: Path) -> AsyncIterator[TokenizerClient]:
    tokenizer_client = TokenizerClient(model_path)
    await tokenizer_client.start()
    yield tokenizer_client
    await tokenizer_client.stop()


def process_of(tokenizer_client: TokenizerClient) -> psutil.Process:
    assert tokenizer_client._process
    return psutil.Process(tokenizer_client._process._process.pid)


async def test_every_job_gets_its_own_result(
    tokenizer_client: TokenizerClient, tokenizer: Tokenizer
) -> None:
    texts = [f"text number {n}" for n in range(20)]
    jobs = (
        tokenizer_client.encode(Encode([text]), client=str(n % 3)) for n, text in enumerate(texts)
    )
    for text, encoded in zip(texts, await asyncio.gather(*jobs), strict=True):
        assert [ids_of(ids) for ids in encoded.ids] == [tokenizer.encode(text)]
    long = await tokenizer_client.encode(LONG, "")
    assert ids_of(long.ids[0]) == tokenizer.encode("one two three " * 20_000)
    ids = id_array(tokenizer.encode("decoded")).tobytes()
    assert (await tokenizer_client.decode(Decode([ids]), "")).texts == ["decoded"]
    assert (await tokenizer_client.tokenize(Tokenize("x y"), "")).pieces == b'["x"," y"]'


async def test_clients_take_turns(tokenizer_client: TokenizerClient) -> None:
    """One who comes after fifty jobs of another waits for one of them."""
    done: list[str] = []

    async def one(client: str) -> None:
        await tokenizer_client.encode(LONG, client)
        done.append(client)

    jobs = [asyncio.create_task(one("many")) for _ in range(20)]
    await asyncio.sleep(0)
    jobs.append(asyncio.create_task(one("few")))
    await asyncio.gather(*jobs)
    assert done.index("few") <= 2


async def test_a_job_that_nobody_waits_for_is_not_done(tokenizer_client: TokenizerClient) -> None:
    await tokenizer_client.encode(Encode(["loaded"]), "")
    left = [asyncio.create_task(tokenizer_client.encode(LONG, str(n))) for n in range(100)]
    await asyncio.sleep(0)
    for job in left:
        job.cancel()
    await asyncio.gather(*left, return_exceptions=True)
    before = _processor_seconds(tokenizer_client)
    await tokenizer_client.encode(LONG, "stays")
    one = _processor_seconds(tokenizer_client) - before
    await tokenizer_client.encode(LONG, "stays")
    assert one < 10 * (_processor_seconds(tokenizer_client) - before - one) + 0.1


def _processor_seconds(tokenizer_client: TokenizerClient) -> float:
    process = process_of(tokenizer_client)
    times = [one.cpu_times() for one in (process, *process.children())]
    return sum(time.user + time.system for time in times)


async def test_short_jobs_do_not_wait_for_long_ones(tokenizer_client: TokenizerClient) -> None:
    long = [asyncio.create_task(tokenizer_client.encode(LONG, "long")) for _ in range(10)]
    await asyncio.sleep(0)
    await tokenizer_client.encode(Encode(["short"]), "short")
    assert sum(job.done() for job in long) < len(long)
    await asyncio.gather(*long)


async def test_one_client_cannot_fill_the_queue(tokenizer_client: TokenizerClient) -> None:
    many = [asyncio.create_task(tokenizer_client.encode(LONG, "many")) for _ in range(300)]
    await asyncio.sleep(0)
    refused = [job for job in many if job.done()]
    assert len(refused) == 300 - 128
    assert all(_error(job).status_code == 429 for job in refused)
    other = asyncio.create_task(tokenizer_client.encode(LONG, "other"))
    await asyncio.sleep(0)
    assert not other.done()
    for job in (*many, other):
        job.cancel()
    await asyncio.gather(*many, other, return_exceptions=True)


def _error(job: "asyncio.Task[object]") -> APIError:
    error = job.exception()
    assert isinstance(error, APIError)
    return error


async def test_a_grammar_is_made_once(tokenizer_client: TokenizerClient) -> None:
    wanted = JSONSchema({"type": "object", "properties": {"a": {"type": "integer"}}})
    made = await tokenizer_client.grammar(wanted, "")
    process = process_of(tokenizer_client)
    process.suspend()
    for child in process.children():
        child.suspend()
    assert await tokenizer_client.grammar(wanted, "another") == made
    for one in (process, *process.children()):
        one.resume()


async def test_what_cannot_be_prepared_is_refused_by_the_name_of_its_field(
    tokenizer_client: TokenizerClient,
) -> None:
    for wanted in (
        JSONSchema({"type": "object", "minProperties": 9}),
        JSONSchema({"description": "x" * 200_000}),
        ForcedCalls([("f", {"minProperties": 9})], "<a>", "</a>"),
    ):
        with pytest.raises(APIError) as refused:
            await tokenizer_client.grammar(wanted, "", "tools")
        assert (refused.value.status_code, refused.value.param) == (422, "tools")
    job = Encode([Conversation([{"role": 1}])])
    with pytest.raises(APIError, match="chat template") as refused:
        await tokenizer_client.encode(job, "", "messages")
    assert refused.value.param == "messages"


async def test_when_the_process_is_lost_the_next_job_gets_another(
    tokenizer_client: TokenizerClient, tokenizer: Tokenizer
) -> None:
    await tokenizer_client.encode(Encode(["x"]), "")
    lost = asyncio.create_task(tokenizer_client.encode(LONG, ""))
    waiting = asyncio.create_task(tokenizer_client.encode(LONG, ""))
    await asyncio.sleep(0.01)
    os.killpg(process_of(tokenizer_client).pid, signal.SIGKILL)
    with pytest.raises(APIError) as raised:
        await lost
    assert (raised.value.status_code, raised.value.code) == (503, "preparation_lost")
    assert len((await waiting).ids) == 1
    again = await tokenizer_client.encode(Encode(["x"]), "")
    assert ids_of(again.ids[0]) == tokenizer.encode("x")


async def test_a_process_that_cannot_be_started_is_tried_again(
    model_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tokenizer_client = TokenizerClient(model_path)
    command = TokenizerClient.command
    monkeypatch.setattr(TokenizerClient, "command", ["/no/such/program"])
    await tokenizer_client.start()
    with pytest.raises(APIError) as raised:
        await tokenizer_client.encode(Encode(["x"]), "")
    assert raised.value.status_code == 503
    monkeypatch.setattr(TokenizerClient, "command", command)
    assert (await tokenizer_client.encode(Encode(["x"]), "")).counts == [1]
    await tokenizer_client.stop()


def test_shares_leave_room_for_one_more_client() -> None:
    shares = Shares(1200)
    for client in "abcdefgh":
        while shares.take(client, 1):
            pass
    held = dict(shares._taken)
    assert held["a"] == 600
    assert all(held.values()), "also who came last has some"
    assert shares.taken < 1200
    for client, amount in held.items():
        shares.give_back(client, amount)
    assert (shares.taken, shares._taken) == (0, {})


async def test_a_fair_queue_forgets_what_was_taken_out() -> None:
    queue = FairQueue[str](8)
    assert [queue.put("a", item) for item in "123456"] == [True] * 4 + [False] * 2
    assert [queue.put("b", item) for item in "78"] == [True, True]
    queue.discard("a", "2")
    queue.discard("a", "no such item")
    assert [await queue.get() for _ in range(5)] == ["1", "7", "3", "8", "4"]
    assert (len(queue), queue._turns) == (0, {})
