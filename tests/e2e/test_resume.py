"""A stream that is cut anywhere goes on where it was, whoever reads it and however."""

import asyncio
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from playwright.async_api import Page

from tests.answers import Reading, read_all
from tests.proxy import Proxy
from tests.server import RunningServer, running
from tests.speed import patience
from tests.tiny import tiny_llama

LENGTH = 200
BODY = {"prompt": "cut me", "max_length": LENGTH, "seed": 4, "temperature": 1.0, "ignore_eos": True}
QUERY = {name: str(value).lower() for name, value in BODY.items()} | {"prompt": BODY["prompt"]}

# A browser's own EventSource, and nothing of ours: what it heard when it gave up.
LISTEN = """
url => new Promise(resolve => {
  const source = new EventSource(url);
  const heard = { text: "", ids: [], opened: 0, done: null };
  source.onopen = () => { heard.opened += 1; };
  source.addEventListener("token", event => {
    heard.text += JSON.parse(event.data).text;
    heard.ids.push(event.lastEventId);
  });
  source.addEventListener("done", event => { heard.done = JSON.parse(event.data); });
  source.onerror = () => { if (source.readyState === EventSource.CLOSED) resolve(heard); };
})
"""


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    path = tiny_llama(tmp_path_factory.mktemp("tiny"))
    flags = ("--model", str(path), "--dtype", "float32", "--log-level", "warning")
    with running(path / "log", *flags) as server:
        yield server
        assert server.stop() == 0, server.log.read_text()


@pytest.fixture
async def reader(small: RunningServer) -> AsyncIterator[httpx.AsyncClient]:
    async with httpx.AsyncClient(base_url=small.url, timeout=patience(60)) as client:
        yield client


def request(method: str) -> dict[str, Any]:
    """The same generation, asked for by GET or by POST."""
    if method == "GET":
        return {"method": "GET", "url": "/generate", "params": QUERY}
    return {"method": "POST", "url": "/generate", "json": BODY | {"stream": True}}


@pytest.mark.parametrize("method", ["GET", pytest.param("POST", marks=pytest.mark.long)])
async def test_cut_and_resumed_at_every_entry_it_is_the_uncut_answer(
    small: RunningServer, reader: httpx.AsyncClient, method: str
) -> None:
    """The first connection is closed in the middle of the generation, after entry k or inside
    the frame that follows; the second one is the same request with a Last-Event-ID."""
    whole = (await reader.post("/generate", json=BODY)).json()
    tapes = small.health()["tapes"]
    gate = asyncio.Semaphore(48)

    async def cut_after(entry: int) -> Reading:
        reading = Reading()
        async with gate:
            async with reader.stream(**request(method)) as response:
                await reading.read(response, until=entry)
            headers = {"Last-Event-ID": reading.event_id}
            if reading.done is None:
                async with reader.stream(**request(method), headers=headers) as response:
                    await reading.read(response)
            else:
                again = await reader.request(**request(method), headers=headers)
                assert (again.status_code, again.content) == (204, b"")
        return reading

    readings = await asyncio.gather(*(cut_after(entry) for entry in range(LENGTH + 2)))
    for reading in readings:
        assert reading.text == whole["generated_text"]
        assert reading.last == LENGTH + 1
    assert len({reading.tape for reading in readings}) == LENGTH + 2
    assert small.health()["tapes"] == tapes + LENGTH + 2, "no resume has begun another generation"


async def test_a_browser_alone_gets_the_text_once_through_a_network_that_breaks(
    server: RunningServer, http: httpx.AsyncClient, page: Page
) -> None:
    query = {"prompt": "Once upon a time", "max_length": "300", "temperature": "0"}
    query |= {"ignore_eos": "true"}
    async with Proxy(server.url, cut_after=0.3) as proxy:
        await page.goto(f"{proxy.url}/health")
        url = str(httpx.URL("/generate", params=query))
        heard = await asyncio.wait_for(page.evaluate(LISTEN, url), patience(60))
    tape = heard["ids"][0].partition(":")[0]
    uncut = Reading()
    async with http.stream("GET", f"/v1/tapes/{tape}") as response:
        await uncut.read(response)
    assert heard["text"] == uncut.text
    assert heard["done"] == uncut.done
    assert len(heard["ids"]) == len(set(heard["ids"]))
    assert {id.partition(":")[0] for id in heard["ids"]} == {tape}
    assert heard["opened"] > 1, "it was cut while it read"
    expected = await read_all(http, {**BODY, "prompt": query["prompt"], "max_length": 300} | GREEDY)
    assert heard["text"] == expected.text


GREEDY = {"temperature": 0.0}


async def test_the_opening_block_is_enough_to_resume(reader: httpx.AsyncClient) -> None:
    """A connection that is lost before its first token has an id all the same."""
    reading = Reading()
    async with reader.stream(**request("POST")) as response:
        await reading.read(response, until=0)
    assert reading.last == 0
    async with reader.stream(
        **request("POST"), headers={"Last-Event-ID": reading.event_id}
    ) as response:
        await reading.read(response)
    assert len(reading.token_ids) == LENGTH


async def test_what_a_tape_keeps_no_longer_is_a_gap(tmp_path: Path) -> None:
    path = tiny_llama(tmp_path)
    with running(path / "log", "--model", str(path), "--max-tape-memory", "20KB") as server:
        async with httpx.AsyncClient(base_url=server.url, timeout=patience(60)) as http:
            location = (await http.post("/v1/tapes", json=BODY)).headers["Location"]
            await http.get(location)  # to its end
            stream = await http.get(location)
            blocks = stream.text.split("\n\n")
            assert blocks[1].startswith('event: gap\ndata: {"from":1,"to":')
            missing = int(blocks[1].rpartition(":")[2].rstrip("}"))
            assert 0 < missing < LENGTH
            assert f"id: {location[-22:]}:{LENGTH}\n" in stream.text
            snapshot = (await http.get(location, headers={"Accept": "application/json"})).json()
            assert snapshot["gap"] == {"from": 1, "to": missing}
            assert snapshot["usage"]["completion_tokens"] == LENGTH
            inside = await http.get(f"{location}?after={missing}")
            assert "event: gap" not in inside.text
            whole = await http.post("/generate", json=BODY)
            assert whole.status_code == 422
            assert "--max-tape-memory" in whole.json()["error"]["message"]
