"""The async Python client against a real server."""

import asyncio
from contextlib import aclosing
from itertools import accumulate

import httpx
import pytest

from tests.prompts import PROMPTS
from tests.server import RunningServer, free_port
from tickertape import (
    Client,
    ConnectionLostError,
    Done,
    OverloadedError,
    RefusedError,
    TickertapeError,
    Token,
)

IDLE = {"running": 0, "waiting": 0, "paused": 0, "kv_blocks_used": 0}


@pytest.fixture
async def client(server: RunningServer) -> Client:
    return Client(server.url)


@pytest.mark.parametrize("prompt", PROMPTS[::4])
async def test_events_are_typed_and_in_order(client: Client, prompt: str) -> None:
    async with client:
        events = [e async for e in client.generate(prompt, max_length=12, temperature=0)]
        *tokens, done = events
        assert isinstance(done, Done)
        typed = [token for token in tokens if isinstance(token, Token)]
        assert len(typed) == len(tokens)
        # A reader that falls behind gets several tokens in one event, named after the last.
        ends = [*accumulate(len(token.token_ids) for token in typed)]
        assert [token.n for token in typed] == ends
        assert done.usage["completion_tokens"] == ends[-1]
        text = "".join(token.text for token in typed)
        answer = await client.complete(prompt, max_length=12, temperature=0)
        assert text == answer.generated_text
        assert (await client.snapshot(done.tape))["generated_text"] == text


async def test_breaking_out_of_the_loop_cancels_the_generation(
    server: RunningServer, client: Client
) -> None:
    async with client:
        async for event in client.generate("Once", max_length=3000, ignore_eos=True):
            assert isinstance(event, Token)
            break
    await server.health_becomes(1, **IDLE)
    async with Client(server.url) as other:
        assert (await other.snapshot(event.tape))["finish_reason"] == "cancelled"


async def test_aclose_cancels_while_the_client_lives_on(
    server: RunningServer, client: Client
) -> None:
    async with client:
        async with aclosing(client.generate("Once", max_length=3000, ignore_eos=True)) as events:
            await anext(events)
        await server.health_becomes(1, **IDLE)
        assert (await client.complete("Hi", max_length=2)).usage["completion_tokens"] <= 2


async def test_a_cancelled_task_cancels_its_generation(
    server: RunningServer, client: Client
) -> None:
    async def read_all() -> None:
        async for _ in client.generate("Once", max_length=3000, ignore_eos=True):
            pass

    async with client:
        task = asyncio.create_task(read_all())
        await server.health_becomes(5, running=1)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await server.health_becomes(1, **IDLE)


async def test_chat_is_the_models_next_turn(
    server: RunningServer, http: httpx.AsyncClient, client: Client
) -> None:
    messages = [{"role": "user", "content": "Name three colours."}]
    asked = {"messages": messages, "max_tokens": 20, "temperature": 0}
    answer = (await http.post("/v1/chat/completions", json=asked)).json()
    async with client:
        events = [event async for event in client.chat(messages, max_length=20, temperature=0)]
        text = "".join(event.text for event in events if isinstance(event, Token))
        assert text == answer["choices"][0]["message"]["content"]
        async for _ in client.chat(messages, max_length=3000, ignore_eos=True):
            break
    await server.health_becomes(5, **IDLE)


async def test_attach_reads_on_where_another_stopped(client: Client) -> None:
    async with client:
        whole = [e async for e in client.generate("Once", max_length=10, seed=5)]
        tape = whole[-1].tape if isinstance(whole[-1], Done) else ""
        rest = [e async for e in client.attach(tape, after=4)]
        again = "".join(e.text for e in rest if isinstance(e, Token))
        assert again == "".join(e.text for e in whole[4:] if isinstance(e, Token))
        assert isinstance(rest[-1], Done)
        assert [e async for e in client.attach(tape, after=len(whole))] == []


async def test_refusals_say_what_and_why(client: Client) -> None:
    async with client:
        with pytest.raises(RefusedError) as refusal:
            await client.complete("x", top_k=-1)
        assert (refusal.value.status, refusal.value.param) == (422, "top_k")
        assert "from 0 to" in refusal.value.message
        with pytest.raises(RefusedError) as refusal:
            await anext(client.generate(""))
        assert refusal.value.param == "prompt"
        with pytest.raises(RefusedError) as refusal:
            await client.snapshot("A" * 22)
        assert refusal.value.status == 404


async def test_logit_bias_and_lists_travel(client: Client) -> None:
    async with client:
        answer = await client.complete(
            "x", max_length=3, logit_bias={28: 100.0}, stop=["never"], stop_token_ids=[1]
        )
        assert answer.generated_text == ",,,"


async def test_nobody_at_home() -> None:
    url = f"http://127.0.0.1:{free_port()}"
    async with Client(url) as client:
        with pytest.raises(ConnectionLostError, match="nothing answers at"):
            await client.complete("x")
        with pytest.raises(ConnectionLostError, match="tickertape serve"):
            await anext(client.generate("x"))


async def serve_once(
    response: bytes, requests: list[bytes] | None = None
) -> tuple[str, asyncio.Server]:
    """A server that answers every request with these bytes and closes; it notes the requests."""

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        request = await reader.readuntil(b"\r\n\r\n")
        if requests is not None:
            requests.append(request)
        writer.write(response)
        await writer.drain()
        writer.close()

    server = await asyncio.start_server(answer, "127.0.0.1", 0)
    host, port = server.sockets[0].getsockname()[:2]
    return f"http://{host}:{port}", server


async def test_a_stream_without_its_end_is_a_lost_connection() -> None:
    tape = "T" * 22
    body = f'id: {tape}:3\nevent: token\ndata: {{"text":"a","token_ids":[1],"index":0}}\n\n'
    head = f"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nX-Tape: {tape}\r\n\r\n"
    url, server = await serve_once((head + body).encode())
    async with server, Client(url, max_retries=0) as client:
        events = client.attach(tape, after=2)
        assert isinstance(await anext(events), Token)
        with pytest.raises(ConnectionLostError) as lost:
            await anext(events)
        assert (lost.value.tape, lost.value.after) == (tape, 3)


async def test_overload_carries_its_retry_after() -> None:
    error = b'{"error": {"type": "rate_limit_error", "message": "full", "param": null}}'
    head = b"HTTP/1.1 429 Too Many\r\nRetry-After: 7\r\nContent-Length: %d\r\n\r\n" % len(error)
    url, server = await serve_once(head + error)
    async with server, Client(url, max_retries=0) as client:
        with pytest.raises(OverloadedError) as overload:
            await client.complete("x")
        assert overload.value.retry_after == 7


async def test_an_answer_that_is_no_tickertape(server: RunningServer) -> None:
    url, other = await serve_once(b"HTTP/1.1 500 Oops\r\nContent-Length: 2\r\n\r\nhi")
    async with other, Client(url) as client:
        with pytest.raises(TickertapeError, match="no Tickertape"):
            await client.complete("x")


async def test_a_lost_connection_does_not_cancel_what_it_says_can_be_read_on() -> None:
    requests: list[bytes] = []
    tape = "T" * 22
    frame = f'id: {tape}:1\nevent: token\ndata: {{"text":"a","token_ids":[1],"index":0}}\n\n'
    head = f"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nX-Tape: {tape}\r\n\r\n"
    url, server = await serve_once((head + frame).encode(), requests)
    async with server, Client(url, max_retries=0) as client:
        with pytest.raises(ConnectionLostError) as lost:
            async for _ in client.generate("x"):
                pass
    assert (lost.value.tape, lost.value.after) == (tape, 1)
    assert [request.partition(b" ")[0] for request in requests] == [b"POST"]


async def test_an_event_of_a_later_version_is_passed_over() -> None:
    tape = "T" * 22
    frames = (
        'event: confetti\ndata: {"much": true}\n\n'
        f"id: {tape}:1\nevent: done\n"
        'data: {"finish_reason":"stop","usage":{},"timings":{}}\n\n'
    )
    head = f"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nX-Tape: {tape}\r\n\r\n"
    url, server = await serve_once((head + frames).encode())
    async with server, Client(url) as client:
        events = [event async for event in client.attach(tape)]
    assert [type(event) for event in events] == [Done]


@pytest.mark.parametrize(
    "answer",
    [
        b"HTTP/1.1 302 Found\r\nLocation: /\r\nContent-Length: 0\r\n\r\n",
        b'HTTP/1.1 400 Bad\r\nContent-Length: 14\r\n\r\n{"error":"no"}',
        b"HTTP/1.1 429 Full\r\nRetry-After: Sun, 22 Nov 2026\r\nContent-Length: 0\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\n<html>",
        b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\r\nevent: token\ndata: {}\n\n",
        b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\r\nevent: done\ndata: {\n\n",
        b"not HTTP at all",
    ],
)
async def test_whatever_answers_only_our_exceptions_come_out(answer: bytes) -> None:
    url, server = await serve_once(answer)
    async with server, Client(url, max_retries=0) as client:
        with pytest.raises(TickertapeError):
            await client.complete("x")
        with pytest.raises(TickertapeError):
            async for _ in client.generate("x"):
                pass
