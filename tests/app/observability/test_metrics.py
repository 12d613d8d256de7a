"""/metrics: what it counts is what clients count, and it never falls."""

import asyncio
import os
import re
import shutil
import signal
import subprocess
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import prometheus_client
import pytest
from hypothesis import given as given_any
from hypothesis import strategies as st
from prometheus_client.parser import text_string_to_metric_families

from app.observability.metrics import PREFIX, Histogram, Metrics
from tests.answers import Reading, typing
from tests.server import RunningServer, read_stream, running
from tests.speed import patience
from tests.tiny import CHAT_TEMPLATE, tiny_llama

DOCUMENT = Path(__file__).parents[3] / "docs" / "metrics.md"
BODY: dict[str, Any] = {"prompt": "Once upon", "max_length": 12, "ignore_eos": True}
LONG: dict[str, Any] = BODY | {"max_length": 400, "grace": 60}
ENDLESS: dict[str, Any] = BODY | {"max_length": 16_000}  # to be cancelled long before

Samples = dict[tuple[str, frozenset[tuple[str, str]]], float]


@pytest.fixture(scope="module")
def watched(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    model = tiny_llama(tmp_path_factory.mktemp("watched"), CHAT_TEMPLATE, context=16_384)
    with running(model / "log", "--model", str(model)) as server:
        yield server
        assert server.stop() == 0, server.log.read_text()


@pytest.fixture
async def http(watched: RunningServer) -> AsyncIterator[httpx.AsyncClient]:
    async with httpx.AsyncClient(base_url=watched.url, timeout=patience(60)) as client:
        yield client


async def scrape(http: httpx.AsyncClient) -> Samples:
    """Every sample by its name without prefix and its labels without the model's name."""
    text = (await http.get("/metrics")).text
    return {
        (sample.name.removeprefix(PREFIX), labels(sample.labels)): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def labels(given: dict[str, str]) -> frozenset[tuple[str, str]]:
    return frozenset((given | {"model_name": ""}).items())


def value(samples: Samples, name: str, **given: str) -> float:
    return samples.get((name, labels(given)), 0.0)


async def becomes(http: httpx.AsyncClient, name: str, wanted: float, **given: str) -> Samples:
    """The metrics once one of them has this value. Raises TimeoutError."""
    async with asyncio.timeout(patience(10)):
        while value(samples := await scrape(http), name, **given) != wanted:  # noqa: ASYNC110
            await asyncio.sleep(0.01)
    return samples


# ---- what a client counts itself


@dataclass
class Ledger:
    """What clients were told."""

    prompt_tokens: int = 0
    completion_tokens: int = 0
    cached_tokens: int = 0
    tapes: int = 0
    sequences: int = 0
    resumes: int = 0
    replayed: int = 0
    reasons: Counter[str] = field(default_factory=Counter)
    requests: Counter[tuple[str, str, str]] = field(default_factory=Counter)

    def answered(self, method: str, route: str, answer: httpx.Response) -> None:
        self.requests[method, route, str(answer.status_code)] += 1

    def ended(self, told: dict[str, Any], sequences: int = 1) -> None:
        """A whole answer, a snapshot or a terminal frame."""
        usage = told["usage"]
        self.prompt_tokens += usage["prompt_tokens"]
        self.completion_tokens += usage["completion_tokens"]
        self.cached_tokens += usage.get("cached_tokens", 0)
        self.tapes += 1
        self.sequences += sequences
        self.reasons[told["finish_reason"]] += 1


async def whole(http: httpx.AsyncClient, ledger: Ledger) -> None:
    answer = await http.post("/generate", json=BODY)
    ledger.answered("POST", "/generate", answer)
    ledger.ended(answer.json())


async def streamed(http: httpx.AsyncClient, ledger: Ledger) -> None:
    reading = Reading()
    async with http.stream("GET", "/generate", params=BODY) as answer:
        await reading.read(answer)
    ledger.answered("GET", "/generate", answer)
    assert reading.done
    ledger.ended(reading.done)


async def stopped(http: httpx.AsyncClient, ledger: Ledger) -> None:
    stops = [chr(character) for character in range(32, 127)]
    answer = await http.post("/generate", json=BODY | {"max_length": 300, "stop": stops[:16]})
    ledger.answered("POST", "/generate", answer)
    ledger.ended(answer.json())


async def cancelled(http: httpx.AsyncClient, ledger: Ledger) -> None:
    async with http.stream("POST", "/generate", json=ENDLESS | {"stream": True}) as answer:
        ledger.answered("POST", "/generate", answer)
        reading, deleted = Reading(answer.headers["X-Tape"]), None
        async for frame in read_stream(answer):
            reading.take(frame)
            if frame.event == "token" and deleted is None:
                deleted = await http.delete(f"/v1/tapes/{reading.tape}")
                ledger.answered("DELETE", "/v1/tapes/{tape_id}", deleted)
    assert reading.done
    ledger.ended(reading.done)


async def resumed(http: httpx.AsyncClient, ledger: Ledger) -> None:
    """Left after the second entry, and fetched when it has ended."""
    reading = Reading()
    body = BODY | {"on_disconnect": "continue", "stream": True}
    async with http.stream("POST", "/generate", json=body) as answer:
        await reading.read(answer, until=2)
    ledger.answered("POST", "/generate", answer)
    told = await until_done(http, ledger, reading.tape)
    headers = {"Last-Event-ID": reading.event_id}
    async with http.stream("GET", f"/v1/tapes/{reading.tape}", headers=headers) as answer:
        ledger.replayed += told["last_entry"] - reading.last
        await reading.read(answer)
    ledger.answered("GET", "/v1/tapes/{tape_id}", answer)
    ledger.resumes += 1
    ledger.ended(told)


async def unread(http: httpx.AsyncClient, ledger: Ledger) -> None:
    begun = await http.post("/v1/tapes", json=BODY)
    ledger.answered("POST", "/v1/tapes", begun)
    ledger.ended(await until_done(http, ledger, begun.json()["tape"]))


async def several(http: httpx.AsyncClient, ledger: Ledger) -> None:
    chat = {"messages": [{"role": "user", "content": "Hi"}], "n": 2, "max_tokens": 9}
    answer = await http.post("/v1/chat/completions", json=chat | {"ignore_eos": True})
    ledger.answered("POST", "/v1/chat/completions", answer)
    told = answer.json()
    ledger.ended(told | {"finish_reason": told["choices"][0]["finish_reason"]}, sequences=2)


async def refused(http: httpx.AsyncClient, ledger: Ledger) -> None:
    ledger.answered("POST", "/generate", await http.post("/generate", json={"prompt": ""}))
    ledger.answered("PUT", "other", await http.put("/nothing/at/all"))


async def until_done(http: httpx.AsyncClient, ledger: Ledger, tape: str) -> dict[str, Any]:
    while True:
        answer = await http.get(f"/v1/tapes/{tape}", headers={"Accept": "application/json"})
        ledger.answered("GET", "/v1/tapes/{tape_id}", answer)
        told: dict[str, Any] = answer.json()
        if told["status"] == "done":
            return told


async def test_what_is_counted_is_what_clients_count(http: httpx.AsyncClient) -> None:
    kinds = (whole, streamed, stopped, cancelled, resumed, unread, several, refused)
    ledger, before = Ledger(), await scrape(http)
    await asyncio.gather(*(kind(http, ledger) for kind in kinds for _ in range(6)))
    for (method, route, status), count in ledger.requests.items():
        given = {"method": method, "route": route, "status": status}
        wanted = value(before, "http_requests_total", **given) + count
        after = await becomes(http, "http_requests_total", wanted, **given)

    def added(name: str, **given: str) -> float:
        return value(after, name, **given) - value(before, name, **given)

    assert added("prompt_tokens_total") == ledger.prompt_tokens
    assert added("generation_tokens_total") == ledger.completion_tokens
    assert {"stop", "length", "cancelled"} <= ledger.reasons.keys()
    for reason in ("stop", "length", "cancelled", "timeout", "shutdown", "error"):
        ended = added("request_success_total", finished_reason=reason)
        assert ended == ledger.reasons[reason], reason
    assert added("resumes_total") == ledger.resumes
    assert added("replayed_entries_total") >= ledger.replayed
    for name in ("e2e_request_latency", "time_to_first_token", "request_queue_time"):
        assert added(f"{name}_seconds_count") == ledger.tapes
    for name in ("request_prefill_time", "request_decode_time"):
        assert added(f"{name}_seconds_count") == ledger.tapes
    latencies = ledger.completion_tokens - ledger.sequences
    assert added("inter_token_latency_seconds_count") == latencies
    assert added("request_prompt_tokens_sum") == ledger.prompt_tokens
    assert added("request_generation_tokens_sum") == ledger.completion_tokens
    for name in ("num_requests_running", "num_requests_waiting", "readers_attached"):
        assert value(after, name) == 0, name
    assert added("num_tapes") == ledger.tapes


async def test_what_is_found_in_the_prefix_cache(http: httpx.AsyncClient) -> None:
    body = BODY | {"prompt": "the same beginning " * 5}
    before, ledger = await scrape(http), Ledger()
    for _ in range(3):
        ledger.ended((await http.post("/generate", json=body)).json())
    after = await scrape(http)
    assert ledger.cached_tokens > 0
    for name, tokens in [("queries", ledger.prompt_tokens), ("hits", ledger.cached_tokens)]:
        counter = f"prefix_cache_{name}_total"
        assert value(after, counter) - value(before, counter) == tokens


async def test_every_token_is_computed_in_some_step(http: httpx.AsyncClient) -> None:
    before = await scrape(http)
    usage = (await http.post("/generate", json=BODY | {"prompt": "unheard of"})).json()["usage"]
    after = await scrape(http)
    steps, computed = (
        value(after, name) - value(before, name)
        for name in ("iteration_tokens_total_count", "iteration_tokens_total_sum")
    )
    assert steps == usage["completion_tokens"]
    # The last token is not computed any further.
    assert computed == usage["prompt_tokens"] + usage["completion_tokens"] - 1


# ---- what only tapes have


async def test_replays_resumes_and_coalesced_frames(http: httpx.AsyncClient) -> None:
    tape = (await http.post("/generate", json=BODY)).json()["tape"]
    last = BODY["max_length"] + 1
    for after, replayed, coalesced, resumes in [
        (None, last, 1, 0),
        (0, last, 1, 1),
        (4, last - 4, 1, 1),
        (last - 2, 2, 0, 1),
        (last, 0, 0, 0),
    ]:
        before = await scrape(http)
        headers = {} if after is None else {"Last-Event-ID": f"{tape}:{after}"}
        answer = await http.get(f"/v1/tapes/{tape}", headers=headers)
        assert answer.status_code == (204 if after == last else 200)
        now = await scrape(http)
        added = [
            value(now, name) - value(before, name)
            for name in ("replayed_entries_total", "coalesced_frames_total", "resumes_total")
        ]
        assert added == [replayed, coalesced, resumes], after
        lags = value(now, "emit_to_socket_seconds_count")
        assert lags == value(before, "emit_to_socket_seconds_count"), "these were late by choice"


async def test_the_way_of_each_live_frame_is_timed(http: httpx.AsyncClient) -> None:
    before, frames = await scrape(http), 0
    async with http.stream("POST", "/generate", json=BODY | {"stream": True}) as answer:
        async for frame in read_stream(answer):
            frames += frame.event == "token"
    after = await scrape(http)
    lag = "emit_to_socket_seconds"
    assert value(after, f"{lag}_count") - value(before, f"{lag}_count") == frames
    assert 0 < value(after, f"{lag}_sum") - value(before, f"{lag}_sum") < 1


async def test_paused_ones_are_seen_and_those_that_wait_in_vain_expire(
    http: httpx.AsyncClient,
) -> None:
    before = await scrape(http)
    async with typing(http, LONG) as (reading, _):
        seen = await scrape(http)
        assert value(seen, "readers_attached") == 1
        assert value(seen, "num_requests_running") == 1
        assert 0 < value(seen, "kv_cache_usage_perc") < 1
    seen = await becomes(http, "num_requests_paused", 1)
    assert value(seen, "readers_attached") == 0
    assert (await http.delete(f"/v1/tapes/{reading.tape}")).status_code == 204
    await becomes(http, "num_requests_paused", 0)
    async with typing(http, LONG | {"grace": 0}):
        pass
    expired = value(before, "expired_tapes_total", reason="grace") + 1
    await becomes(http, "expired_tapes_total", expired, reason="grace")


async def test_an_engine_that_dies_takes_nothing_from_the_counters(
    watched: RunningServer, http: httpx.AsyncClient
) -> None:
    await http.post("/generate", json=BODY)
    before = await scrape(http)
    async with typing(http, LONG) as (reading, frames):
        os.kill(watched.health()["engine_pid"], signal.SIGKILL)
        gone = await becomes(http, "engine_up", 0)
        async for frame in frames:
            reading.take(frame)
    assert reading.done
    assert reading.done["finish_reason"] == "length"
    await http.post("/generate", json=BODY)
    after = await scrape(http)
    assert value(after, "engine_up") == 1
    for name in ("recoveries_total", "engine_restarts_total"):
        assert value(after, name) - value(before, name) == 1
    generated = value(after, "generation_tokens_total") - value(before, "generation_tokens_total")
    assert generated == LONG["max_length"] + BODY["max_length"]
    for earlier, later in ((before, gone), (gone, after)):
        for (name, given), counted in earlier.items():
            if name.endswith(("_total", "_count", "_sum", "_bucket")):
                assert later[name, given] >= counted, name
    queries = "prefix_cache_queries_total"
    assert value(after, queries) > value(gone, queries) >= value(before, queries) > 0


# ---- how it is written


def documented() -> dict[str, str]:
    """Kind by name, as the table has them."""
    row = re.compile(r"^\| `(\w+)` \| (gauge|counter|histogram) \|", re.MULTILINE)
    return dict(row.findall(DOCUMENT.read_text()))


async def test_what_is_there_is_what_is_documented(http: httpx.AsyncClient) -> None:
    answer = await http.get("/metrics")
    assert answer.headers["Content-Type"].startswith("text/plain; version=")
    lines = answer.text.splitlines()
    kinds = dict(line.split()[2:] for line in lines if line.startswith("# TYPE "))
    assert kinds == {f"{PREFIX}{name}": kind for name, kind in documented().items()}
    helped = {line.split()[2] for line in lines if re.match(r"# HELP \S+ [A-Z].*\.$", line)}
    assert helped == kinds.keys()
    samples = [line for line in lines if not line.startswith("#")]
    assert all('model_name="' in line for line in samples)
    assert len(samples) == len(set(samples))


@pytest.mark.skipif(not shutil.which("promtool"), reason="promtool is not installed")
def test_promtool_reads_it_and_objects_to_vllms_names_only(watched: RunningServer) -> None:
    text = httpx.get(f"{watched.url}/metrics").content
    assert promtool(text) <= {
        "metric names should not contain ':'",
        'non-counter metrics should not have "_total" suffix',
    }
    plain = text.replace(PREFIX.encode(), b"").replace(b"iteration_tokens_total", b"iteration")
    assert promtool(plain) == set()
    assert promtool(plain.replace(b"# HELP engine_up", b"# HELP engine_down")), "it looks"


def promtool(text: bytes) -> set[str]:
    """What it objects to, without the names."""
    checked = subprocess.run(
        ["promtool", "check", "metrics"], input=text, capture_output=True, check=False
    )
    assert checked.returncode in (0, 3), "3 is for lint"
    return {line.split(" ", 1)[1] for line in checked.stderr.decode().splitlines()}


@given_any(st.text())
def test_any_name_of_a_model_can_be_written(name: str) -> None:
    name = name.encode("utf-8", "replace").decode()
    text = Metrics(name, 8192).text().decode()
    told = {s.labels["model_name"] for f in text_string_to_metric_families(text) for s in f.samples}
    assert told == {name}


@given_any(st.lists(st.floats(0, 20) | st.sampled_from([0.0, 0.5, 1.0, 10.0])))
def test_a_histogram_is_prometheus_own(values: list[float]) -> None:
    bounds = [0.5, 1.0, 2.5, 10.0]
    ours, registry = Histogram(bounds), prometheus_client.CollectorRegistry()
    theirs = prometheus_client.Histogram("x", "x", buckets=bounds, registry=registry)
    for value in values:
        ours.observe(value)
        theirs.observe(value)
    buckets, total = ours.cumulated()
    for bound, count in buckets:
        assert registry.get_sample_value("x_bucket", {"le": bound}) == count
    assert registry.get_sample_value("x_sum") == total
