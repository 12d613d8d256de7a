"""Recorded bytes -> answers, wherever the network cut them."""

import asyncio
import json
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bench.dialects import Dialect, Native, OpenAI
from bench.figures import BenchError
from bench.generator import ask, run
from bench.load import Load
from bench.scenarios import steady_gaps
from bench.stream import Recording, Target, read
from tests.bench.test_figures import answer
from tests.server import RunningServer, free_port

NATIVE = (
    b"retry: 1000\nid: t:0\n\n"
    b'event: status\ndata: {"state":"queued","position":2}\n\n'
    b'id: t:1\nevent: token\ndata: {"text":" a","token_ids":[5],"index":0}\n\n'
    b": ping\n\n"
    b'id: t:3\nevent: token\ndata: {"text":"","token_ids":[6,7],"index":0}\n\n'
    b'id: t:4\nevent: done\ndata: {"finish_reason":"length",'
    b'"usage":{"prompt_tokens":9,"completion_tokens":3,"cached_tokens":4},"timings":{}}\n\n'
)
# As vLLM 0.32 writes it, less its longer fields.
OPENAI = (
    b'data: {"object":"text_completion","choices":[{"index":0,"text":" a","token_ids":null}]}\n\n'
    b'data: {"choices":[{"index":0,"text":" b c","finish_reason":"length"}],"usage":null}\r\n\r\n'
    b'data: {"choices":[],"usage":{"prompt_tokens":9,"total_tokens":12,"completion_tokens":3,'
    b'"prompt_tokens_details":{"cached_tokens":4}}}\n\n'
    b"data: [DONE]\n\n"
)
HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n"


def target(dialect: Dialect, url: str = "http://127.0.0.1:1/v1/") -> Target:
    return Target("it", url, dialect)


def chunked(body: bytes, size: int) -> bytes:
    parts = [body[i : i + size] for i in range(0, len(body), size)]
    frames = b"".join(b"%x\r\n%b\r\n" % (len(part), part) for part in parts)
    return HEAD + b"Transfer-Encoding: chunked\r\n\r\n" + frames + b"0\r\n\r\n"


def recorded(raw: bytes, cuts: list[int]) -> Recording:
    """Piece n arrives at second n."""
    edges = [0, *sorted(cut % (len(raw) + 1) for cut in cuts), len(raw)]
    pieces = [raw[a:b] for a, b in pairwise(edges) if a < b]
    return Recording(0.0, [(float(n), piece) for n, piece in enumerate(pieces, start=1)])


@pytest.mark.parametrize(("dialect", "body"), [(Native(), NATIVE), (OpenAI("m"), OPENAI)])
@given(cuts=st.lists(st.integers(0, 2**20), max_size=40), size=st.integers(1, 300))
def test_cuts_do_not_matter(dialect: Dialect, body: bytes, cuts: list[int], size: int) -> None:
    found = read(target(dialect), recorded(chunked(body, size), cuts))
    assert (found.prompt_tokens, found.cached_tokens, found.completion_tokens) == (9, 4, 3)
    assert len(found.arrivals) == 2
    assert 1 <= found.arrivals[0][0] <= found.arrivals[1][0] <= len(cuts) + 1


def test_a_token_arrives_with_the_end_of_its_line() -> None:
    raw = chunked(NATIVE, 4096)
    first = raw.index(b'{"text":" a"')
    found = read(target(Native()), recorded(raw, [first + 5, raw.index(b"\n", first) + 1]))
    assert found.arrivals == [(2.0, 1), (3.0, 2)]


def test_a_body_without_chunks_ends_with_the_connection() -> None:
    found = read(target(OpenAI("m")), recorded(HEAD + b"\r\n" + OPENAI, []))
    assert found.completion_tokens == 3


def test_without_usage_frames_are_counted() -> None:
    body = OPENAI.partition(b'data: {"choices":[],')[0]
    assert read(target(OpenAI("m")), recorded(chunked(body, 99), [])).completion_tokens == 2


@pytest.mark.parametrize(
    ("raw", "words"),
    [
        (chunked(NATIVE, 50)[:-9], "torn"),
        (b"", "torn"),
        (b"what is this", "torn"),
        (b'HTTP/1.1 429 Busy\r\nContent-Length: 12\r\n\r\n{"no":"room"}'[:-1], "refused with 429"),
        (chunked(b'data: {"error":{"message":"out of memory"}}\n\n', 9), "out of memory"),
        (chunked(b": ping\n\n", 9), "without a token"),
    ],
)
def test_what_is_no_answer_is_said(raw: bytes, words: str) -> None:
    with pytest.raises(BenchError, match=words):
        read(target(Native()), recorded(raw, []))


def test_a_request_is_whole_and_asks_for_the_full_length() -> None:
    raw = target(OpenAI("m")).request("é", 7)
    head, _, body = raw.partition(b"\r\n\r\n")
    assert head.startswith(b"POST /v1/completions HTTP/1.1\r\nHost: 127.0.0.1:1\r\n")
    assert f"Content-Length: {len(body)}".encode() in head
    asked = json.loads(body)
    assert (asked["max_tokens"], asked["temperature"], asked["ignore_eos"]) == (7, 0, True)


async def test_a_closed_loop_keeps_so_many_streams_open_and_no_more() -> None:
    """Answers are held back until all streams have asked: a loop with fewer would hang."""
    open_now, most, served = 0, 0, 0
    everyone = asyncio.Event()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal open_now, most, served
        open_now += 1
        most = max(most, open_now)
        await reader.readuntil(b"\r\n\r\n")
        if open_now == 3:
            everyone.set()
        await everyone.wait()
        open_now -= 1
        served += 1
        writer.write(chunked(OPENAI, 64))
        writer.close()

    async with await asyncio.start_server(serve, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        found = await run(target(OpenAI("m"), f"http://127.0.0.1:{port}"), Load(7, 3, seed="s"))
    assert (most, served, found.figures.answers) == (3, 7, 7)
    assert found.figures.new_tokens == 3


async def test_our_server_is_understood(server: RunningServer) -> None:
    load = Load(4, 2, words=8, new_tokens=5, seed="ours")
    answers = await ask(target(Native(), server.url), load)
    assert [a.completion_tokens for a in answers] == [5] * 4
    assert all(sum(count for _, count in a.arrivals) == 5 for a in answers)
    lengths = [len(prompt) for prompt in load.prompts()]  # a token a byte
    assert sorted(a.prompt_tokens for a in answers) == sorted(lengths)
    opened = await ask(target(Native(), server.url), Load(3, rate=50, words=8, new_tokens=2))
    assert [a.completion_tokens for a in opened] == [2] * 3


async def test_nobody_there_is_said() -> None:
    with pytest.raises(BenchError, match="nothing answers"):
        await ask(target(Native(), f"http://127.0.0.1:{free_port()}"), Load(1))


def test_steady_gaps_leave_out_the_start_and_the_end() -> None:
    early = answer(0.0, (1.0, 1), (2.0, 1), (3.0, 1), (4.0, 1))
    late = answer(0.0, (2.0, 1), (3.5, 1), (9.0, 1))
    assert steady_gaps([early, late]) == pytest.approx([1.0, 1.0, 1.5])
