"""/v1/tapes over a real socket: start, read from anywhere, look, cancel."""

import asyncio
import json
from typing import Any

import httpx
import pytest

from tests.server import RunningServer, parse_frames

BODY = {"prompt": "Once upon a time", "temperature": 0, "max_length": 12, "ignore_eos": True}


@pytest.fixture
async def finished(http: httpx.AsyncClient) -> tuple[str, str]:
    """A finished tape's id, and its whole stream; log-probabilities tell the entries apart."""
    response = await http.post("/generate", json=BODY | {"stream": True, "logprobs": 0})
    return response.headers["X-Tape"], response.text


def joined(raw: str) -> str:
    return "".join(
        json.loads(f.data or "")["text"] for f in parse_frames(raw) if f.event == "token"
    )


async def test_start_without_reading_then_read(http: httpx.AsyncClient) -> None:
    created = await http.post("/v1/tapes", json=BODY)
    assert created.status_code == 201
    location = created.headers["Location"]
    assert location == f"/v1/tapes/{created.json()['tape']}"
    streamed = await http.get(location)
    assert parse_frames(streamed.text)[-1].event == "done"
    snapshot = (await http.get(location, headers={"Accept": "application/json"})).json()
    assert snapshot["status"] == "done"
    assert snapshot["generated_text"] == joined(streamed.text)
    assert snapshot["last_entry"] == 13


async def test_resume_at_every_entry_gives_the_exact_suffix(
    http: httpx.AsyncClient, finished: tuple[str, str]
) -> None:
    tape, raw = finished
    tokens = [json.loads(f.data or "") for f in parse_frames(raw) if f.event == "token"]
    texts = [entry["token"] for token in tokens for entry in token["logprobs"]]
    for cut in range(len(texts) + 1):
        suffix = "".join(texts[cut:])
        requests: list[tuple[str, str, dict[str, Any]]] = [
            ("GET", f"/v1/tapes/{tape}", {"headers": {"Last-Event-ID": f"{tape}:{cut}"}}),
            ("GET", f"/v1/tapes/{tape}?after={cut}", {}),
            ("GET", "/generate?prompt=x", {"headers": {"Last-Event-ID": f"{tape}:{cut}"}}),
            ("POST", "/generate", {"json": BODY, "headers": {"Last-Event-ID": f"{tape}:{cut}"}}),
            ("POST", "/v1/tapes", {"json": BODY, "headers": {"Last-Event-ID": f"{tape}:{cut}"}}),
        ]
        for method, url, options in requests:
            response = await http.request(method, url, **options)
            frames = parse_frames(response.text)
            assert joined(response.text) == suffix, (method, url, cut)
            assert frames[0].id == f"{tape}:{cut}"
            assert frames[-1].id == f"{tape}:{len(texts) + 1}"
            assert frames[-1].event == "done"


async def test_after_the_terminal_entry_there_is_204(
    http: httpx.AsyncClient, finished: tuple[str, str]
) -> None:
    tape, raw = finished
    last = parse_frames(raw)[-1].id or ""
    for url in (f"/v1/tapes/{tape}", "/generate?prompt=x"):
        response = await http.get(url, headers={"Last-Event-ID": last})
        assert (response.status_code, response.content) == (204, b"")


async def test_ids_that_are_none_of_ours(
    http: httpx.AsyncClient, finished: tuple[str, str]
) -> None:
    tape, _ = finished
    unknown = "A" * 22
    for event_id, status in [
        (f"{tape}:999", 400),
        (f"{tape}:-1", 400),
        (f"{tape}:01", 400),
        (f"{tape}", 400),
        (f"{tape}:", 400),
        ("garbage", 400),
        ("x" * 10_000, 400),
        (f"{unknown}:1", 404),
    ]:
        response = await http.get("/generate?prompt=x", headers={"Last-Event-ID": event_id})
        assert response.status_code == status, event_id[:40]
        assert response.json()["error"]["message"]
    other = await http.get(f"/v1/tapes/{tape}", headers={"Last-Event-ID": f"{unknown}:1"})
    assert other.status_code == 400


async def test_two_readers_read_the_same(http: httpx.AsyncClient) -> None:
    location = (await http.post("/v1/tapes", json=BODY)).headers["Location"]
    one, two = await asyncio.gather(http.get(location), http.get(location))
    assert joined(one.text) == joined(two.text) != ""


async def test_cancel_ends_every_reader_and_frees_the_blocks(
    server: RunningServer, http: httpx.AsyncClient
) -> None:
    location = (await http.post("/v1/tapes", json=BODY | {"max_length": 3000})).headers["Location"]
    readers = [asyncio.create_task(http.get(location)) for _ in range(2)]
    await server.health_becomes(5, running=1)
    assert (await http.delete(location)).status_code == 204
    for reader in readers:
        done = parse_frames((await reader).text)[-1]
        assert done.event == "done"
        assert json.loads(done.data or "")["finish_reason"] == "cancelled"
    await server.health_becomes(1, running=0, kv_blocks_used=0)
    assert (await http.delete(location)).status_code == 204, "cancelling twice is cancelling once"


@pytest.mark.parametrize("method", ["GET", "DELETE"])
async def test_unknown_tape_is_404(http: httpx.AsyncClient, method: str) -> None:
    response = await http.request(method, "/v1/tapes/nothing-here")
    assert response.status_code == 404
    assert response.json()["error"]["type"] == "not_found_error"
