"""Samples for the operations page: exact figures, everybody's own rows, and nobody held up."""

import asyncio
import json
import signal
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import Any, cast

import httpx
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel
from starlette.types import Receive, Scope, Send

from app.observability.dashboard import (
    KEPT,
    MAX_ROWS,
    ROW_SECONDS,
    WINDOW,
    Dash,
    Latencies,
    percentiles,
)
from app.observability.dashboard_types import EndEvent, HistoryEvent, SampleEvent
from app.observability.metrics import Metrics
from app.processes.engine_client import EngineClient
from app.readers.tape_response import EventStreamResponse
from app.tapes.engine_recovery import EngineRecovery, Record
from app.tapes.plan import Plan
from app.tapes.registry import Registry
from app.tapes.stores.memory import MemoryStore
from app.tapes.stores.retention import TapeRetention
from app.tapes.tape import Choice, Entry, Tape
from model.protocol.messages import Finished, Gauges, Generate, Started, Token, Totals
from model.protocol.sampling_params import SamplingParams
from tests.answers import typing
from tests.app.guard.test_api_keys import bearer
from tests.app.readers.test_tape_response import REQUEST, serving
from tests.raw import never_reading
from tests.server import RunningServer, parse_frames, read_stream, running
from tests.speed import patience

EVENTS: dict[str | None, type[BaseModel]] = {
    "history": HistoryEvent,
    "sample": SampleEvent,
    "end": EndEvent,
}
LONG: dict[str, Any] = {"prompt": "x", "max_length": 400, "ignore_eos": True, "grace": 60}

Event = tuple[str, Any]


# ---- percentiles


def brute_force(values: list[float], percent: int) -> float:
    """The smallest that so many do not exceed, by trying each."""
    return min(v for v in values if 100 * sum(o <= v for o in values) >= percent * len(values))


@given(st.lists(st.floats(0, 1e6, width=32), min_size=1, max_size=300))
def test_percentiles_are_exact(values: list[float]) -> None:
    found = percentiles(np.asarray(values, np.float32))
    assert found
    for percent in (50, 95, 99):
        expected = round(brute_force(values, percent), 3)
        assert getattr(found, f"p{percent}") == expected


def test_of_nothing_there_are_none() -> None:
    assert percentiles(np.empty(0, np.float32)) is None


SAMPLE, END = "sample", "end"
steps = st.lists(
    st.one_of(
        st.just(SAMPLE),
        st.tuples(st.just(END), st.integers(0, 2)),
        st.tuples(st.integers(0, 2), st.integers(0, 1), st.floats(0.001, 1)),
    ),
    max_size=60,
)


@given(steps)
def test_every_latency_is_counted_once_for_as_long_as_the_window(script: list[Any]) -> None:
    """Whatever tokens, ends of tapes and samples come between."""
    tapes = [Tape(str(number), [Choice(1), Choice(1)]) for number in range(3)]
    now = max(tape.began for tape in tapes)
    latencies = Latencies()
    for tape in tapes:
        latencies.began(tape)
    first: list[list[float]] = [[]]
    between: list[list[float]] = [[]]
    for step in script:
        if step == SAMPLE:
            for tape in tapes:
                if not tape.end:
                    latencies.look(tape)
            expected = first[-WINDOW:], between[-WINDOW:]
            assert latencies.gathered() == tuple(
                percentiles(np.asarray([*chain(*parts)], np.float32)) for parts in expected
            )
            first.append([])
            between.append([])
        elif step[0] == END:
            tape = tapes[step[1]]
            if not tape.end:
                tape.finish("stop")
                latencies.look(tape)
                latencies.forget(tape.id)
        elif not tapes[step[0]].end:
            tape, index, now = tapes[step[0]], step[1], now + step[2]
            tape.append(Entry("x", 1, None, index, now))
            if tape.num_tokens == 1:
                first[-1].append((now - tape.began) * 1000)
            if tape.choices[index].latency is not None:
                as_kept = np.float32(tape.choices[index].latency) * np.float32(1000)
                between[-1].append(float(as_kept))


def test_what_another_process_has_measured_is_not_counted() -> None:
    tape, latencies = Tape("a", [Choice(1)]), Latencies()
    for at in (1.0, 2.0):
        tape.append(Entry("x", 1, None, 0, at))
    latencies.began(tape)
    latencies.look(tape)
    assert latencies.gathered() == (None, None)
    tape.append(Entry("x", 1, None, 0, 2.5))
    latencies.look(tape)
    _, itl = latencies.gathered()
    assert itl
    assert itl.p99 == 500.0


# ---- a house without an engine


@dataclass
class Engine:
    """Stands for EngineRecovery: what comes of a sequence, the test says."""

    records: dict[str, Record] = field(default_factory=dict)

    def submit(self, request: Generate, tape: Tape, choice: Choice, record: Record) -> None:
        self.records[request.id] = record

    def cancel(self, request_id: str) -> None:
        del self.records[request_id]

    def pause(self, request_id: str) -> None: ...

    def unpause(self, request_id: str) -> None: ...


@dataclass
class Link:
    """Stands for the engine's gauges."""

    state: str = "ready"
    gauges: Gauges = field(default_factory=Gauges)
    totals: Totals = field(default_factory=Totals)
    info: None = None


class House:
    """A registry and what samples it, with a clock of their own."""

    def __init__(self) -> None:
        self.now = 0.0
        self.link, self.engine = Link(), Engine()
        metrics = Metrics("none", 8192)
        self.dash = Dash(metrics, cast(EngineClient, self.link), clock=lambda: self.now)
        self.registry = Registry(
            cast(EngineRecovery, self.engine),
            MemoryStore(TapeRetention(ttl=300, budget=1 << 20)),
            1 << 20,
            [metrics, self.dash],
        )
        self.dash.look_at(self.registry)

    async def tape(self, owner: str = "", *, started: bool = True, n: int = 1) -> Tape:
        plan = Plan([[1, 2, 3]], SamplingParams(max_tokens=9, seed=1), n=n, owner=owner)
        tape = await self.registry.create(plan)
        if started:
            self.engine.records[f"{tape.id}:0"](Started(f"{tape.id}:0", 0.5, 0))
        return tape

    def token(self, tape: Tape, index: int = 0) -> None:
        sequence = f"{tape.id}:{index}"
        self.engine.records[sequence](Token(sequence, 7, "x"))

    def end(self, tape: Tape) -> None:
        sequence = f"{tape.id}:0"
        self.engine.records[sequence](Finished(sequence, "length"))

    def second(self) -> None:
        self.now += 1.0
        self.dash.sample()

    async def newest(self, owner: str = "") -> Any:
        """What one who comes now is shown."""
        events = [event async for event in told(self.dash.watch(owner, at_once, 1))]
        return dict(events)["sample"]


async def at_once() -> None:
    """A turn that nobody else wants."""


@pytest.fixture
async def house() -> AsyncIterator[House]:
    house = House()
    yield house
    house.registry.close()


async def told(stream: AsyncIterator[bytes]) -> AsyncIterator[Event]:
    async for chunk in stream:
        for event in events_of(chunk):
            yield event


def events_of(chunk: bytes) -> Iterator[Event]:
    for frame in parse_frames(chunk.decode()):
        yield frame.event or "", json.loads(frame.data or "")


async def test_a_sample_says_how_the_whole_server_does(house: House) -> None:
    house.link.gauges = Gauges(2, 3, 4, 5)
    tape = await house.tape()
    house.registry.add_reader(tape)
    house.second()
    for _ in range(8):
        house.token(tape)
    house.link.totals = Totals(prefix_queries=40, prefix_hits=10)
    house.now += 1.0
    house.second()
    sample = (await house.newest())["sample"]
    assert sample["tokens_per_second"] == 4.0
    assert (sample["running"], sample["waiting"], sample["paused"]) == (2, 3, 4)
    assert (sample["kv_blocks_used"], sample["kv_blocks_total"]) == (5, 0)
    assert (sample["engine"], sample["readers"], sample["prefix_hit_share"]) == ("ready", 1, 0.25)
    assert sample["ttft_ms"]["p50"] == sample["ttft_ms"]["p99"]
    assert sample["itl_ms"]["p50"] <= sample["itl_ms"]["p95"] <= sample["itl_ms"]["p99"]
    for _ in range(WINDOW):
        house.second()
    sample = (await house.newest())["sample"]
    assert (sample["tokens_per_second"], sample["prefix_hit_share"]) == (0.0, None)
    assert sample["ttft_ms"] is sample["itl_ms"] is None


async def test_a_tape_between_two_samples_is_counted(house: House) -> None:
    house.second()
    tape = await house.tape()
    house.token(tape)
    house.token(tape)
    house.end(tape)
    house.second()
    newest = await house.newest()
    assert newest["sample"]["ttft_ms"]
    assert newest["sample"]["itl_ms"]
    assert newest["sample"]["tokens_per_second"] == 2.0


# ---- rows


async def test_running_tapes_come_first_and_ended_ones_go(house: House) -> None:
    paused = await house.tape()
    house.registry.add_reader(paused)
    house.registry.remove_reader(paused)
    waiting = await house.tape(started=False)
    ended = await house.tape()
    house.end(ended)
    running = await house.tape(n=2)
    for _ in range(3):
        house.token(running, 1)
    house.registry.add_reader(running)
    house.second()
    rows = (await house.newest())["tapes"]
    assert [row["tape"] for row in rows] == [running.id, waiting.id, paused.id, ended.id]
    assert [row["status"] for row in rows] == ["running", "queued", "paused", "done"]
    first, *_, last = rows
    assert (first["choices"], first["prompt_tokens"], first["completion_tokens"]) == (2, 3, 3)
    assert (first["readers"], first["owner"], first["finish_reason"]) == (1, None, None)
    assert first["ttft_ms"] > 0
    assert last["finish_reason"] == "length"
    house.now += ROW_SECONDS
    house.second()
    rows = (await house.newest())["tapes"]
    assert [row["tape"] for row in rows] == [running.id, waiting.id, paused.id]


async def test_a_tape_that_another_process_goes_on_with_has_no_row(house: House) -> None:
    tape = await house.tape()
    house.token(tape)
    house.second()
    house.registry.disown(tape)
    house.second()
    assert (await house.newest())["tapes"] == []


async def test_everybody_sees_his_own_tapes_and_all_totals(house: House) -> None:
    tapes = {owner: await house.tape(owner) for owner in ("alice", "bob")}
    ended = await house.tape("alice")
    house.end(ended)
    for tape in tapes.values():
        house.token(tape)
    house.second()
    alice, bob, nobody = [await house.newest(owner) for owner in ("alice", "bob", "")]
    assert [row["tape"] for row in alice["tapes"]] == [tapes["alice"].id, ended.id]
    assert {row["owner"] for row in alice["tapes"]} == {"alice"}
    assert [row["tape"] for row in bob["tapes"]] == [tapes["bob"].id]
    assert nobody["tapes"] == []
    assert alice["sample"] == bob["sample"] == nobody["sample"]
    assert alice["sample"]["tokens_per_second"] == 2.0


async def test_rows_are_bounded_and_the_rest_is_counted(house: House) -> None:
    for _ in range(MAX_ROWS + 30):
        await house.tape(started=False)
    last = await house.tape()
    house.end(await house.tape())
    house.second()
    newest = await house.newest()
    assert len(newest["tapes"]) == MAX_ROWS
    assert newest["tapes"][0]["tape"] == last.id, "the one that runs is not left out"
    assert newest["tapes_left_out"] == 32


# ---- watching


async def test_who_comes_later_is_told_of_the_last_ten_minutes(house: House) -> None:
    for _ in range(KEPT + 5):
        house.second()
    events = [event async for event in told(house.dash.watch("", at_once, 1))]
    assert [name for name, _ in events] == ["history", "sample", "end"]
    (_, history), (_, sample), (_, end) = events
    times = [one["at"] for one in history["samples"]]
    assert len(times) == KEPT - 1
    assert times == sorted(times)
    assert sample["sample"]["at"] >= times[-1]
    assert end == {"reason": "samples"}


async def test_who_is_slow_gets_what_was_missed_at_once(house: House) -> None:
    house.second()
    quick, slow = house.dash.watch("", at_once), house.dash.watch("", at_once)
    await anext(slow)
    seen = [*events_of(await anext(quick))]
    for number in range(5):
        house.link.gauges = Gauges(running=number)
        house.second()
        (event,) = events_of(await anext(quick))
        seen.append(event)
    (_, history), (_, sample) = events_of(await anext(slow))
    assert [one["running"] for one in history["samples"]] == [0, 1, 2, 3]
    assert sample["sample"]["running"] == 4
    assert [data["sample"]["running"] for _, data in seen[1:]] == [0, 0, 1, 2, 3, 4]


async def test_the_stream_ends_with_the_server(house: House) -> None:
    house.second()
    watching = house.dash.watch("", at_once)
    await anext(watching)
    next_one = asyncio.ensure_future(anext(watching))
    await asyncio.sleep(0)
    assert not next_one.done()
    await house.dash.stop()
    assert [*events_of(await next_one)] == [("end", {"reason": "shutdown"})]
    with pytest.raises(StopAsyncIteration):
        await anext(watching)


async def test_one_who_takes_nothing_is_cut_off_and_holds_up_nobody(house: House) -> None:
    for _ in range(MAX_ROWS):
        await house.tape()
    house.second()
    came: asyncio.Queue[None] = asyncio.Queue()
    left = asyncio.Event()

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        came.put_nowait(None)
        await EventStreamResponse(house.dash.watch("", at_once), send_timeout=0.5)(
            scope, receive, send
        )
        left.set()

    other = house.dash.watch("", at_once)
    await anext(other)
    async with serving(app) as port, asyncio.timeout(patience(20)):
        stuck = never_reading(port, REQUEST)
        await came.get()
        heard = 0
        while not left.is_set():
            house.second()
            heard += len([*events_of(await anext(other))])
            await asyncio.sleep(0)
        stuck.close()
    assert heard == house.now - 1, "each sample, at once"


async def test_a_sample_that_fails_is_not_the_last(
    house: House, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("app.observability.dashboard.INTERVAL", 0.01)
    monkeypatch.delattr(house.link, "gauges", raising=True)
    house.dash.start()
    async with asyncio.timeout(patience(10)):
        while "no sample" not in caplog.text:  # noqa: ASYNC110
            await asyncio.sleep(0.01)
        house.link.gauges = Gauges(running=3)
        _, (_, sample), _ = [event async for event in told(house.dash.watch("", at_once, 1))]
    assert sample["sample"]["running"] == 3
    await house.dash.stop()


# ---- over the wire


@pytest.fixture
def locked(tiny_model: Path, tmp_path: Path) -> Iterator[RunningServer]:
    keys = tmp_path / "keys"
    keys.write_text("alice\nbob\n")
    with running(
        tmp_path / "log", "--model", str(tiny_model), "--api-key-file", str(keys)
    ) as server:
        yield server


async def test_each_key_watches_its_own_tapes_to_the_end(locked: RunningServer) -> None:
    """And the end is an event, not only the connection's."""
    async with httpx.AsyncClient(base_url=locked.url, timeout=patience(20)) as http:
        http.headers.update(bearer("alice"))
        async with typing(http, LONG) as (reading, _):
            pass
        await locked.health_becomes(5, paused=1)
        shown = {}
        for key in ("alice", "bob"):
            answer = await http.get("/v1/dash?samples=2", headers=bearer(key))
            assert answer.headers["Content-Type"].startswith("text/event-stream")
            frames = parse_frames(answer.text)
            assert [frame.event for frame in frames] == ["history", "sample", "sample", "end"]
            for frame in frames:
                assert as_documented(frame.event, json.loads(frame.data or ""))
            shown[key] = json.loads(frames[2].data or "")
        assert [row["tape"] for row in shown["alice"]["tapes"]] == [reading.tape]
        assert shown["bob"]["tapes"] == []
        assert shown["bob"]["sample"]["paused"] == 1
        assert "alice" not in json.dumps(shown["alice"]), "what names a key is not the key"
        async with http.stream("GET", "/v1/dash") as response:
            frames_to_come = read_stream(response)
            assert (await anext(frames_to_come)).event == "history"
            locked.process.send_signal(signal.SIGTERM)
            last = [frame async for frame in frames_to_come][-1]
    assert (last.event, json.loads(last.data or "")) == ("end", {"reason": "shutdown"})
    assert locked.process.wait(timeout=patience(10)) == 0
    assert "Cancel" not in locked.log.read_text(), "uvicorn had to break nothing off"


def test_without_keys_ids_are_told_to_this_machine_only(tiny_server: RunningServer) -> None:
    """To others each is a secret: whoever has it can read the tape."""
    with httpx.Client(base_url=tiny_server.url, timeout=patience(20)) as http:
        tape = http.post("/v1/tapes", json=LONG).json()["tape"]
        here = http.get("/v1/dash?samples=1").text
        elsewhere = http.get("/v1/dash?samples=1", headers={"X-Forwarded-For": "203.0.113.9"}).text
        http.delete(f"/v1/tapes/{tape}")
    assert tape in here
    assert tape not in elsewhere
    (sample,) = [frame for frame in parse_frames(elsewhere) if frame.event == "sample"]
    assert json.loads(sample.data or "")["tapes"] == []


def as_documented(event: str | None, data: Any) -> bool:
    """No field is missing, and none is there that the document does not have."""
    whole: Any = EVENTS[event].model_validate(data).model_dump()
    return bool(whole == data)


@pytest.mark.parametrize("samples", ["0", "11", "-1", "x", "", "1.5"])
def test_other_numbers_of_samples_are_refused(tiny_server: RunningServer, samples: str) -> None:
    answer = httpx.get(f"{tiny_server.url}/v1/dash", params={"samples": samples})
    assert answer.status_code == 422
    assert answer.json()["error"]["param"] == "samples"
