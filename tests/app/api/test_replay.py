"""A reader that is behind: bounded frames, made once for all, and nothing lost between them."""

import asyncio
import gc
import json
import socket
import time
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from typing import Any, cast

import pytest
from starlette.types import Message, Scope

from app.api.native import frames as native
from app.api.openai.chat_chunks import ChatDialect, ChatForm
from app.api.openai.chat_chunks import completion as chat_completion
from app.api.openai.completions_chunks import CompletionForm, CompletionsDialect
from app.api.openai.completions_chunks import completion as text_completion
from app.api.openai.responses_events import ResponseForm, ResponsesDialect, response
from app.observability.metrics import Metrics
from app.readers.frame_cache import Frame, FrameCache, Place
from app.readers.tape_response import Dialect, TapeResponse
from app.readers.turns import Turns
from app.tapes.registry import Registry
from app.tapes.tape import PAGE_BYTES, PAGE_ENTRIES, Choice, Entry, Tape, pages
from model.protocol.messages import Logprob, TopLogprob
from tests.app.readers.test_tape_response import REQUEST, Readers, reading, serving, unchunked
from tickertape.sse_parser import EventStreamParser, ServerSentEvent

TAPE_ID = "abcdefghijklmnopqrstuv"
LOGPROBS = 20
CALL = '<tool_call>\n{"name": "f", "arguments": {"a": [1, "}"]}}\n</tool_call>'


def token_bytes(token_id: int) -> bytes:
    return b"\xe2\x80"


def logprob(token_id: int) -> Logprob:
    top = [TopLogprob(token_id + n, f" t{n}", -float(n)) for n in range(LOGPROBS)]
    return Logprob(token_id, " t0", 0.0, top)


def tape_of(texts: Sequence[str], *, logprobs: bool, ended: bool = True) -> Tape:
    tape = Tape(TAPE_ID, [Choice(3)])
    for number, text in enumerate(texts):
        tape.append(Entry(text, number, logprob(number) if logprobs else None))
    if ended:
        tape.finish("stop")
    return tape


def chat(tape: Tape, *, tools: bool = False) -> ChatDialect:
    return ChatDialect(tape, ChatForm("m", token_bytes, tools=tools, include_usage=True))


def responses(tape: Tape) -> ResponsesDialect:
    return ResponsesDialect(tape, ResponseForm("m", token_bytes, [], {"metadata": {"k": "\x00"}}))


DIALECTS: dict[str, Callable[[Tape], Dialect]] = {
    "native": lambda tape: native,
    "chat": chat,
    "tools": lambda tape: chat(tape, tools=True),
    "completions": lambda tape: CompletionsDialect(tape, CompletionForm("m", echo=["Once"])),
    "responses": responses,
}


async def body_of(
    tape: Tape, dialect: Dialect, after: int | None = None, cache: FrameCache | None = None
) -> list[bytes]:
    """What one reader is sent, write by write."""
    sent: list[bytes] = []

    async def receive() -> Message:
        await asyncio.Event().wait()
        raise AssertionError

    async def send(message: Message) -> None:
        sent.append(message.get("body", b""))

    answer = TapeResponse(
        cast(Registry, Readers()),
        tape,
        after,
        metrics=Metrics("none", 8192),
        turns=Turns(),
        cache=cache or FrameCache(),
        dialect=dialect,
        ping_interval=15,
        send_timeout=15,
    )
    scope: Scope = {"type": "http", "method": "GET", "state": {}}
    await answer(scope, receive, send)
    return sent


def events(body: bytes) -> list[ServerSentEvent]:
    return list(EventStreamParser().feed(body))


def told(events: Sequence[ServerSentEvent]) -> list[Any]:
    """What they say, however they are cut: one item for each token, call and end."""
    out: list[Any] = []
    for event in events:
        out += _said(json.loads(event.data)) if event.data != "[DONE]" else ["DONE"]
    return _joined(out)


def _said(data: dict[str, Any]) -> Iterator[Any]:
    if "sequence_number" in data:
        yield data["sequence_number"], json.dumps(data)
    elif "text" in data:
        yield "text", data["text"]
        yield "logprobs", data.get("logprobs", [])
    elif data.get("choices"):
        (choice,) = data["choices"]
        delta = choice.get("delta", choice)
        yield "text", delta.get("content") or delta.get("text") or ""
        for call in delta.get("tool_calls", ()):
            yield "call", json.dumps(call["function"]["arguments"])[1:-1]
        yield from (("logprobs", [one]) for one in _listed(choice["logprobs"]))
        if choice["finish_reason"]:
            yield "end", choice["finish_reason"]
    else:
        yield "rest", json.dumps({k: v for k, v in data.items() if k != "timings"})


def _listed(logprobs: dict[str, Any] | None) -> list[Any]:
    if not logprobs:
        return []
    if "content" in logprobs:
        return cast(list[Any], logprobs["content"])
    return [list(one) for one in zip(*logprobs.values(), strict=True)]


def _joined(said: list[Any]) -> list[Any]:
    """All of one kind together: frames are cut between entries, at different places."""
    kinds: dict[Any, Any] = {}
    for kind, value in (one if isinstance(one, tuple) else (one, "") for one in said):
        kinds[kind] = kinds[kind] + value if kind in kinds else value
    return sorted(kinds.items(), key=str)


@pytest.mark.timeout(600)
@pytest.mark.parametrize("stride", [9, pytest.param(1, marks=pytest.mark.long)])
@pytest.mark.parametrize("with_logprobs", [False, True])
@pytest.mark.parametrize("name", DIALECTS)
async def test_every_cut_goes_on_exactly_across_pages_alone_and_in_company(
    name: str, with_logprobs: bool, stride: int
) -> None:
    """Readers in company get frames that others have had made."""
    texts = ["a\u2028b", " c", "", CALL[:20], *CALL[20:], " d"] * 9
    tape, make = tape_of(texts, logprobs=with_logprobs), DIALECTS[name]
    assert len(texts) > 2 * PAGE_ENTRIES
    whole = await body_of(tape, make(tape))
    expected, cache = told(events(b"".join(whole))), FrameCache()
    tape.readers = 2
    ids = [int(e.id.rpartition(":")[2]) for e in events(b"".join(whole))]
    for place, cut in enumerate(ids):
        if cut in ids[:place]:  # more with the same id is told again
            continue
        near_a_page = min(cut % PAGE_ENTRIES, -cut % PAGE_ENTRIES) <= 2
        if place % stride and not near_a_page and cut < tape.last - 2:
            continue
        before = events(b"".join(whole))[: place + 1] if cut else []
        rest = await body_of(tape, make(tape), cut, cache)
        assert told([*before, *events(b"".join(rest))]) == expected, cut


@pytest.mark.parametrize("name", DIALECTS)
async def test_no_write_is_large(name: str) -> None:
    tape = tape_of(["word "] * 2000, logprobs=True)
    writes = await body_of(tape, DIALECTS[name](tape))
    assert sum(map(len, writes)) > 2000 * LOGPROBS * 10
    assert max(map(len, writes)) <= PAGE_BYTES


async def test_frames_are_made_once_for_readers_at_the_same_place() -> None:
    made: list[int] = []

    class Counting:
        kind, state = "counting", None
        skip = staticmethod(native.skip)
        opening = staticmethod(native.opening)
        ending = staticmethod(native.ending)

        def frames(self, tape_id: str, last: int, entries: Sequence[Entry]) -> bytes:
            made.append(last)
            return native.frames(tape_id, last, entries)

    tape, cache = tape_of(["word "] * 1000, logprobs=False), FrameCache()
    tape.readers = 20
    cast_dialect = cast(Dialect, Counting())
    bodies = await asyncio.gather(*(body_of(tape, cast_dialect, None, cache) for _ in range(20)))
    assert len({b"".join(body) for body in bodies}) == 1
    assert len(made) == len(set(made)) == -(-1000 // PAGE_ENTRIES)


def test_the_cache_has_a_bound_and_keeps_the_newest() -> None:
    cache = FrameCache(cap=10_000)
    for number in range(100):
        cache.add(Place(TAPE_ID, "native", number, number + 1), Frame(b"x" * 1000, None))
        assert cache.size <= 10_000
    assert cache.get(Place(TAPE_ID, "native", 99, 100))
    assert cache.get(Place(TAPE_ID, "native", 0, 1)) is None


async def test_readers_with_a_gap_do_not_share_what_depends_on_what_they_missed() -> None:
    """Offsets of a reader that came after a gap begin at it; those of the first one do not."""
    tape = Tape(TAPE_ID, [Choice(3)], cap=400_000)
    for number in range(30):
        tape.append(Entry("word ", number, logprob(number)))
    tape.readers, cache = 2, FrameCache()
    form = CompletionForm("m")
    first = asyncio.create_task(body_of(tape, CompletionsDialect(tape, form), None, cache))
    for _ in range(20):
        await asyncio.sleep(0)
    for number in range(30, 100):
        tape.append(Entry("word ", number, logprob(number)))
    assert tape.num_dropped
    late = asyncio.create_task(
        body_of(tape, CompletionsDialect(tape, form), tape.num_dropped + 1, cache)
    )
    tape.finish("stop")
    offsets = []
    for body in await asyncio.gather(first, late):
        chunks = [json.loads(e.data) for e in events(b"".join(body)) if e.data != "[DONE]"]
        logged = [c["choices"][0]["logprobs"] for c in chunks if c.get("choices")]
        offsets.append([offset for one in logged if one for offset in one["text_offset"]])
    assert offsets[0][-1] != offsets[1][-1]


class Ticks:
    """The longest time that the loop's thread has worked between two passes of the loop.

    Processor time of the thread: what else runs on the machine makes no gap.
    """

    def __init__(self) -> None:
        self.longest = 0.0
        self.count = 0

    async def run(self) -> None:
        before = time.thread_time()
        while True:
            await asyncio.sleep(0)
            now = time.thread_time()
            self.longest = max(self.longest, now - before)
            before = now
            self.count += 1


async def longest_gap(work: Callable[[], Any]) -> float:
    """Without the collector: what start-up made is frozen in a server, and walked here."""
    gc.disable()
    ticks = Ticks()
    ticking = asyncio.create_task(ticks.run())
    await asyncio.sleep(0)
    await work()
    ticking.cancel()
    gc.enable()
    return ticks.longest


def cost_of_a_page(tape: Tape, dialect: Dialect) -> float:
    page = next(iter(pages(tape.entries)))
    costs = []
    for _ in range(5):
        began = time.thread_time()
        dialect.frames(tape.id, len(page), page)
        costs.append(time.thread_time() - began)
    return sorted(costs)[2]


GAP = 40  # pages' cost: measured 5 to 17; the whole tape at once is over 700


@pytest.mark.alone
@pytest.mark.parametrize("name", DIALECTS)
async def test_a_long_replay_makes_no_gap_in_the_loop(name: str) -> None:
    tape = tape_of(["word "] * 8192, logprobs=True)
    dialect = DIALECTS[name](tape)
    page = cost_of_a_page(tape, chat(tape))

    async def read() -> None:
        assert len(await body_of(tape, dialect)) > 500

    gap = await longest_gap(read)
    print(f"{name}: {gap * 1000:.1f} ms, a page takes {page * 1000:.2f}")
    assert gap < GAP * page


@pytest.mark.alone
async def test_to_go_on_in_a_chat_with_tools_makes_no_gap() -> None:
    tape = tape_of(["word "] * 100_000, logprobs=False)
    dialect = chat(tape, tools=True)
    page = cost_of_a_page(tape, chat(tape, tools=True))

    async def read() -> None:
        assert await body_of(tape, dialect, 99_999)

    gap = await longest_gap(read)
    print(f"{gap * 1000:.1f} ms, a page takes {page * 1000:.2f}")
    assert gap < 5 * GAP * page  # the list of 100,000 entries is copied once


@pytest.mark.alone
@pytest.mark.parametrize("name", ["native", "snapshot", "chat", "completions", "responses"])
async def test_a_long_answer_at_once_makes_no_gap_in_the_loop(name: str) -> None:
    tape = tape_of(["word "] * 8192, logprobs=True)
    end = tape.end
    assert end
    form = ChatForm("m", token_bytes)
    answers: dict[str, Callable[[], Iterator[bytes]]] = {
        "native": lambda: native.answer(tape, end),
        "snapshot": lambda: native.snapshot(tape),
        "chat": lambda: chat_completion(tape, end, form),
        "completions": lambda: text_completion(tape, end, CompletionForm("m")),
        "responses": lambda: response(tape, responses(tape).form),
    }
    longest, began, pieces = 0.0, time.thread_time(), []
    for piece in answers[name]():
        now = time.thread_time()
        longest, began = max(longest, now - began), now
        pieces.append(piece)
    page = cost_of_a_page(tape, chat(tape))
    print(f"{name}: {longest * 1000:.1f} ms, a page takes {page * 1000:.2f}")
    assert longest < GAP * page
    answer = json.loads(b"".join(pieces))
    assert "word word " in json.dumps(answer)
    if name != "snapshot":
        assert json.dumps(answer).count('" t19"') == 8192


class SlowReader:
    """Takes `rate` bytes a second from a small window; `segment` is how much comes in one piece."""

    def __init__(self, port: int, rate: float, segment: int = 536) -> None:
        self.rate = rate
        self._socket = socket.socket()
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_MAXSEG, segment)
        self._socket.connect(("127.0.0.1", port))
        self._socket.setblocking(False)
        self._socket.sendall(REQUEST)

    async def pieces(self) -> AsyncIterator[bytes]:
        loop = asyncio.get_running_loop()
        while piece := await loop.sock_recv(self._socket, 2048):
            yield piece
            await asyncio.sleep(len(piece) / self.rate)
        self._socket.close()


@pytest.mark.alone
async def test_a_reader_with_a_tiny_window_is_not_cut_by_the_kernel() -> None:
    """To its TCP_USER_TIMEOUT such a reader takes nothing, for as long as anything waits."""
    tape, readers = tape_of(["x" * 150_000], logprobs=False), Readers()
    timeout = 2.0
    app = reading(tape, readers, send_timeout=timeout, ping_interval=15)
    async with serving(app, kernel_timeout=timeout) as port:
        began, raw = time.monotonic(), b""
        async for piece in SlowReader(port, rate=10_000, segment=32_000).pieces():
            raw += piece
        assert time.monotonic() - began > 3 * timeout
    assert events(unchunked(raw.partition(b"\r\n\r\n")[2]))[-1].event == "done"


@pytest.mark.alone
async def test_a_slow_reader_that_goes_on_taking_is_not_cut() -> None:
    """What it is sent at once takes it several times --send-timeout."""
    tape, readers = tape_of(["x" * 900_000], logprobs=False), Readers()
    metrics = Metrics("none", 8192)
    timeout = 1.0
    app = reading(tape, readers, send_timeout=timeout, ping_interval=15, metrics=metrics)
    async with serving(app) as port:
        began, raw = time.monotonic(), b""
        async for piece in SlowReader(port, rate=200_000).pieces():
            raw += piece
        took = time.monotonic() - began
    assert took > 3 * timeout
    body = unchunked(raw.partition(b"\r\n\r\n")[2])
    assert events(body)[-1].event == "done"
    assert b'slow_readers_cut_total{model_name="none"} 0.0' in metrics.text()
