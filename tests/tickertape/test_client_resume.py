"""The client reads on by itself: from scripted servers, and from a real one that is cut off."""

import asyncio
import json
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterator
from contextlib import aclosing, asynccontextmanager, suppress
from dataclasses import dataclass
from typing import Self

import pytest

from tests.proxy import Proxy
from tests.server import RunningServer
from tests.speed import patience
from tickertape import (
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

TAPE = "T" * 22
TEXTS = ["Once", " upon", " a", " time", ",", " a", " café", "\n", "🐙", " data:", " sang", "."]
LAST = len(TEXTS)

OPEN_ENDED = (
    f"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nX-Tape: {TAPE}\r\n\r\n".encode()
)
COUNTED = OPEN_ENDED.replace(b"\r\n\r\n", b"\r\nContent-Length: 100000\r\n\r\n")


def token(n: int, count: int = 1) -> bytes:
    """The frame of the `count` entries up to n."""
    entries = range(n - count + 1, n + 1)
    text = "".join(TEXTS[entry - 1] for entry in entries)
    data = {"text": text, "token_ids": [*entries], "index": 0}
    return f"id: {TAPE}:{n}\nevent: token\ndata: {json.dumps(data)}\n\n".encode()


def tokens(after: int = 0, last: int = LAST, retry: int = 10) -> bytes:
    """The opening block, then the entries after `after` up to `last`."""
    opening = f"retry: {retry}\nid: {TAPE}:{after}\n\n".encode()
    return opening + b"".join(token(n) for n in range(after + 1, last + 1))


def done(n: int = LAST + 1) -> bytes:
    data = {"finish_reason": "stop", "usage": {"completion_tokens": LAST}, "timings": {}}
    return f"id: {TAPE}:{n}\nevent: done\ndata: {json.dumps(data)}\n\n".encode()


def status(state: str) -> bytes:
    return f'event: status\ndata: {{"state":"{state}","position":2}}\n\n'.encode()


def gap(first: int, last: int) -> bytes:
    return f'event: gap\ndata: {{"from":{first},"to":{last}}}\n\n'.encode()


def answer(status: int, body: object = None, retry_after: int | None = None) -> bytes:
    """A whole answer of JSON; a refusal where no body is given."""
    refusal = {"error": {"type": "some_error", "message": "no", "param": None, "code": "some"}}
    raw = json.dumps(body or refusal).encode()
    head = f"HTTP/1.1 {status} Any\r\nConnection: close\r\nContent-Length: {len(raw)}\r\n"
    if retry_after is not None:
        head += f"Retry-After: {retry_after}\r\n"
    return head.encode() + b"\r\n" + raw


def begun(last: int, retry: int = 10) -> bytes:
    """The answer to a POST that breaks off after entry `last`."""
    return OPEN_ENDED + tokens(last=last, retry=retry)


def rest(after: int) -> bytes:
    """The answer to a resume: all that comes after this entry."""
    return OPEN_ENDED + tokens(after) + done()


NOTHING = b"HTTP/1.1 204 No Content\r\nConnection: close\r\n\r\n"
WHOLE_STREAM = rest(0)
WHOLE_ANSWER = answer(
    200,
    {
        "generated_text": "".join(TEXTS),
        "finish_reason": "stop",
        "usage": {"completion_tokens": LAST},
        "timings": {},
        "tape": TAPE,
    },
)

# What brings a reader nothing new: silence, part of a head, an opening block, an entry it has.
FRUITLESS = [
    b"",
    OPEN_ENDED[:20],
    OPEN_ENDED + f"id: {TAPE}:1\n\n".encode(),
    OPEN_ENDED + token(1),
]


@dataclass(frozen=True)
class Held:
    """An answer after which the connection stays open until the client closes it."""

    raw: bytes


@dataclass(frozen=True)
class Request:
    line: str
    headers: dict[str, str]
    body: bytes


async def read_request(reader: asyncio.StreamReader) -> Request:
    head = await reader.readuntil(b"\r\n\r\n")
    first, *others = head.decode().removesuffix("\r\n\r\n").split("\r\n")
    headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in others)}
    body = await reader.readexactly(int(headers.get("content-length", 0)))
    return Request(first.removesuffix(" HTTP/1.1"), headers, body)


class Script:
    """A server that gives each request the next of its answers and hangs up. It takes any DELETE.

    `holding` is set once a Held answer is out.
    """

    def __init__(self, *answers: bytes | Held, port: int = 0) -> None:
        self._answers = iter(answers)
        self._port = port
        self.requests: list[Request] = []
        self.holding = asyncio.Event()

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", self._port)
        self.port: int = self._server.sockets[0].getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        return self

    async def __aexit__(self, *_: object) -> None:
        self.close()
        await self._server.wait_closed()

    def close(self) -> None:
        """Take no more connections."""
        self._server.close()

    @property
    def lines(self) -> list[str]:
        return [request.line for request in self.requests]

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(OSError, asyncio.IncompleteReadError):
            request = await read_request(reader)
            self.requests.append(request)
            told = NOTHING if request.line.startswith("DELETE") else next(self._answers, b"")
            writer.write(told.raw if isinstance(told, Held) else told)
            await writer.drain()
            if isinstance(told, Held):
                self.holding.set()
                await reader.read()
        writer.close()


@asynccontextmanager
async def scripted(
    *answers: bytes | Held, max_retries: int = 5
) -> AsyncIterator[tuple[Script, Client]]:
    async with Script(*answers) as server, Client(server.url, max_retries=max_retries) as client:
        yield server, client


GENERATE = "POST /generate"
RESUME = f"GET /v1/tapes/{TAPE}"
CANCEL = f"DELETE /v1/tapes/{TAPE}"


def assert_resumed(request: Request, after: int) -> None:
    assert request.line == RESUME
    assert request.headers["last-event-id"] == f"{TAPE}:{after}"
    assert request.body == b""


def assert_whole(events: list[Event], after: int = 0) -> None:
    """Every entry after `after` once, in order, and the end."""
    *before, end = events
    entries = [(event.n, event.text, event.tape) for event in before if isinstance(event, Token)]
    assert entries == [(n, TEXTS[n - 1], TAPE) for n in range(after + 1, LAST + 1)]
    assert len(entries) == len(before)
    assert isinstance(end, Done)
    assert (end.finish_reason, end.tape) == ("stop", TAPE)


async def read(events: AsyncIterator[Event]) -> list[Event]:
    return [event async for event in events]


async def generate(client: Client) -> None:
    assert_whole(await read(client.generate("Once", seed=7)))


async def complete(client: Client) -> None:
    assert (await client.complete("Once", seed=7)).generated_text == "".join(TEXTS)


Call = Callable[[Client], Awaitable[None]]


@pytest.fixture
def slept(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """How long the client would have waited, each time; it does not."""
    delays: list[float] = []

    async def sleep(delay: float) -> None:
        delays.append(delay)

    monkeypatch.setattr(asyncio, "sleep", sleep)
    return delays


either_call = pytest.mark.parametrize(
    ("call", "success"),
    [
        pytest.param(generate, WHOLE_STREAM, id="generate"),
        pytest.param(complete, WHOLE_ANSWER, id="complete"),
    ],
)


# ---- cuts


@pytest.mark.parametrize("head", [OPEN_ENDED, COUNTED], ids=["end-of-file", "body-too-short"])
@pytest.mark.parametrize("after", range(LAST + 1))
async def test_a_cut_after_any_frame_is_not_noticed(after: int, head: bytes) -> None:
    first, second = head + tokens(last=after), head + tokens(after) + done()
    async with scripted(first, second, max_retries=1) as (server, client):
        await generate(client)
    assert server.lines == [GENERATE, RESUME]
    assert_resumed(server.requests[1], after)


async def test_a_cut_at_any_byte_of_a_frame_is_not_noticed() -> None:
    after = TEXTS.index("🐙")
    frame = token(after + 1)
    cuts = [
        part
        for size in range(len(frame))
        for part in (COUNTED + tokens(last=after) + frame[:size], rest(after))
    ]
    async with scripted(*cuts, max_retries=1) as (server, client):
        for _ in frame:
            await generate(client)
    assert server.lines == [GENERATE, RESUME] * len(frame)
    for request in server.requests[1::2]:
        assert_resumed(request, after)


async def test_a_cut_inside_the_opening_block_is_not_noticed(slept: list[float]) -> None:
    """Then only the header X-Tape has said which tape it is. No `retry:` has come: a second."""
    async with scripted(OPEN_ENDED + b"retry: 10", WHOLE_STREAM, max_retries=1) as (server, client):
        await generate(client)
    assert_resumed(server.requests[1], 0)
    assert slept[0] >= 1


async def test_a_cut_after_every_frame_is_not_noticed_either() -> None:
    """However often: what counts against `max_retries` is only a try without a new entry."""
    answers = [COUNTED + tokens(n, n + 1) for n in range(LAST)]
    async with scripted(*answers, OPEN_ENDED + done(), max_retries=1) as (server, client):
        await generate(client)
    assert server.lines == [GENERATE] + [RESUME] * LAST
    for after, request in enumerate(server.requests[1:], 1):
        assert_resumed(request, after)


async def test_attach_reads_on_after_a_cut_too() -> None:
    first, second = OPEN_ENDED + tokens(4, 6), rest(6)
    async with scripted(first, second) as (server, client):
        assert_whole(await read(client.attach(TAPE, after=4)), after=4)
    for request, after in zip(server.requests, (4, 6), strict=True):
        assert_resumed(request, after)


# ---- what the server sends again, leaves out, or has no longer


async def test_entries_that_come_again_are_dropped() -> None:
    first = begun(5) + token(5) + token(2)
    async with scripted(first, WHOLE_STREAM) as (server, client):
        await generate(client)
    assert_resumed(server.requests[1], 5)


async def test_frames_of_several_entries_are_entries_all_the_same() -> None:
    """One of which a part is read already is not taken apart, but asked for from there."""
    first = begun(1) + token(3, count=2) + token(4)
    overlapping = OPEN_ENDED + token(3, count=2) + token(6, count=4)
    async with scripted(first, overlapping, rest(4)) as (server, client):
        events = await read(client.generate("Once"))
    texts = [event.text for event in events if isinstance(event, Token)]
    assert texts == [TEXTS[0], TEXTS[1] + TEXTS[2], *TEXTS[3:]]
    assert server.lines == [GENERATE, RESUME, RESUME]
    for request in server.requests[1:]:
        assert_resumed(request, 4)


async def test_status_frames_are_told_and_move_nothing() -> None:
    first = OPEN_ENDED + status("queued") + tokens(last=3) + status("recovering")
    async with scripted(first, rest(3)) as (server, client):
        events = await read(client.generate("Once"))
    told = Status("queued", {"position": 2}), Status("recovering", {"position": 2})
    assert (events.pop(0), events.pop(3)) == told
    assert_whole(events)
    assert_resumed(server.requests[1], 3)


@pytest.mark.parametrize(
    ("after", "end"),
    [(3, tokens(4) + done()), (LAST - 1, done())],
    ids=["before-a-token", "before-the-end"],
)
async def test_a_hole_is_not_passed_but_asked_for(
    after: int, end: bytes, slept: list[float]
) -> None:
    async with scripted(begun(after) + end, rest(after), max_retries=1) as (server, client):
        await generate(client)
    assert server.lines == [GENERATE, RESUME]
    assert_resumed(server.requests[1], after)
    assert slept[0] < 1, "the `retry:` in front of the hole counts"


async def test_a_hole_that_stays_is_an_error() -> None:
    hole = begun(2) + tokens(5) + done()
    async with scripted(hole, hole, hole, max_retries=2) as (server, client):
        with pytest.raises(ConnectionLostError, match="between 2 and 6 are missing") as lost:
            await generate(client)
    assert (lost.value.tape, lost.value.after) == (TAPE, 2)
    assert server.lines == [GENERATE, RESUME, RESUME]


async def test_a_gap_is_told_and_passed() -> None:
    """The client reads on behind it, also when the connection breaks right there."""
    answers = [begun(3), OPEN_ENDED + gap(4, 6), rest(6)]
    async with scripted(*answers, max_retries=1) as (server, client):
        events = await read(client.generate("Once"))
    assert events.pop(3) == Gap(4, 6)
    assert [event.n for event in events if isinstance(event, Token)] == [1, 2, 3, *range(7, 13)]
    assert_resumed(server.requests[1], 3)
    assert_resumed(server.requests[2], 6)


# ---- the same request again


@pytest.mark.parametrize("lost", [b"", OPEN_ENDED[:20]], ids=["no-answer", "half-a-head"])
@either_call
async def test_a_request_without_an_answer_is_sent_again_as_the_same(
    call: Call, success: bytes, lost: bytes
) -> None:
    async with scripted(lost, success, success) as (server, client):
        await call(client)
        await call(client)
    first, again, another = server.requests
    assert first.line == GENERATE
    assert json.loads(first.body).items() >= {"prompt": "Once", "seed": 7}.items()
    assert (first.line, first.headers, first.body) == (again.line, again.headers, again.body)
    keys = [request.headers["idempotency-key"] for request in (first, again, another)]
    assert keys[0] == keys[1] != keys[2], "one key for one call"


@pytest.mark.parametrize(("status", "seconds"), [(429, 0), (503, 2)])
@either_call
async def test_a_busy_server_is_asked_again_when_it_said(
    call: Call, success: bytes, status: int, seconds: int, slept: list[float]
) -> None:
    async with scripted(answer(status, retry_after=seconds), success, max_retries=1) as (
        server,
        client,
    ):
        await call(client)
    busy, again = server.requests
    assert busy.headers["idempotency-key"] == again.headers["idempotency-key"]
    assert busy.body == again.body
    # Without a word from the server it would have been one second.
    assert [int(delay) for delay in slept] == [seconds]


async def test_a_resume_that_meets_a_busy_server_waits_as_well(slept: list[float]) -> None:
    """Longer than the stream's `retry:`."""
    answers = [begun(5), answer(503, retry_after=1)]
    async with scripted(*answers, rest(5)) as (server, client):
        await generate(client)
    assert slept[1] >= 1
    for request in server.requests[1:]:
        assert_resumed(request, 5)


@pytest.mark.parametrize("status", [429, 503])
@either_call
async def test_a_server_that_stays_busy_is_an_error(
    call: Call, success: bytes, status: int
) -> None:
    for retries in (0, 2):
        busy = [answer(status, retry_after=0)] * (retries + 1)
        async with scripted(*busy, success, max_retries=retries) as (server, client):
            with pytest.raises(OverloadedError) as overload:
                await call(client)
        assert (overload.value.status, overload.value.retry_after) == (status, 0)
        assert server.lines == [GENERATE] * (retries + 1)


@either_call
async def test_nobody_waits_for_an_hour(call: Call, success: bytes) -> None:
    async with scripted(answer(503, retry_after=3600), success) as (server, client):
        with pytest.raises(OverloadedError) as overload:
            await call(client)
    assert overload.value.retry_after == 3600
    assert server.lines == [GENERATE]


@pytest.mark.parametrize("status", [400, 401, 404, 409, 413, 422, 500])
@either_call
async def test_any_other_refusal_is_final(call: Call, success: bytes, status: int) -> None:
    async with scripted(answer(status), success) as (server, client):
        with pytest.raises(RefusedError) as refusal:
            await call(client)
    assert not isinstance(refusal.value, OverloadedError)
    assert (refusal.value.status, refusal.value.code) == (status, "some")
    assert server.lines == [GENERATE]


# ---- how long it waits, how often


@pytest.mark.parametrize("retry", [50, 500])
async def test_it_waits_as_long_as_the_stream_said(retry: int, slept: list[float]) -> None:
    first = begun(5, retry=retry)
    async with scripted(first, rest(5)) as (_, client):
        await generate(client)
    assert retry / 1000 <= slept[0] < 1, "without a word it would be a second"


async def test_it_waits_longer_each_time_until_there_is_a_new_entry(slept: list[float]) -> None:
    answers = [begun(1, retry=50), *FRUITLESS[1:], OPEN_ENDED + token(2)]
    async with scripted(*answers, rest(2)) as (_, client):
        await generate(client)
    *growing, anew = slept
    assert len(growing) == 4
    for waited, least in zip(growing, (0.05, 0.1, 0.2, 0.4), strict=True):
        assert waited >= least
    assert 0.05 <= anew < 0.8, "a fifth wait in a row would have been 0.8 s"


async def test_after_max_retries_it_says_where_to_read_on() -> None:
    async with scripted(begun(3), *FRUITLESS, rest(3), max_retries=len(FRUITLESS)) as (
        server,
        client,
    ):
        with pytest.raises(ConnectionLostError) as lost:
            await generate(client)
        assert (lost.value.tape, lost.value.after) == (TAPE, 3)
        assert_whole(await read(client.attach(TAPE, lost.value.after)), after=3)
    assert server.lines == [GENERATE] + [RESUME] * (len(FRUITLESS) + 1), "and cancels nothing"
    for request in server.requests[1:]:
        assert_resumed(request, 3)


@pytest.fixture
def waits() -> Iterator[asyncio.Queue[str]]:
    """What the client logs before each of its waits: why, and how long."""
    told: asyncio.Queue[str] = asyncio.Queue()

    class Listener(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            told.put_nowait(record.getMessage())

    logger, listener = logging.getLogger("tickertape.client"), Listener()
    level = logger.level
    logger.setLevel(logging.INFO)
    logger.addHandler(listener)
    yield told
    logger.removeHandler(listener)
    logger.setLevel(level)


async def test_a_server_that_is_gone_may_come_back(waits: asyncio.Queue[str]) -> None:
    """A refused connection is final only where nothing has begun."""
    async with scripted(begun(3)) as (server, client):
        events = client.generate("Once")
        first = await anext(events)
        server.close()
        others = asyncio.create_task(read(events))
        async with asyncio.timeout(patience(10)):
            while "nothing answers" not in await waits.get():
                pass
        async with Script(rest(3), port=server.port) as again:
            assert_whole([first, *await others])
    assert_resumed(again.requests[0], 3)


async def test_a_server_that_stays_away_is_an_error() -> None:
    async with scripted(begun(3), max_retries=2) as (server, client):
        events = client.generate("Once")
        await anext(events)
        server.close()
        with pytest.raises(ConnectionLostError, match="nothing answers") as lost:
            await read(events)
    assert (lost.value.tape, lost.value.after) == (TAPE, 3)


@pytest.mark.parametrize(("retry", "seconds"), [(3000, [3, 6, 8, 8, 8]), (30_000, [30] * 5)])
async def test_waits_have_a_bound_and_no_two_are_the_same(
    retry: int, seconds: list[int], slept: list[float]
) -> None:
    """The server may ask for more than the bound; chance keeps many clients apart."""
    async with scripted(begun(1, retry=retry), max_retries=5) as (_, client):
        with pytest.raises(ConnectionLostError):
            await generate(client)
    for wait, least in zip(slept, seconds, strict=True):
        assert least <= wait <= 1.25 * least
    assert len(set(slept)) == len(slept)


async def test_a_retry_of_an_hour_is_not_waited_for() -> None:
    async with scripted(begun(3, retry=3_600_000)) as (server, client):
        with pytest.raises(ConnectionLostError) as lost:
            await generate(client)
    assert (lost.value.tape, lost.value.after) == (TAPE, 3)
    assert server.lines == [GENERATE]


# ---- a tape that is gone, or read to its end


async def test_a_tape_that_is_gone_is_refused() -> None:
    async with scripted(begun(3), answer(404)) as (server, client):
        with pytest.raises(RefusedError) as refusal:
            await generate(client)
    assert refusal.value.status == 404
    assert server.lines[:2] == [GENERATE, RESUME]
    assert RESUME not in server.lines[2:]


async def test_a_tape_without_anything_left_ends_quietly() -> None:
    async with scripted(begun(LAST), NOTHING) as (server, client):
        events = await read(client.generate("Once"))
    assert [event.n for event in events if isinstance(event, Token)] == [*range(1, LAST + 1)]
    assert len(events) == LAST
    assert server.lines == [GENERATE, RESUME]


# ---- leaving


async def test_leaving_after_a_resume_cancels_once() -> None:
    answers: list[bytes | Held] = [begun(3), Held(OPEN_ENDED + tokens(3, 6))]
    async with scripted(*answers) as (server, client):
        async with aclosing(client.generate("Once")) as events:
            async for event in events:
                if isinstance(event, Token) and event.n == 5:
                    break
        assert server.lines == [GENERATE, RESUME, CANCEL]
    assert server.lines == [GENERATE, RESUME, CANCEL], "closing the client adds nothing"


async def leave(events: AsyncIterator[Event], moment: Coroutine[None, None, object]) -> None:
    """Cancel the task that reads these events when that moment has come."""
    task = asyncio.create_task(read(events))
    await asyncio.wait_for(moment, patience(10))
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asyncio.wait_for(task, patience(10))


async def test_leaving_in_the_wait_for_a_new_connection(waits: asyncio.Queue[str]) -> None:
    first = begun(3, retry=30_000)
    async with scripted(first, first) as (server, client):
        await leave(client.generate("Once"), waits.get())
        assert server.lines == [GENERATE, CANCEL]
        await leave(client.attach(TAPE), waits.get())
    assert server.lines == [GENERATE, CANCEL, RESUME], "a reader who did not begin it ends nothing"


async def test_leaving_while_the_new_connection_is_made() -> None:
    first = begun(3)
    async with scripted(first, Held(b""), first, Held(b"")) as (server, client):
        await leave(client.generate("Once"), server.holding.wait())
        assert server.lines == [GENERATE, RESUME, CANCEL]
        server.holding.clear()
        await leave(client.attach(TAPE), server.holding.wait())
    assert server.lines == [GENERATE, RESUME, CANCEL, RESUME, RESUME]


async def test_leaving_before_any_tape_is_known_cancels_nothing() -> None:
    async with scripted(Held(b"")) as (server, client):
        await leave(client.generate("Once"), server.holding.wait())
    assert server.lines == [GENERATE]


async def test_leaving_one_loop_leaves_the_others_alone() -> None:
    other = TAPE.replace("T", "O")
    held = (begun(3)).replace(TAPE.encode(), other.encode())
    answers: list[bytes | Held] = [Held(held), begun(3), rest(3)]
    async with scripted(*answers) as (server, client):
        left, kept = client.generate("left"), client.generate("kept")
        assert isinstance(await anext(left), Token)
        events = [await anext(kept)]
        await left.aclose()
        events += await read(kept)
    assert_whole(events)
    assert server.lines == [GENERATE, GENERATE, f"DELETE /v1/tapes/{other}", RESUME]


# ---- a real server


async def test_a_real_generation_through_a_network_that_breaks(server: RunningServer) -> None:
    async def answered(url: str) -> tuple[str, list[int], Done]:
        async with Client(url) as client:
            *events, end = await read(
                client.generate(
                    "Once upon a time", max_length=200, seed=1, temperature=1.0, ignore_eos=True
                )
            )
        read_tokens = [event for event in events if isinstance(event, Token)]
        assert isinstance(end, Done)
        assert {token.tape for token in read_tokens} == {end.tape}, "all of one generation"
        ids = [id for token in read_tokens for id in token.token_ids]
        return "".join(token.text for token in read_tokens), ids, end

    tapes = server.health()["tapes"]
    async with Proxy(server.url, cut_after=0.3) as proxy:
        text, ids, end = await answered(proxy.url)
    assert server.health()["tapes"] <= tapes + 1, "no new connection has begun another generation"
    begun = [head for head in proxy.heads if head.startswith(b"POST /generate")]
    resumed = [
        head for head in proxy.heads if head.startswith(f"GET /v1/tapes/{end.tape}".encode())
    ]
    assert len(set(begun)) == 1, "sent again only as the same"
    assert len(resumed) > 1, "it was cut while it read"
    assert len(begun) + len(resumed) == len(proxy.heads)
    uncut_text, uncut_ids, uncut_end = await answered(server.url)
    assert (text, ids) == (uncut_text, uncut_ids)
    assert len(ids) == 200
    assert (end.finish_reason, end.usage) == (uncut_end.finish_reason, uncut_end.usage)
    assert end.tape != uncut_end.tape
