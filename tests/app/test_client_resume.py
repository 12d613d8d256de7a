"""The client's own resume: its caller sees one unbroken iterator, whatever the network does."""

import asyncio
import json
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import pytest

from app import client as client_module
from app.client import (
    Client,
    ConnectionLostError,
    Done,
    Event,
    Gap,
    OverloadedError,
    RefusedError,
    Status,
    Token,
)
from tests.proxy import Proxy
from tests.server import RunningServer

TAPE = "T" * 22
HEAD = f"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nX-Tape: {TAPE}\r\n\r\n".encode()
LENGTH = 12


def opening(after: int = 0, retry: int = 10) -> bytes:
    return f"retry: {retry}\nid: {TAPE}:{after}\n\n".encode()


def token(n: int, count: int = 1) -> bytes:
    """The frame of entries n - count + 1 to n; each has its own number as text."""
    numbers = range(n - count + 1, n + 1)
    data = {"text": "".join(f"{i} " for i in numbers), "token_ids": [*numbers], "index": 0}
    return f"id: {TAPE}:{n}\nevent: token\ndata: {json.dumps(data)}\n\n".encode()


def done(n: int, reason: str = "length") -> bytes:
    data = {"finish_reason": reason, "usage": {}, "timings": {}}
    return f"id: {TAPE}:{n}\nevent: done\ndata: {json.dumps(data)}\n\n".encode()


def rest(after: int, length: int = LENGTH) -> bytes:
    """A whole stream from the opening block on."""
    frames = b"".join(token(n) for n in range(after + 1, length + 1))
    return HEAD + opening(after) + frames + done(length + 1)


def refusal(status: int, retry_after: str | None = None) -> bytes:
    body = b'{"error": {"type": "t", "message": "m", "param": null, "code": null}}'
    header = f"Retry-After: {retry_after}\r\n" if retry_after else ""
    return f"HTTP/1.1 {status} X\r\n{header}Content-Length: {len(body)}\r\n\r\n".encode() + body


@dataclass
class Request:
    method: str
    path: str
    headers: dict[str, str]
    body: bytes
    at: float


@dataclass
class Script:
    """A server that gives each connection the next of its answers and closes; and what it heard."""

    answers: Sequence[bytes]
    requests: list[Request] = field(default_factory=list)
    url: str = ""

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = (await reader.readuntil(b"\r\n\r\n")).decode()
        first, *lines = head.strip().split("\r\n")
        headers = {k.lower(): v for k, _, v in (line.partition(": ") for line in lines)}
        body = await reader.readexactly(int(headers.get("content-length", 0)))
        method, path, _ = first.split(" ")
        self.requests.append(Request(method, path, headers, body, time.monotonic()))
        number = min(len(self.requests), len(self.answers)) - 1
        writer.write(self.answers[number])
        await writer.drain()
        writer.close()


@asynccontextmanager
async def scripted(*answers: bytes) -> AsyncIterator[Script]:
    script = Script(answers)
    server = await asyncio.start_server(script.serve, "127.0.0.1", 0)
    host, port = server.sockets[0].getsockname()[:2]
    script.url = f"http://{host}:{port}"
    async with server:
        yield script


async def generate(script: Script, **options: Any) -> list[Event]:
    async with Client(script.url, **options) as client:
        return [event async for event in client.generate("x")]


def numbers(events: Sequence[Event]) -> list[int]:
    return [id for event in events if isinstance(event, Token) for id in event.token_ids]


WHOLE = [*range(1, LENGTH + 1)]


@pytest.mark.parametrize("cut", range(LENGTH + 1))
async def test_cut_after_any_token_it_goes_on_with_the_next(cut: int) -> None:
    broken = HEAD + opening() + b"".join(token(n) for n in range(1, cut + 1))
    async with scripted(broken, rest(cut)) as script:
        events = await generate(script)
    assert numbers(events) == WHOLE
    assert isinstance(events[-1], Done)
    first, second = script.requests
    assert (first.method, first.path) == ("POST", "/generate")
    assert (second.method, second.path) == ("GET", f"/v1/tapes/{TAPE}")
    assert second.headers["last-event-id"] == f"{TAPE}:{cut}"
    assert "last-event-id" not in first.headers


@pytest.mark.parametrize("at", range(0, len(token(3)), 5))
async def test_cut_inside_a_frame_the_frame_comes_again(at: int) -> None:
    broken = HEAD + opening() + token(2, count=2) + token(3)[:at]
    async with scripted(broken, rest(2)) as script:
        assert numbers(await generate(script)) == WHOLE
    assert script.requests[1].headers["last-event-id"] == f"{TAPE}:2"


async def test_what_was_read_before_is_dropped_by_its_id() -> None:
    again = HEAD + opening(1) + token(1) + token(2) + token(3) + token(4, count=2)
    answers = [HEAD + opening() + token(2, count=2), again, rest(3)]
    async with scripted(*answers) as script:
        assert numbers(await generate(script)) == WHOLE
    assert [r.headers.get("last-event-id") for r in script.requests] == [
        None,
        f"{TAPE}:2",
        f"{TAPE}:3",
    ]


async def test_a_hole_is_never_passed_over() -> None:
    holed = HEAD + opening() + token(1) + token(3) + token(4)
    async with scripted(holed, rest(1)) as script:
        assert numbers(await generate(script)) == WHOLE
    assert script.requests[1].headers["last-event-id"] == f"{TAPE}:1"


async def test_a_gap_that_is_declared_is_told_and_passed() -> None:
    gap = b'event: gap\ndata: {"from":1,"to":10}\n\n'
    broken = HEAD + opening() + gap + token(11)
    async with scripted(broken, rest(11)) as script:
        events = await generate(script)
    assert events[0] == Gap(1, 10)
    assert numbers(events) == [11, 12]


async def test_status_frames_come_through_and_move_nothing() -> None:
    status = b'event: status\ndata: {"state":"queued","position":2}\n\n'
    async with scripted(HEAD + opening() + token(1) + status, rest(1)) as script:
        events = await generate(script)
    assert events[1] == Status("queued", {"position": 2})
    assert numbers(events) == WHOLE


async def test_a_request_whose_answer_was_lost_is_sent_again_as_the_same() -> None:
    async with scripted(b"", HEAD[:20], rest(0)) as script:
        assert numbers(await generate(script)) == WHOLE
    assert [request.method for request in script.requests] == ["POST"] * 3
    assert len({request.headers["idempotency-key"] for request in script.requests}) == 1
    assert len({request.body for request in script.requests}) == 1


async def test_two_generations_have_two_keys() -> None:
    async with scripted(rest(0)) as script:
        await generate(script)
        await generate(script)
    first, second = (request.headers["idempotency-key"] for request in script.requests)
    assert first != second


@pytest.mark.parametrize("status", [429, 503])
async def test_told_to_come_back_it_does_and_not_sooner(status: int) -> None:
    async with scripted(refusal(status, "1"), refusal(status, "0"), rest(0)) as script:
        assert numbers(await generate(script)) == WHOLE
    first, second, third = script.requests
    assert second.at - first.at >= 1
    assert third.at - second.at < 1
    assert len({request.headers["idempotency-key"] for request in script.requests}) == 1


async def test_whole_answers_are_asked_for_again_too() -> None:
    answer = b'{"generated_text":"a","finish_reason":"stop","usage":{},"timings":{},"tape":"t"}'
    ok = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(answer) + answer
    answers = [refusal(503, "0"), refusal(429, "0"), ok]
    async with scripted(*answers) as script, Client(script.url) as client:
        assert (await client.complete("x")).generated_text == "a"
    assert len({request.headers["idempotency-key"] for request in script.requests}) == 1
    assert len(script.requests) == 3


async def test_overload_that_lasts_is_told_in_the_end() -> None:
    async with scripted(refusal(503, "0")) as script:
        with pytest.raises(OverloadedError):
            await generate(script, max_retries=2)
    assert len(script.requests) == 3
    async with scripted(refusal(503, "3600")) as script:
        with pytest.raises(OverloadedError) as overload:
            await generate(script)
    assert (len(script.requests), overload.value.retry_after) == (1, 3600)


@pytest.mark.parametrize("status", [400, 401, 404, 409, 422, 500])
async def test_other_refusals_are_final(status: int) -> None:
    async with scripted(refusal(status)) as script:
        with pytest.raises(RefusedError):
            await generate(script)
    assert len(script.requests) == 1


async def test_a_tape_that_is_gone_is_a_refusal_and_one_that_was_read_out_an_end() -> None:
    broken = HEAD + opening() + token(1)
    async with scripted(broken, refusal(404)) as script:
        with pytest.raises(RefusedError) as refused:
            await generate(script)
    assert refused.value.status == 404
    async with scripted(broken, b"HTTP/1.1 204 No Content\r\n\r\n") as script:
        assert numbers(await generate(script)) == [1]


@pytest.fixture
def waits(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """How long the client has waited between connections; here it does not."""
    waited: list[float] = []

    async def sleep(seconds: float) -> None:
        waited.append(seconds)

    monkeypatch.setattr(client_module.asyncio, "sleep", sleep)  # type: ignore[attr-defined]
    return waited


async def test_it_waits_longer_each_time_and_from_the_start_after_progress(
    waits: list[float],
) -> None:
    nothing = HEAD + opening(0, retry=100)
    answers = [nothing, nothing, nothing, HEAD + opening(0, retry=100) + token(1), rest(1)]
    async with scripted(*answers) as script:
        assert numbers(await generate(script)) == WHOLE
    for wait, least in zip(waits, [0.1, 0.2, 0.4, 0.1], strict=True):
        assert least <= wait <= 1.25 * least


async def test_the_wait_has_an_end_unless_the_server_wants_more(waits: list[float]) -> None:
    for retry, longest in [(3000, 8), (30_000, 30)]:
        waits.clear()
        async with scripted(HEAD + opening(0, retry=retry)) as script:
            with pytest.raises(ConnectionLostError):
                await generate(script, max_retries=6)
        assert len(waits) == 6
        assert longest <= max(waits) <= 1.25 * longest


async def test_many_clients_do_not_come_back_together(waits: list[float]) -> None:
    for _ in range(20):
        async with scripted(HEAD + opening(), rest(0)) as script:
            await generate(script)
    assert len(set(waits)) == 20


async def test_given_up_it_says_where_and_another_reading_goes_on() -> None:
    broken = HEAD + opening() + token(1) + token(2)
    nothing = HEAD + opening(2)
    answers = [broken, nothing, nothing, rest(2)]
    async with scripted(*answers) as script, Client(script.url, max_retries=2) as client:
        events = client.generate("x")
        read = [await anext(events), await anext(events)]
        with pytest.raises(ConnectionLostError) as lost:
            await anext(events)
        assert (lost.value.tape, lost.value.after) == (TAPE, 2)
        read += [event async for event in client.attach(TAPE, after=2)]
    assert numbers(read) == WHOLE
    assert [request.method for request in script.requests] == ["POST", "GET", "GET", "GET"]


async def test_left_after_a_resume_the_generation_is_cancelled_once() -> None:
    broken = HEAD + opening() + token(1)
    gone = b"HTTP/1.1 204 No Content\r\n\r\n"
    answers = [broken, HEAD + opening(1) + token(2) + token(3), gone]
    async with scripted(*answers) as script, Client(script.url) as client:
        events = client.generate("x")
        async for event in events:
            if isinstance(event, Token) and event.n == 2:
                break
        await events.aclose()
    assert [request.method for request in script.requests] == ["POST", "GET", "DELETE"]
    assert script.requests[-1].path == f"/v1/tapes/{TAPE}"


async def test_left_while_it_waits_to_connect_again_it_cancels_too() -> None:
    broken = HEAD + opening(0, retry=60_000) + token(1)
    answers = [broken, b"HTTP/1.1 204 No Content\r\n\r\n"]
    async with scripted(*answers) as script, Client(script.url) as client:
        events = client.generate("x")
        assert isinstance(await anext(events), Token)
        waiting = asyncio.ensure_future(anext(events))
        await asyncio.wait([waiting], timeout=0.2)
        assert not waiting.done()
        waiting.cancel()
        await asyncio.gather(waiting, return_exceptions=True)
    assert [request.method for request in script.requests] == ["POST", "DELETE"]


async def test_a_reader_that_only_attached_cancels_nothing() -> None:
    async with scripted(rest(3)) as script, Client(script.url) as client:
        events = client.attach(TAPE, after=3)
        assert isinstance(await anext(events), Token)
        await events.aclose()
    assert [request.method for request in script.requests] == ["GET"]


async def test_through_a_network_that_breaks_all_the_time_it_is_the_same_answer(
    server: RunningServer,
) -> None:
    options: dict[str, Any] = {"max_length": 300, "seed": 1, "temperature": 1.0}
    async with Client(server.url) as direct:
        expected = await direct.complete("Once", ignore_eos=True, **options)
    before = server.health()["tapes"]
    async with Proxy(server.url, cut_after=0.3) as proxy, Client(proxy.url) as client:
        events = [event async for event in client.generate("Once", ignore_eos=True, **options)]
    typed = [event for event in events if isinstance(event, Token)]
    assert "".join(event.text for event in typed) == expected.generated_text
    assert numbers(events)
    assert sum(len(event.token_ids) for event in typed) == 300
    assert server.health()["tapes"] == before + 1
    assert len(proxy.heads) > 2, "it was cut"
