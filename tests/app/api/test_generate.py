"""POST and GET /generate over a real socket: frames, text, fields, leaving."""

import asyncio
import json
import subprocess
from typing import Any

import httpx
import pytest

from model.text.tokenizer import Tokenizer
from tests.prompts import PROMPTS
from tests.server import RunningServer, parse_frames, read_stream

GREEDY = {"temperature": 0, "max_length": 24}


async def stream(http: httpx.AsyncClient, **body: Any) -> tuple[str, str, list[Any]]:
    """Tape id, text and frames of one streamed generation."""
    response = await http.post("/generate", json=body | {"stream": True})
    assert response.status_code == 200
    frames = parse_frames(response.text)
    text = "".join(json.loads(f.data or "")["text"] for f in frames if f.event == "token")
    return response.headers["X-Tape"], text, frames


async def leave_after_first_token(http: httpx.AsyncClient, body: dict[str, Any]) -> str:
    """Start a stream, close its connection in the middle; the tape's id."""
    async with http.stream("POST", "/generate", json=body) as response:
        tape = response.headers["X-Tape"]
        async for frame in read_stream(response):
            if frame.event == "token":
                break
    return tape


async def test_every_stream_has_the_shape_of_the_contract(http: httpx.AsyncClient) -> None:
    response = await http.post("/generate", json={"prompt": "Hi", "stream": True, "max_length": 5})
    assert response.headers["content-type"].startswith("text/event-stream")
    assert response.headers["cache-control"] == "no-store, no-transform"
    assert response.headers["x-accel-buffering"] == "no"
    tape = response.headers["X-Tape"]
    assert len(tape) == 22, "128 bits in URL-safe base64"
    assert response.headers["Content-Location"] == f"/v1/tapes/{tape}"
    opening, *tokens, done = parse_frames(response.text)
    assert (opening.retry, opening.id, opening.data) == ("1000", f"{tape}:0", None)
    last = 0
    for frame in tokens:
        assert frame.event == "token"
        data = json.loads(frame.data or "")
        assert data.keys() == {"text", "token_ids", "index"}
        # A reader that falls behind gets several tokens in one frame, named after the last.
        last += len(data["token_ids"])
        assert frame.id == f"{tape}:{last}"
    assert done.id == f"{tape}:{last + 1}"
    assert done.event == "done"
    end = json.loads(done.data or "")
    assert end.keys() == {"finish_reason", "usage", "timings"}
    assert end["usage"] == {
        "prompt_tokens": 1,
        "completion_tokens": last,
        "cached_tokens": 0,
    }
    assert end["timings"].keys() == {"queue_ms", "ttft_ms", "total_ms", "tokens_per_second"}
    assert 0 <= end["timings"]["queue_ms"] <= end["timings"]["ttft_ms"]
    assert end["timings"]["ttft_ms"] <= end["timings"]["total_ms"]


async def test_the_answer_has_the_original_fields(http: httpx.AsyncClient) -> None:
    body = {"prompt": "The capital of France is", "ignore_eos": True, **GREEDY}
    answer = (await http.post("/generate", json=body)).json()
    assert answer.keys() == {"generated_text", "finish_reason", "usage", "timings", "tape"}
    assert "Paris" in answer["generated_text"]
    assert answer["finish_reason"] == "length"
    assert answer["usage"]["completion_tokens"] == 24


async def test_max_length_is_100_unless_asked_otherwise(http: httpx.AsyncClient) -> None:
    response = await http.post(
        "/generate", json={"prompt": "Once", "temperature": 0, "ignore_eos": True}
    )
    assert response.json()["usage"]["completion_tokens"] == 100


@pytest.mark.parametrize("prompt", PROMPTS)
async def test_streamed_text_equals_the_whole_answer(http: httpx.AsyncClient, prompt: str) -> None:
    """Byte for byte: the stream's pieces, the answer at once, and the tape's snapshot."""
    body = {"prompt": prompt, **GREEDY, "ignore_eos": True}
    tape, streamed, _frames = await stream(http, **body)
    whole = (await http.post("/generate", json=body)).json()["generated_text"]
    snapshot = await http.get(f"/v1/tapes/{tape}", headers={"Accept": "application/json"})
    assert streamed.encode() == whole.encode()
    assert streamed.encode() == snapshot.json()["generated_text"].encode()


async def test_token_ids_decode_to_the_text(http: httpx.AsyncClient, tokenizer: Tokenizer) -> None:
    _, text, frames = await stream(http, prompt="🎉🎊🥳", max_length=60, temperature=1.5, seed=3)
    ids = [i for f in frames if f.event == "token" for i in json.loads(f.data or "")["token_ids"]]
    assert tokenizer.decode(ids) == text


async def test_a_repeated_prompt_is_found_in_the_cache(http: httpx.AsyncClient) -> None:
    """Three ways in; the salt decides who shares."""
    body = {"prompt": "One two three four five six. " * 8, "temperature": 0, "max_length": 4}

    async def cached(salt: str | None) -> tuple[int, str]:
        fields = body | ({"cache_salt": salt} if salt else {})
        answer = (await http.post("/generate", json=fields)).json()
        assert answer["usage"]["prompt_tokens"] > 32
        return answer["usage"]["cached_tokens"], answer["generated_text"]

    none, text = await cached("of this test")
    assert none == 0
    found, again = await cached("of this test")
    assert found >= 32
    assert again == text
    assert (await cached("another"))[0] == 0
    streamed = await http.get("/generate", params=body | {"cache_salt": "another"})
    assert json.loads(parse_frames(streamed.text)[-1].data or "")["usage"]["cached_tokens"] == found
    created = await http.post("/v1/tapes", json=body | {"cache_salt": "another", "priority": -5})
    whole = await http.get(created.headers["Location"])
    assert json.loads(parse_frames(whole.text)[-1].data or "")["usage"]["cached_tokens"] == found


async def test_tokens_come_one_after_another(http: httpx.AsyncClient) -> None:
    """The first token is there while the last is not yet made."""
    loop = asyncio.get_running_loop()
    params = {"prompt": "Once upon a time", "max_length": 40, "ignore_eos": "true"}
    async with http.stream("GET", "/generate", params=params) as response:
        arrivals = [loop.time() async for f in read_stream(response) if f.event == "token"]
    assert len(arrivals) >= 20
    first, last = arrivals[0], arrivals[-1]
    middle = sum(1 for at in arrivals if first + (last - first) / 4 < at < last)
    assert middle >= len(arrivals) / 3


def test_curl_reads_token_frames_and_one_done(server: RunningServer) -> None:
    url = f"{server.url}/generate?prompt=Once+upon+a+time&temperature=0&max_length=8"
    curl = subprocess.run(["curl", "-sN", url], capture_output=True, text=True, check=True)
    events = [frame.event for frame in parse_frames(curl.stdout)]
    assert events == [None] + ["token"] * 8 + ["done"]


async def test_accept_header_asks_for_a_stream(http: httpx.AsyncClient) -> None:
    response = await http.post(
        "/generate", json={"prompt": "Hi", **GREEDY}, headers={"Accept": "text/event-stream"}
    )
    assert response.headers["content-type"].startswith("text/event-stream")


async def test_a_seed_repeats_the_answer(http: httpx.AsyncClient) -> None:
    async def answer(seed: int) -> str:
        body = {"prompt": "Once upon a time", "temperature": 1, "top_k": 40, "seed": seed}
        text: str = (await http.post("/generate", json=body)).json()["generated_text"]
        return text

    assert await answer(1) == await answer(1)
    assert await answer(1) != await answer(2)


async def test_stop_strings_end_it_and_do_not_show(http: httpx.AsyncClient) -> None:
    body = {"prompt": "The first 20 primes are 2, 3, 5, 7,", "temperature": 0, "stop": "19"}
    _tape, text, frames = await stream(http, **body)
    assert "17" in text
    assert "19" not in text
    assert json.loads(frames[-1].data)["finish_reason"] == "stop"


async def test_logprobs_come_when_asked_for(http: httpx.AsyncClient) -> None:
    body = {"prompt": "The capital of France is", **GREEDY, "max_length": 3, "logprobs": 2}
    _, _, frames = await stream(http, **body)
    for frame in frames[1:-1]:
        data = json.loads(frame.data)
        (entry,) = data["logprobs"]
        assert entry["token_id"] == data["token_ids"][0] == entry["top"][0]["token_id"]
        assert len(entry["top"]) == 2
        assert entry["top"][1]["logprob"] <= entry["logprob"] <= 0
    whole = (await http.post("/generate", json=body)).json()
    assert len(whole["logprobs"]) == 3


async def test_several_at_once_are_served_together(http: httpx.AsyncClient) -> None:
    """Eight streams overlap in time and each gets the text that it gets alone."""
    prompts = PROMPTS[:8]
    answers = await asyncio.gather(*(stream(http, prompt=p, **GREEDY) for p in prompts))
    assert [json.loads(frames[-1].data)["finish_reason"] for *_, frames in answers]
    assert len({tape for tape, *_ in answers}) == 8


async def test_leaving_an_unstreamed_request_aborts_it(
    server: RunningServer, http: httpx.AsyncClient
) -> None:
    body = {"prompt": "Once", "max_length": 2000, "ignore_eos": True}
    request = asyncio.create_task(http.post("/generate", json=body))
    await server.health_becomes(10, running=1)
    request.cancel()
    await server.health_becomes(1, running=0, paused=0, kv_blocks_used=0)


@pytest.mark.parametrize(
    ("policy", "state"),
    [("abort", {"paused": 0, "kv_blocks_used": 0}), ("pause", {"paused": 1})],
)
async def test_leaving_a_stream(
    server: RunningServer, http: httpx.AsyncClient, policy: str, state: dict[str, int]
) -> None:
    body = {"prompt": "Once", "max_length": 2000, "ignore_eos": True, "stream": True}
    tape = await leave_after_first_token(http, body | {"on_disconnect": policy})
    await server.health_becomes(1, running=0, **state)
    await http.delete(f"/v1/tapes/{tape}")
    await server.health_becomes(1, running=0, paused=0, kv_blocks_used=0)


async def test_a_paused_generation_is_cancelled_after_its_grace(
    server: RunningServer, http: httpx.AsyncClient
) -> None:
    body = {"prompt": "Once", "max_length": 2000, "ignore_eos": True, "stream": True, "grace": 0.2}
    tape = await leave_after_first_token(http, body)
    await server.health_becomes(2, running=0, paused=0, kv_blocks_used=0)
    snapshot = await http.get(f"/v1/tapes/{tape}", headers={"Accept": "application/json"})
    assert snapshot.json()["finish_reason"] == "cancelled"


async def test_continue_runs_to_its_end_unread(http: httpx.AsyncClient) -> None:
    body = {"prompt": "Once", **GREEDY, "stream": True, "on_disconnect": "continue"}
    async with http.stream("POST", "/generate", json=body) as response:
        tape = response.headers["X-Tape"]
    response = await http.get(f"/v1/tapes/{tape}", headers={"Accept": "text/event-stream"})
    assert parse_frames(response.text)[-1].event == "done"
