"""The scheduler's policy, driven with made-up progress: no tensors, no time."""

import random
import time
import tracemalloc
from collections.abc import Callable
from typing import cast

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from model.protocol.sampling_params import SamplingParams
from model.scheduling.block_pool import BlockPool
from model.scheduling.scheduler import Scheduler
from model.scheduling.sequence import Sequence
from model.text.detokenizer import Detokenizer
from tests.model.scheduling.drive import BLOCK, Drive

Event = tuple[str, int]
EVENTS = st.lists(
    st.tuples(
        st.sampled_from(["step", "step", "step", "pause", "resume", "cancel", "fail"]),
        st.integers(0, 9),
    ),
    max_size=40,
)
# Tokens of the prompt, tokens of the output, which text the prompt is the beginning of, priority.
# (Token 0 of a text tells it apart; several prompts are one text: they can share blocks.)
SIZES = st.lists(
    st.tuples(st.integers(1, 30), st.integers(1, 14), st.integers(0, 2), st.integers(-1, 1)),
    min_size=1,
    max_size=8,
)
LIMITS = {
    "blocks": st.integers(11, 20),  # the largest of SIZES needs 11
    "seats": st.integers(1, 5),
    "budget": st.integers(1, 40),
    "prefix_cache": st.booleans(),
}
Sizes = list[tuple[int, int, int, int]]


def add(drive: Drive, id: str, size: tuple[int, int, int, int]) -> None:
    prompt, max_tokens, text, priority = size
    drive.add(id, list(range(100 * text, 100 * text + prompt)), max_tokens, priority)


@settings(max_examples=500, deadline=None)
@given(sizes=SIZES, events=EVENTS, **LIMITS)
def test_whatever_happens_every_request_that_stays_gets_exactly_its_tokens(
    sizes: Sizes, events: list[Event], blocks: int, seats: int, budget: int, prefix_cache: bool
) -> None:
    """Drive checks seats, budget, blocks, positions, order and what is read at every step."""
    drive = Drive(blocks, seats, budget, prefix_cache)
    to_come = list(enumerate(sizes))
    gone: set[str] = set()
    for what, number in events:
        if to_come and number % 2 == 0:
            index, size = to_come.pop(0)
            add(drive, str(index), size)
        id = str(number % (len(drive.sequences) + 1))  # the last one is unknown as yet
        if what == "step":
            drive.step()
        elif what == "pause":
            drive.scheduler.pause(id)
        elif what == "resume":
            drive.scheduler.unpause(id)
        elif id in drive.scheduler._sequences:
            gone.add(id)
            (drive.scheduler.remove if what == "cancel" else drive.fail)(id)
        drive.check_blocks()
    for index, size in to_come:
        add(drive, str(index), size)
    for id in drive.sequences:
        drive.scheduler.unpause(id)
    drive.finish()
    assert drive.pool.num_used == drive.pool.num_active == 0
    assert not drive.scheduler.paused
    assert set(drive.done) == set(drive.sequences) - gone
    for id in drive.done:
        drive.check_tokens(drive.sequences[id])
        assert drive.sequences[id].num_output == drive.sequences[id].params.max_tokens


@settings(max_examples=200, deadline=None)
@given(sizes=SIZES, **LIMITS)
def test_requests_are_admitted_by_priority_and_then_by_arrival(
    sizes: Sizes, blocks: int, seats: int, budget: int, prefix_cache: bool
) -> None:
    drive = Drive(blocks, seats, budget, prefix_cache)
    for index, (prompt, max_tokens, _, priority) in enumerate(sizes):
        drive.add(str(index), prompt, max_tokens, priority)
    drive.finish()
    order = sorted(range(len(sizes)), key=lambda index: sizes[index][3])
    assert drive.admitted == [str(index) for index in order]


def test_a_resumed_sequence_in_the_queue_does_not_keep_blocks_from_all_others() -> None:
    """It waits for a seat with its blocks; the one that has the seat needs one more."""
    drive = Drive(blocks=4, seats=1)
    drive.add("resumed", prompt=7, max_tokens=4)
    drive.step()
    drive.scheduler.pause("resumed")
    drive.add("grows", prompt=7, max_tokens=4)
    drive.step()
    drive.scheduler.unpause("resumed")
    drive.finish()
    assert sorted(drive.done) == ["grows", "resumed"]


def test_a_long_prompt_is_computed_in_chunks_of_the_budget_and_samples_once() -> None:
    drive = Drive(budget=8)
    drive.add("long", prompt=20)
    chunks = [(chunk.start, chunk.count) for _ in range(3) for chunk in drive.step()]
    assert chunks == [(0, 8), (8, 8), (16, 4)]
    assert drive.done == ["long"]


def test_decodes_go_on_while_a_prompt_is_computed() -> None:
    drive = Drive(budget=8)
    drive.add("decodes", prompt=2, max_tokens=10)
    drive.step()
    drive.add("long", prompt=30)
    for _ in range(4):
        first, second = drive.step()
        assert (first.sequence.id, first.count) == ("decodes", 1)
        assert (second.sequence.id, second.count) == ("long", 7)


def test_the_youngest_is_preempted_and_recomputed_with_its_tokens_unchanged() -> None:
    drive = Drive(blocks=4)
    old = drive.add("old", prompt=7, max_tokens=6)
    young = drive.add("young", prompt=7, max_tokens=6)
    for _ in range(3):
        drive.step()
    assert list(drive.scheduler.running.values()) == [old]
    assert list(drive.scheduler.waiting) == [young]
    assert (list(young.block_table), young.num_computed, young.num_output) == ([], 0, 2)
    assert drive.scheduler.num_preemptions == 1
    drive.finish()
    assert drive.scheduler.num_preemptions == 1
    assert drive.done == ["old", "young"]
    drive.check_tokens(young)
    assert len(young.token_ids) == 13


def test_one_that_is_preempted_in_a_step_is_not_in_it_a_second_time() -> None:
    """It had its chunk when a prompt took its blocks, and was let in again for what was left."""
    drive = Drive(blocks=12, seats=4, budget=5)
    sizes = [(4, 2, 0, 1), (12, 1, 1, 0), (20, 2, 0, 0), (12, 2, 1, 0), (20, 1, 0, 0)]
    for number, size in enumerate(sizes):
        add(drive, str(number), size)
    drive.finish()
    for one in drive.sequences.values():
        drive.check_tokens(one)


def test_paused_sequences_give_up_their_blocks_before_running_ones_the_first_paused_first() -> None:
    drive = Drive(blocks=7)
    first, second, runs = (drive.add(id, 7, 9) for id in ("first", "second", "runs"))
    drive.step()
    drive.scheduler.pause("first")
    drive.scheduler.pause("second")
    drive.step()
    assert first.block_table, "one block is free, so nobody loses any"
    while len(runs.block_table) < 4:
        drive.step()
    assert not first.block_table
    assert second.block_table
    assert list(drive.scheduler.running.values()) == [runs]


def test_a_paused_sequence_computes_nothing_and_keeps_its_blocks() -> None:
    drive = Drive()
    one = drive.add("one", prompt=5, max_tokens=5)
    drive.step()
    drive.scheduler.pause("one")
    before = (list(one.token_ids), list(one.block_table), one.num_computed)
    assert [drive.step() for _ in range(3)] == [[], [], []]
    assert (one.token_ids, list(one.block_table), one.num_computed) == before
    drive.scheduler.unpause("one")
    (chunk,) = drive.step()
    assert (chunk.start, chunk.count) == (5, 1), "nothing is computed again"


def test_the_head_of_the_queue_is_not_overtaken_by_a_smaller_request() -> None:
    drive = Drive(blocks=4)
    drive.add("runs", prompt=8, max_tokens=3)
    drive.step()
    drive.add("large", prompt=12)
    drive.add("small", prompt=1)
    drive.step()
    assert [one.id for one in drive.scheduler.waiting] == ["large", "small"]
    drive.finish()
    assert drive.admitted == ["runs", "large", "small"]


def test_unknown_and_repeated_ids_change_nothing() -> None:
    drive = Drive()
    drive.add("known", prompt=5, max_tokens=3)
    drive.step()
    scheduler = drive.scheduler

    def state() -> tuple[list[str], list[str], list[str], int]:
        waiting = [one.id for one in scheduler.waiting]
        return waiting, [*scheduler.running], [*scheduler.paused], drive.pool.num_used

    def repeat(method: Callable[[str], None], id: str) -> None:
        before = state()
        method(id)
        assert state() == before

    for method in (scheduler.remove, scheduler.pause, scheduler.unpause):
        repeat(method, "unknown")
    repeat(scheduler.unpause, "known")  # it runs
    scheduler.pause("known")
    repeat(scheduler.pause, "known")
    scheduler.unpause("known")
    repeat(scheduler.unpause, "known")
    scheduler.remove("known")
    for method in (scheduler.remove, scheduler.pause, scheduler.unpause):
        repeat(method, "known")
    assert state() == ([], [], [], 0)


def test_what_is_more_urgent_overtakes_the_queue_but_nobody_who_runs() -> None:
    drive = Drive(seats=1)
    drive.add("runs", prompt=3, max_tokens=3, priority=5)
    drive.step()
    for id, priority in [("late", 1), ("later", 1), ("urgent", -1)]:
        drive.add(id, prompt=3, priority=priority)
    drive.finish()
    assert drive.admitted == ["runs", "urgent", "late", "later"]


def test_the_youngest_of_the_worst_priority_is_preempted() -> None:
    drive = Drive(blocks=6)
    for id, priority in [("a", 1), ("b", 1), ("c", 0)]:
        drive.add(id, prompt=7, max_tokens=6, priority=priority)
    for _ in range(3):
        drive.step()
    assert [one.id for one in drive.scheduler.waiting] == ["b"]


def test_one_paused_while_it_waited_comes_back_to_its_own_place() -> None:
    drive = Drive(seats=1)
    for id in ("runs", "first", "second", "third"):
        drive.add(id, prompt=3, max_tokens=3)
    drive.step()
    drive.scheduler.pause("second")
    drive.scheduler.unpause("second")
    assert [one.id for one in drive.scheduler.waiting] == ["first", "second", "third"]


def test_one_that_has_run_goes_before_its_equals() -> None:
    drive = Drive(seats=1)
    for id in ("stays", "ran"):
        drive.add(id, prompt=3, max_tokens=3)
    drive.scheduler.pause("stays")
    drive.step()
    drive.scheduler.pause("ran")
    drive.add("urgent", prompt=3, priority=-1)
    drive.scheduler.unpause("stays")
    drive.scheduler.unpause("ran")
    assert [one.id for one in drive.scheduler.waiting] == ["urgent", "ran", "stays"]


@pytest.mark.parametrize("prefix_cache", [True, False])
def test_idle_blocks_stay_when_taking_them_would_not_help(prefix_cache: bool) -> None:
    """5 blocks run, 2 are idle, 1 is free; the next sequence wants 4."""
    drive = Drive(blocks=8, prefix_cache=prefix_cache)
    drive.add("runs", prompt=5 * BLOCK - 3, max_tokens=4)
    idle = drive.add("idle", prompt=BLOCK + 1, max_tokens=4)
    drive.step()
    drive.scheduler.pause("idle")
    drive.add("large", prompt=3 * BLOCK + 1)
    drive.step()
    assert idle.block_table
    assert [one.id for one in drive.scheduler.waiting] == ["large"]
    while "runs" not in drive.done:
        drive.step()
    drive.step()
    assert drive.done == ["runs", "large"]
    assert idle.block_table, "there is room for both"


def test_ten_thousand_requests_leave_nothing_behind() -> None:
    """Random lengths, priorities and beginnings, random cancellations and pauses."""
    draw = random.Random(0)
    pool = BlockPool(400, 16)
    scheduler = Scheduler(pool, max_num_seqs=64, max_step_tokens=512)
    memory: list[int] = []
    seconds: list[float] = []
    tracemalloc.start()
    for _ in range(10):
        began = time.process_time()
        serve_a_thousand(scheduler, draw)
        seconds.append(time.process_time() - began)
        assert (pool.num_used, pool.num_active, len(scheduler._sequences)) == (0, 0, 0)
        memory.append(tracemalloc.get_traced_memory()[0])
    tracemalloc.stop()
    slope = (memory[-1] - memory[1]) / 8000
    print(f"{sum(seconds):.1f} s, {slope:.1f} bytes a sequence, {memory[-1]} in all")
    assert slope < 10
    assert min(seconds[-3:]) < 1.5 * max(seconds[:3]), "the last take as long as the first"


def serve_a_thousand(scheduler: Scheduler, draw: random.Random) -> None:
    beginnings = [[draw.randrange(50_000) for _ in range(200)] for _ in range(8)]
    live = []
    for number in range(1000):
        own = [draw.randrange(50_000) for _ in range(draw.randrange(1, 100))]
        params = SamplingParams(max_tokens=draw.randrange(1, 40), seed=0)
        prompt = draw.choice(beginnings)[: draw.randrange(200)] + own
        sequence = Sequence(
            token_ids=prompt,
            params=params,
            id=str(number),
            detokenizer=cast(Detokenizer, None),
            arrived=0.0,
        )
        sequence.priority = draw.randrange(3)
        scheduler.add(sequence)
        live.append(sequence.id)
    while scheduler.waiting or scheduler.running or scheduler.paused:
        what, id = draw.random(), draw.choice(live)
        if what < 0.2:
            scheduler.remove(id)
        elif what < 0.4:
            scheduler.pause(id)
        for id in list(scheduler.paused)[:1]:
            scheduler.unpause(id)
        chunks = scheduler.schedule().chunks
        sampling = [chunk.sequence for chunk in chunks if chunk.num_logits]
        scheduler.computed(chunks)
        for sequence in sampling:
            sequence.token_ids.append(len(sequence.token_ids))
            if sequence.num_output == sequence.params.max_tokens:
                scheduler.remove(sequence.id)
