"""The log itself: numbers without gaps, one end, readers that never disturb each other."""

import asyncio
import json
from collections.abc import Sequence

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.api.native import frames as native
from app.errors import APIError
from app.sse import one_line
from app.tapes.event_id import Position, parse_position
from app.tapes.retry_after import RetryAfterEstimator
from app.tapes.stores.retention import TapeRetention
from app.tapes.tape import Choice, End, Entry, Gap, IdempotencyClaim, Item, Recovering, Tape
from model.protocol.messages import Prefilling, Queued
from tests.server import Frame, parse_frames

TAPE_ID = "abcdefghijklmnopqrstuv"
texts = st.lists(st.text(max_size=8), max_size=30)


def tape_of(texts: Sequence[str], *, ended: bool = True) -> Tape:
    tape = Tape(TAPE_ID, [Choice(3)])
    for number, text in enumerate(texts):
        tape.append(Entry(text, number))
    if ended:
        tape.finish("stop")
    return tape


async def read(tape: Tape, after: int = 0) -> list[Entry | End]:
    return entries_in([item async for item in tape.read(after)])


def entries_in(items: Sequence[Item]) -> list[Entry | End]:
    """All that is on the tape, without what is told between."""
    entries: list[Entry | End] = []
    for item in items:
        entries += item if isinstance(item, list) else [item] if isinstance(item, End) else []
    return entries


def text_of(frames: Sequence[Frame]) -> str:
    return "".join(json.loads(f.data or "")["text"] for f in frames if f.event == "token")


@given(texts, st.data())
def test_every_suffix_is_exact(texts: list[str], data: st.DataObject) -> None:
    tape = tape_of(texts)
    after = data.draw(st.integers(0, tape.last))
    suffix = asyncio.run(read(tape, after))
    assert suffix == [*tape.entries, tape.end][after:]


@given(texts)
def test_a_tape_ends_once_and_for_all(texts: list[str]) -> None:
    tape = tape_of(texts)
    end = tape.end
    tape.finish("error", "too late")
    assert tape.end is end
    assert tape.last == len(texts) + 1
    with pytest.raises(ValueError, match="has ended"):
        tape.append(Entry("more", 1))


async def test_readers_that_come_at_any_time_read_the_same() -> None:
    tape = tape_of([], ended=False)
    readers = []
    for number in range(20):
        readers.append(asyncio.create_task(read(tape)))
        await asyncio.sleep(0)
        tape.append(Entry(str(number), number))
    tape.finish("length")
    expected = [*tape.entries, tape.end]
    assert await asyncio.gather(*readers) == [expected] * 20


async def test_a_reader_that_is_behind_gets_all_at_once() -> None:
    tape = tape_of(["a", "b", "c"], ended=False)
    batches = tape.read()
    assert await anext(batches) == tape.entries
    tape.append(Entry("d", 4))
    tape.finish("stop")
    assert await anext(batches) == [tape.entries[-1]]
    assert await anext(batches) is tape.end
    with pytest.raises(StopAsyncIteration):
        await anext(batches)


async def test_a_reader_that_leaves_disturbs_nobody() -> None:
    tape = tape_of(["a"], ended=False)
    leaver = asyncio.create_task(read(tape))
    stayer = asyncio.create_task(read(tape))
    await asyncio.sleep(0)
    leaver.cancel()
    await asyncio.gather(leaver, return_exceptions=True)
    tape.append(Entry("b", 2))
    tape.finish("stop")
    assert len(await stayer) == 3


@given(texts, st.lists(st.integers(1, 5), min_size=40, max_size=40))
def test_frames_carry_every_entry_once_however_they_are_grouped(
    texts: list[str], sizes: list[int]
) -> None:
    tape = tape_of(texts)
    raw, last = native.opening(Position(TAPE_ID, 0)), 0
    for size in sizes:
        if batch := tape.entries[last : last + size]:
            last += len(batch)
            raw += native.frames(TAPE_ID, last, batch)
    assert tape.end
    raw += b"".join(native.ending(TAPE_ID, last + 1, tape.end))
    frames = parse_frames(raw.decode())
    assert text_of(frames) == "".join(texts)
    ids = [i for f in frames if f.event == "token" for i in json.loads(f.data or "")["token_ids"]]
    assert ids == list(range(len(texts)))
    numbers = [parse_position(frame.id or "").entry for frame in frames]
    assert numbers == sorted(set(numbers))
    assert numbers[-1] == tape.last
    assert [frame.event for frame in frames].count("done") == 1


@given(st.text(max_size=20), st.integers(0, 1 << 20), st.integers(1, 1 << 20))
def test_a_frame_of_one_token_is_as_any_other(text: str, token_id: int, number: int) -> None:
    """It is put together in another way, for speed."""
    entry = Entry(text, token_id)
    (frame,) = parse_frames(native.frames(TAPE_ID, number, [entry]).decode())
    assert (frame.id, frame.event) == (f"{TAPE_ID}:{number}", "token")
    assert frame.data == one_line(orjson.dumps(native.token_data([entry]))).decode()


def test_text_of_any_kind_stays_one_line() -> None:
    nasty = "a\nb\r\nc\rd\x00e\u2028f\u2029g\x85h: data: event: done\n\n"
    frames = parse_frames(native.frames(TAPE_ID, 1, [Entry(nasty, 1)]).decode())
    assert len(frames) == 1
    assert text_of(frames) == nasty


def parsed(text: str) -> Position | int:
    """The position, or the status of the refusal."""
    try:
        return parse_position(text)
    except APIError as error:
        return error.status_code


@given(st.text(max_size=40) | st.from_regex(r"[A-Za-z0-9_-]{21,23}:-?[0-9]{1,12}\n?"))
def test_a_position_is_ours_or_an_error(text: str) -> None:
    position = parsed(text)
    assert position == 400 or str(position) == text


def test_finished_tapes_go_by_age_and_running_ones_never() -> None:
    retention = TapeRetention(ttl=0.0, budget=1 << 20)
    running, finished = tape_of(["a"], ended=False), tape_of(["a"])
    running.id = "running"
    retention.add(running)
    retention.add(finished)
    retention.finished(finished)
    assert retention.get("running") is running
    assert retention.get(finished.id) is None


def test_the_oldest_finished_tapes_go_when_memory_is_short() -> None:
    tapes = [tape_of(["text"] * 10) for _ in range(4)]
    retention = TapeRetention(ttl=300.0, budget=2 * tapes[0].size)
    for number, tape in enumerate(tapes):
        tape.id = str(number)
        retention.add(tape)
        retention.finished(tape)
    assert [retention.get(str(number)) is not None for number in range(4)] == [
        False,
        False,
        True,
        True,
    ]


def test_timings_before_any_token_and_after_one() -> None:
    tape = Tape(TAPE_ID, [Choice(1)])
    assert (tape.timings.ttft_ms, tape.timings.tokens_per_second) == (None, None)
    tape.append(Entry("a", 1))
    assert tape.timings.ttft_ms is not None
    assert tape.timings.tokens_per_second is None, "one token has no rate"
    tape.append(Entry("b", 2))
    assert tape.timings.tokens_per_second is not None
    assert tape.status == "queued"
    tape.queue_ms = 1.0
    assert tape.status == "running"


@given(texts, st.integers(1000, 8000), st.data())
def test_beyond_its_cap_the_oldest_go_and_readers_are_told_which(
    texts: list[str], cap: int, data: st.DataObject
) -> None:
    tape = Tape(TAPE_ID, [Choice(3)], cap=cap)
    for number, text in enumerate(texts):
        tape.append(Entry(text, number))
        assert tape.entries_size <= cap
    tape.finish("stop")
    assert tape.choices[0].output_ids.tolist() == list(range(len(texts))), (
        "another engine needs them all"
    )
    after = data.draw(st.integers(0, tape.last))
    items = asyncio.run(read_items(tape, after))
    if after < tape.num_dropped:
        assert items.pop(0) == Gap(after + 1, tape.num_dropped)
        after = tape.num_dropped
    entries = entries_in(items)
    assert [entry.text for entry in entries if isinstance(entry, Entry)] == texts[after:]
    assert not items or entries[-1] is tape.end


async def read_items(tape: Tape, after: int) -> list[Item]:
    return [item async for item in tape.read(after)]


async def test_progress_is_told_once_between_entries_and_never_after_the_end() -> None:
    tape = tape_of(["a"], ended=False)
    reader = asyncio.create_task(read_items(tape, 0))
    await asyncio.sleep(0)
    for progress in (Queued(TAPE_ID, 2), Queued(TAPE_ID, 2), Queued(TAPE_ID, 1), Recovering()):
        tape.announce(progress)
        await asyncio.sleep(0)
    tape.append(Entry("b", 1))
    await asyncio.sleep(0)
    tape.announce(Recovering())
    await asyncio.sleep(0)
    tape.finish("stop")
    tape.announce(Recovering())
    first, second = tape.entries
    told = [Queued(TAPE_ID, 2), Queued(TAPE_ID, 1), Recovering()]
    assert await reader == [[first], *told, [second], Recovering(), tape.end]
    assert await read_items(tape, 0) == [[first, second], tape.end]


def test_status_frames_have_no_id() -> None:
    for progress, data in [
        (Queued(TAPE_ID, 2), {"state": "queued", "position": 2}),
        (Prefilling(TAPE_ID, 256, 1024), {"state": "prefill", "done": 256, "total": 1024}),
        (Recovering(), {"state": "recovering"}),
    ]:
        (frame,) = parse_frames(native.status(progress).decode())
        assert (frame.id, frame.event) == (None, "status")
        assert json.loads(frame.data or "") == data
    (frame,) = parse_frames(native.gap(Gap(1, 40)).decode())
    assert (frame.id, frame.event, frame.data) == (None, "gap", '{"from":1,"to":40}')


def test_a_key_is_forgotten_with_its_tape() -> None:
    retention = TapeRetention(ttl=300.0, budget=0)
    tape = tape_of(["a"], ended=False)
    tape.claim = IdempotencyClaim("key", b"digest")
    retention.add(tape)
    assert retention.claimed("key") is tape
    assert retention.claimed("other") is None
    tape.finish("stop")
    retention.finished(tape)
    assert retention.claimed("key") is None


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


def test_how_soon_a_place_is_free_is_measured() -> None:
    clock = Clock()
    retry_after = RetryAfterEstimator(clock)
    retry_after.begin(1)
    assert retry_after.seconds_to_a_place() == 1
    clock.now += 7
    assert retry_after.seconds_to_a_place() == 7, "so long nothing has ended"
    retry_after.end()
    clock.now += 1
    retry_after.end()
    assert retry_after.seconds_to_a_place() == 4
    for _ in range(200):
        clock.now += 2.5
        retry_after.end()
    assert retry_after.seconds_to_a_place() == 3, "the newest 64 count"
    clock.now += 3600
    assert retry_after.seconds_to_a_place() == 59
    retry_after.begin(1)
    assert retry_after.seconds_to_a_place() == 1


def test_latencies_are_of_one_choice_and_not_of_a_pause() -> None:
    tape = Tape(TAPE_ID, [Choice(1), Choice(0)])
    assert tape.itl_p99_ms is None
    for index, at in [(0, 1.0), (1, 1.0), (0, 1.5), (1, 3.0)]:
        tape.append(Entry("x", 1, None, index, at))
    assert [choice.latency for choice in tape.choices] == [0.5, 2.0]
    for choice in tape.choices:
        choice.pause()
    tape.append(Entry("x", 1, None, 0, 60.0))
    assert tape.choices[0].latency is None
    tape.append(Entry("x", 1, None, 0, 60.25))
    assert [list(choice.latencies) for choice in tape.choices] == [[0.5, 0.25], [2.0]]
    assert tape.itl_p99_ms == 2000.0
