"""The scheduler's policy, driven with made-up progress: no tensors, no time."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import cast

from hypothesis import given, settings
from hypothesis import strategies as st

from model.block_pool import BlockPool
from model.detokenizer import Detokenizer
from model.request import Request
from model.sampling import SamplingParams
from model.scheduler import Chunk, Scheduler

BLOCK = 4


def request(id: str, prompt: int, max_tokens: int = 1) -> Request:
    params = SamplingParams(max_tokens=max_tokens, seed=0)
    return Request(id, list(range(prompt)), params, cast(Detokenizer, None), 0.0)


@dataclass
class Drive:
    """A scheduler, and a model that needs no time and counts up: token n at position n."""

    blocks: int = 100
    seats: int = 100
    budget: int = 1000
    requests: dict[str, Request] = field(default_factory=dict)
    done: list[str] = field(default_factory=list)
    admitted: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.pool = BlockPool(self.blocks, BLOCK)
        self.scheduler = Scheduler(self.pool, max_num_seqs=self.seats, max_step_tokens=self.budget)

    def add(self, id: str, prompt: int, max_tokens: int = 1) -> Request:
        self.requests[id] = request(id, prompt, max_tokens)
        self.scheduler.add(self.requests[id])
        return self.requests[id]

    def step(self) -> list[Chunk]:
        running = list(self.scheduler.running)
        chunks = self.scheduler.schedule()
        self.check(chunks, running)
        for chunk in chunks:
            one, samples = chunk.request, chunk.samples
            if one.id not in self.admitted:
                self.admitted.append(one.id)
            one.num_computed += chunk.count
            if samples:
                one.token_ids.append(len(one.token_ids))
                if one.num_output == one.params.max_tokens:
                    self.scheduler.remove(one.id)
                    self.done.append(one.id)
        self.check_blocks()
        return chunks

    def check(self, chunks: list[Chunk], ran: list[Request]) -> None:
        """`chunks` is a fair step after one in which `ran` were running."""
        scheduler = self.scheduler
        assert len(scheduler.running) <= self.seats
        assert sum(chunk.count for chunk in chunks) <= self.budget
        assert len({chunk.request.id for chunk in chunks}) == len(chunks)
        prefills = [c.request.num_pending > 1 for c in chunks if c.request in ran]
        assert prefills == sorted(prefills), "decodes come before prefills"
        admitted = [c.request not in ran for c in chunks]
        assert admitted == sorted(admitted), "what runs comes before what joins"
        for chunk in chunks:
            assert chunk.request in scheduler.running
            assert chunk.start == chunk.request.num_computed
            assert 1 <= chunk.count <= chunk.request.num_pending
            assert len(chunk.request.block_table) * BLOCK >= chunk.start + chunk.count
        self.check_blocks()

    def check_blocks(self) -> None:
        held = [block for one in self.requests.values() for block in one.block_table]
        assert len(set(held)) == len(held) == self.pool.num_used
        states = (*self.scheduler.waiting, *self.scheduler.running, *self.scheduler.paused)
        assert len({one.id for one in states}) == len(states), "each is in one state"
        assert {one.id for one in states} == set(self.scheduler._requests)
        for one in self.requests.values():
            assert one.token_ids == list(range(len(one.token_ids))), "tokens never change"
            assert one.num_computed <= len(one.block_table) * BLOCK

    def finish(self, limit: int = 2000) -> None:
        """Step until nothing waits or runs."""
        for _ in range(limit):
            if not (self.scheduler.waiting or self.scheduler.running):
                return
            assert self.step(), "there is work, and nothing is done: it would be so for ever"
        raise AssertionError("it does not end")


Event = tuple[str, int]
EVENTS = st.lists(
    st.tuples(
        st.sampled_from(["step", "step", "step", "pause", "resume", "cancel"]), st.integers(0, 9)
    ),
    max_size=40,
)
SIZES = st.lists(st.tuples(st.integers(1, 30), st.integers(1, 14)), min_size=1, max_size=8)
LIMITS = {
    "blocks": st.integers(11, 20),  # the largest of SIZES needs 11
    "seats": st.integers(1, 5),
    "budget": st.integers(1, 40),
}


@settings(max_examples=400, deadline=None)
@given(sizes=SIZES, events=EVENTS, **LIMITS)
def test_whatever_happens_every_request_that_stays_gets_exactly_its_tokens(
    sizes: list[tuple[int, int]], events: list[Event], blocks: int, seats: int, budget: int
) -> None:
    """Drive checks seats, budget, blocks, positions and order at every step."""
    drive = Drive(blocks, seats, budget)
    to_come = list(enumerate(sizes))
    cancelled: set[str] = set()
    for what, number in events:
        if to_come and number % 2 == 0:
            index, size = to_come.pop(0)
            drive.add(str(index), *size)
        id = str(number % (len(drive.requests) + 1))  # the last one is unknown as yet
        if what == "step":
            drive.step()
        elif what == "cancel":
            if id in drive.scheduler._requests:
                cancelled.add(id)
            drive.scheduler.remove(id)
        elif what == "pause":
            drive.scheduler.pause(id)
        else:
            drive.scheduler.resume(id)
        drive.check_blocks()
    for index, size in to_come:
        drive.add(str(index), *size)
    for id in drive.requests:
        drive.scheduler.resume(id)
    drive.finish()
    assert drive.pool.num_used == 0
    assert not drive.scheduler.paused
    assert set(drive.done) == set(drive.requests) - cancelled
    assert all(
        drive.requests[id].num_output == drive.requests[id].params.max_tokens for id in drive.done
    )


@settings(max_examples=200, deadline=None)
@given(sizes=SIZES, **LIMITS)
def test_requests_are_admitted_in_the_order_of_their_arrival(
    sizes: list[tuple[int, int]], blocks: int, seats: int, budget: int
) -> None:
    drive = Drive(blocks, seats, budget)
    for index, size in enumerate(sizes):
        drive.add(str(index), *size)
    drive.finish()
    assert drive.admitted == [str(index) for index in range(len(sizes))]


def test_a_resumed_sequence_in_the_queue_does_not_keep_blocks_from_all_others() -> None:
    """It waits for a seat with its blocks; the one that has the seat needs one more."""
    drive = Drive(blocks=4, seats=1)
    drive.add("resumed", prompt=7, max_tokens=4)
    drive.step()
    drive.scheduler.pause("resumed")
    drive.add("grows", prompt=7, max_tokens=4)
    drive.step()
    drive.scheduler.resume("resumed")
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
        assert (first.request.id, first.count) == ("decodes", 1)
        assert (second.request.id, second.count) == ("long", 7)


def test_the_youngest_is_preempted_and_recomputed_with_its_tokens_unchanged() -> None:
    drive = Drive(blocks=4)
    old = drive.add("old", prompt=7, max_tokens=6)
    young = drive.add("young", prompt=7, max_tokens=6)
    for _ in range(3):
        drive.step()
    assert drive.scheduler.running == [old]
    assert list(drive.scheduler.waiting) == [young]
    assert (young.block_table, young.num_computed, young.num_output) == ([], 0, 2)
    drive.finish()
    assert drive.done == ["old", "young"]
    assert young.token_ids == list(range(13))


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
    assert first.block_table == []
    assert second.block_table
    assert drive.scheduler.running == [runs]


def test_a_paused_sequence_computes_nothing_and_keeps_its_blocks() -> None:
    drive = Drive()
    one = drive.add("one", prompt=5, max_tokens=5)
    drive.step()
    drive.scheduler.pause("one")
    before = (list(one.token_ids), list(one.block_table), one.num_computed)
    assert [drive.step() for _ in range(3)] == [[], [], []]
    assert (one.token_ids, one.block_table, one.num_computed) == before
    drive.scheduler.resume("one")
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
        groups = (scheduler.waiting, scheduler.running, scheduler.paused)
        waiting, running, paused = ([one.id for one in group] for group in groups)
        return waiting, running, paused, drive.pool.num_used

    def repeat(method: Callable[[str], None], id: str) -> None:
        before = state()
        method(id)
        assert state() == before

    for method in (scheduler.remove, scheduler.pause, scheduler.resume):
        repeat(method, "unknown")
    repeat(scheduler.resume, "known")  # it runs
    scheduler.pause("known")
    repeat(scheduler.pause, "known")
    scheduler.resume("known")
    repeat(scheduler.resume, "known")
    scheduler.remove("known")
    for method in (scheduler.remove, scheduler.pause, scheduler.resume):
        repeat(method, "known")
    assert state() == ([], [], [], 0)
