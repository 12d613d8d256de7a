"""How clients share seats, blocks and prefill: made-up progress, no tensors, no time."""

import sys
from collections import Counter
from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from model.scheduling.scheduler import Chunk, SchedulerOutput
from model.scheduling.sequence import Sequence
from tests.model.scheduling.drive import BLOCK, Drive

FOR_EVER = 100_000
Size = tuple[int, int, int, int, str]
# Tokens of prompt and output, which text the prompt is the beginning of, priority, client.
SIZES = st.lists(
    st.tuples(
        st.integers(1, 30),
        st.integers(1, 14),
        st.integers(0, 2),
        st.integers(0, 1),
        st.sampled_from("aaab"),
    ),
    min_size=1,
    max_size=12,
)
EVENTS = st.lists(
    st.tuples(
        st.sampled_from(["step", "step", "step", "step", "pause", "resume", "cancel", "fail"]),
        st.integers(0, 13),
    ),
    max_size=60,
)
LIMITS = {
    "blocks": st.integers(11, 24),  # the largest of SIZES needs 11
    "seats": st.integers(1, 6),
    "budget": st.integers(6, 40),
    "prefix_cache": st.booleans(),
    "paced": st.booleans(),
}


def add(drive: Drive, id: str, size: Size) -> None:
    prompt, max_tokens, text, priority, client = size
    tokens = list(range(100 * text, 100 * text + prompt))
    drive.add(id, tokens, max_tokens, priority, client=client)


def add_many(drive: Drive, client: str, number: int, prompt: int = 3, tokens: int = 99) -> None:
    for n in range(number):
        drive.add(f"{client}{n}", prompt, tokens, client=client)


def seats(drive: Drive) -> Counter[str]:
    return Counter(one.client for one in drive.scheduler.running.values())


def clients(chunks: list[Chunk]) -> set[str]:
    return {chunk.sequence.client for chunk in chunks}


# ---- whatever happens


@settings(max_examples=500, deadline=None)
@given(sizes=SIZES, events=EVENTS, **LIMITS)
def test_every_request_that_stays_gets_exactly_its_tokens(
    sizes: list[Size],
    events: list[tuple[str, int]],
    blocks: int,
    seats: int,
    budget: int,
    prefix_cache: bool,
    paced: bool,
) -> None:
    """Drive checks seats, blocks, positions and what is read at every step."""
    drive = Drive(blocks, seats, budget, prefix_cache, paced)
    to_come = list(enumerate(sizes))
    gone: set[str] = set()
    for what, number in events:
        if to_come and number % 2 == 0:
            index, size = to_come.pop(0)
            add(drive, str(index), size)
        id = str(number % (len(drive.sequences) + 1))
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
    assert not drive.scheduler._seats
    assert set(drive.done) == set(drive.sequences) - gone
    for id in drive.done:
        drive.check_tokens(drive.sequences[id])
        assert drive.sequences[id].num_output == drive.sequences[id].params.max_tokens


class Watched(Drive):
    """Counts in how many steps on end a seat and tokens were left, though the next one fits."""

    idle = 0

    def check_plan(
        self, plan: SchedulerOutput, ran: list[Sequence], decoding: list[Sequence]
    ) -> None:
        super().check_plan(plan, ran, decoding)
        scheduler = self.scheduler
        spent = sum(chunk.count for chunk in plan.chunks) == self.budget
        free = len(scheduler.running) < self.seats
        if spent or not free or not scheduler.waiting or scheduler._preempted:
            self.idle = 0
            return
        first = scheduler.waiting.first
        table = first.block_table or scheduler._find(first)
        self.idle = self.idle + 1 if scheduler._missing_for(first, table) <= 0 else 0
        assert self.idle < 2


@settings(max_examples=300, deadline=None)
@given(
    sizes=SIZES,
    blocks=LIMITS["blocks"],
    seats=LIMITS["seats"],
    budget=st.integers(6, 32),
)
def test_no_seat_is_free_for_two_steps_while_the_first_of_the_queue_fits(
    sizes: list[Size], blocks: int, seats: int, budget: int
) -> None:
    """With budgets that are shared out whole: there is no more than the least share of a client.

    Without a prefix cache: of a prompt that waits nobody knows yet how much will be found, so what
    is kept for it may be more than it takes, and is left over for some steps.
    """
    drive = Watched(blocks, seats, budget, prefix_cache=False)
    for index, size in enumerate(sizes):
        add(drive, str(index), size)
    drive.finish()


# ---- whose turn it is


def test_clients_take_turns_and_within_a_client_the_order_of_arrival_counts() -> None:
    drive = Drive()
    add_many(drive, "a", 4)
    add_many(drive, "b", 2)
    add_many(drive, "c", 1)
    order = ["a0", "b0", "c0", "a1", "b1", "a2", "a3"]
    assert [one.id for one in drive.scheduler.waiting] == order
    drive.step()
    assert list(drive.scheduler.running) == order


@settings(max_examples=200, deadline=None)
@given(
    arrivals=st.lists(
        st.tuples(st.sampled_from("aaabbc"), st.integers(-1, 1)), min_size=1, max_size=20
    ),
    running=st.lists(st.sampled_from("aaabbc"), max_size=5),
)
def test_the_queue_is_shown_in_the_order_in_which_it_is_served(
    arrivals: list[tuple[str, int]], running: list[str]
) -> None:
    """What runs of a client counts for its turns; priority counts among its own sequences.

    There are tokens for all of them: the least share of a client in a step is 32.
    """
    drive = Drive()
    for number, client in enumerate(running):
        drive.add(f"runs {number}", 3, 99, client=client)
    drive.step()
    for number, (client, priority) in enumerate(arrivals):
        drive.add(str(number), 1, 99, priority, client=client)
    shown = [one.id for one in drive.scheduler.waiting]
    assert Counter(shown) == Counter(map(str, range(len(arrivals))))
    drive.step()
    assert list(drive.scheduler.running)[len(running) :] == shown


def test_priority_does_not_count_more_than_whose_turn_it_is() -> None:
    """A client that sends the most urgent sequences has no more turns for that."""
    drive = Drive(seats=2)
    drive.add("runs", 3, 99, client="a")
    drive.step()
    drive.add("urgent", 3, 99, priority=-1000, client="a")
    drive.add("late", 3, 99, priority=1000, client="b")
    drive.step()
    assert list(drive.scheduler.running) == ["runs", "late"]


@pytest.mark.parametrize("crowd", ["other", "same"])
def test_a_crowd_of_prompts_slows_down_the_streams_of_its_own_client_only(crowd: str) -> None:
    drive = Drive(blocks=40_000, seats=64, budget=512, paced=True)
    drive.add("stream", 3, FOR_EVER, client="same")
    for _ in range(20):
        drive.step()
    add_many(drive, crowd, 60, prompt=1000)
    prefill = max(sum(chunk.count for chunk in drive.step()) for _ in range(100))
    assert (prefill > 100) == (crowd == "same")


def test_a_prompt_does_not_wait_behind_those_of_a_client_that_has_had_its_share() -> None:
    """Of clients that run as many, the one that waits longer is first: but not without tokens."""
    drive = Drive(blocks=40_000, seats=64, budget=512, paced=True)
    drive.add("stream", 3, FOR_EVER, client="b")
    for _ in range(20):
        drive.step()
    add_many(drive, "a", 50, prompt=4000)
    for _ in range(20):
        drive.step()
    drive.add("other", 3, 1, client="b")
    for _ in range(3):
        drive.step()
    assert "other" in drive.done


def test_urgent_sequences_beyond_a_share_give_way_to_those_of_others() -> None:
    drive = Drive(seats=2)
    for number in range(2):
        drive.add(f"urgent {number}", 3, 99, priority=-1000, client="a")
    drive.step()
    drive.add("other", 3, 99, priority=1000, client="b")
    drive.step()
    assert list(drive.scheduler.running) == ["urgent 0", "other"]


def test_the_worst_of_the_client_that_holds_most_is_preempted() -> None:
    """Not the one of the worst priority of all: its client holds less."""
    drive = Drive(blocks=6)
    for id, priority, client in [("a", -1000, "x"), ("b", -999, "x"), ("c", 1000, "y")]:
        drive.add(id, 7, 6, priority, client=client)
    for _ in range(3):
        drive.step()
    assert [one.id for one in drive.scheduler.waiting] == ["b"]


@settings(max_examples=100, deadline=None)
@given(
    flood=st.integers(1, 40),
    others=st.integers(1, 12),
    seats=st.integers(2, 6),
    tokens=st.integers(1, 10),
)
def test_no_client_waits_longer_than_for_one_sequence_of_each_other_client(
    flood: int, others: int, seats: int, tokens: int
) -> None:
    """In steps, however much the first one has queued before them."""
    drive = Drive(blocks=1000, seats=seats)
    add_many(drive, "flood", flood, tokens=FOR_EVER)
    drive.step()
    drive.step()
    for number in range(others):
        drive.add(f"other {number}", 3, tokens, client=f"other {number}")
    rounds = -(-others // (seats - 1))  # one seat is the first one's own
    steps = 0
    while sum(id.startswith("other") for id in drive.admitted) < others:
        drive.step()
        steps += 1
        assert steps <= rounds * (tokens + 1)


# ---- seats


def test_a_newcomer_has_a_seat_in_the_next_step_and_nothing_is_computed_again() -> None:
    drive = Drive(seats=8)
    add_many(drive, "flood", 30, prompt=5, tokens=20)
    for _ in range(3):
        drive.step()
    youngest = drive.sequences["flood7"]
    before = (list(youngest.block_table), youngest.num_computed)
    drive.add("new", 5, 3, client="other")
    chunks = drive.step()
    assert "new" in {chunk.sequence.id for chunk in chunks}
    assert len(chunks) == 8
    assert "flood7" not in drive.scheduler.running
    assert (list(youngest.block_table), youngest.num_computed) == before, "it keeps its blocks"
    drive.finish()
    assert drive.scheduler.num_preemptions == 0
    assert drive.computed == 30 * (5 + 19) + 5 + 2, "each position once"


@settings(max_examples=100, deadline=None)
@given(wanted=st.lists(st.integers(1, 12), min_size=1, max_size=6), seats=st.integers(1, 16))
def test_shares_become_equal_and_then_nothing_changes_any_more(
    wanted: list[int], seats: int
) -> None:
    """No client could have one more without another having less than it."""
    drive = Drive(blocks=5000, seats=seats)
    for number, count in enumerate(wanted):
        add_many(drive, f"client {number} ", count, tokens=FOR_EVER)
        drive.step()
    for _ in range(seats):
        drive.step()
    shares = Counter(one.client for one in drive.scheduler.running.values())
    assert shares.total() == min(seats, sum(wanted))
    waiting = {one.client for one in drive.scheduler.waiting}
    for client in waiting:
        assert max(shares.values()) - shares[client] < 2
    before = list(drive.scheduler.running)
    for _ in range(10):
        drive.step()
    assert list(drive.scheduler.running) == before


def test_when_all_of_one_client_come_back_at_once_others_do_not_wait_for_them() -> None:
    drive = Drive(seats=4)
    add_many(drive, "flood", 40, tokens=50)
    for n in range(40):
        drive.step()
        drive.scheduler.pause(f"flood{n}")
    for n in range(40):
        drive.scheduler.unpause(f"flood{n}")
    drive.step()
    drive.add("new", 3, 3, client="other")
    assert "new" in {chunk.sequence.id for chunk in drive.step()}


# ---- blocks


def test_when_blocks_are_taken_a_newcomer_gets_those_of_the_client_with_most() -> None:
    drive = Drive(blocks=20, prefix_cache=False)
    add_many(drive, "flood", 4, prompt=5 * BLOCK - 3, tokens=3)
    drive.step()
    assert drive.pool.num_free == 0
    drive.add("new", 3, 2, client="other")
    assert "new" in {chunk.sequence.id for chunk in drive.step()}
    assert list(drive.scheduler.running) == ["flood0", "flood1", "flood2", "new"]
    drive.finish()


def test_nobody_gives_way_where_that_would_not_be_enough() -> None:
    drive = Drive(blocks=20, prefix_cache=False)
    add_many(drive, "flood", 4, prompt=5 * BLOCK - 3, tokens=3)
    drive.step()
    drive.add("large", 19 * BLOCK, 1, client="other")
    assert clients(drive.step()) == {"flood"}
    assert seats(drive) == {"flood": 4}


def test_the_client_that_holds_most_gives_up_its_youngest_when_blocks_run_out() -> None:
    """Not the youngest of all, which is the only one of its client."""
    drive = Drive(blocks=9, prefix_cache=False)
    drive.add("a0", 7, 9, client="a")
    drive.add("a1", 7, 9, client="a")
    drive.add("a2", 7, 9, client="a")
    drive.add("b0", 7, 9, client="b")
    while not drive.scheduler.num_preemptions:
        drive.step()
    assert "b0" in drive.scheduler.running
    assert "a2" not in drive.scheduler.running
    drive.finish()


# ---- prompts


def test_a_short_prompt_does_not_wait_for_the_long_ones_of_another_client() -> None:
    drive = Drive(blocks=1000, budget=512)
    add_many(drive, "flood", 3, prompt=1000)
    drive.step()
    drive.add("new", 40, 5, client="other")
    tokens = {chunk.sequence.id: chunk.count for chunk in drive.step()}
    assert tokens == {"flood0": 40, "new": 40}, "twice what it takes alone"
    tokens = {chunk.sequence.id: chunk.count for chunk in drive.step()}
    assert tokens["new"] == 1
    assert sum(tokens.values()) == 512, "and now the long ones have it all again"


def test_long_prompts_of_two_clients_are_computed_side_by_side() -> None:
    drive = Drive(blocks=1000, budget=100)
    add_many(drive, "a", 3, prompt=1000)
    add_many(drive, "b", 3, prompt=1000)
    drive.step()
    for _ in range(5):
        counts = Counter[str]()
        for chunk in drive.step():
            counts[chunk.sequence.client] += chunk.count
        assert counts == {"a": 50, "b": 50}


@pytest.mark.parametrize("prompt", [10, 100, 1000])
def test_the_first_prompt_of_a_client_takes_at_most_twice_as_long_as_alone(prompt: int) -> None:
    """Decodes of the other client wait for every second step at most, for three of theirs."""
    drive = Drive(blocks=2000, seats=20, budget=512, paced=True)
    add_many(drive, "flood", 40, prompt=10, tokens=FOR_EVER)
    while len(drive.scheduler.running) < 20:
        drive.step()
    for _ in range(20):
        drive.step()
    drive.add("new", prompt, 5, client="other")
    seconds, skipped = 0.0, 0
    while drive.sequences["new"].num_output == 0:
        chunks = drive.step()
        decodes = sum(chunk.sequence.client == "flood" for chunk in chunks)
        took = 0.02 * decodes + 0.001 * sum(c.count for c in chunks if c.sequence.id == "new")
        seconds += took
        skipped = 0 if decodes else skipped + 1
        assert skipped <= 1
        assert decodes or took <= 3 * 0.4 + 0.001, "20 decodes of 20 ms"
    assert seconds <= 2 * 0.001 * prompt, "twice what it takes alone"


def test_with_one_client_no_decode_is_left_out() -> None:
    drive = Drive(blocks=2000, seats=20, paced=True)
    add_many(drive, "only", 19, tokens=FOR_EVER)
    for _ in range(30):
        drive.step()
    drive.add("new", 1000, 5, client="only")
    while drive.sequences["new"].num_output == 0:
        chunks = drive.step()
        assert len({chunk.sequence.id for chunk in chunks} - {"new"}) == 19


# ---- what it costs


def calls(work: Callable[[], object]) -> int:
    """How many functions are called."""
    number = 0

    def count(*_: object) -> None:
        nonlocal number
        number += 1

    sys.setprofile(count)
    work()
    sys.setprofile(None)
    return number


def test_a_step_costs_no_more_when_more_of_the_same_clients_wait() -> None:
    def cost(waiting: int) -> int:
        drive = Drive(blocks=1000, seats=8, paced=True)
        for client in "abc":
            add_many(drive, client, waiting, tokens=FOR_EVER)
        for _ in range(20):
            drive.step()
        return calls(lambda: drive.scheduler.schedule(drive.pace))

    assert cost(1000) <= 1.1 * cost(10)
