"""Whose sequences count towards which bound: the arithmetic, without a server."""

from app.tapes.plan import Plan
from app.tapes.seats import NOTHING, Held, Seats
from app.tapes.sizes import size_of
from app.tapes.tape import Choice, Entry, IdempotencyClaim, Tape
from model.protocol.sampling_params import SamplingParams

CAPACITY = 8


def seats_with(**fresh: int) -> Seats:
    seats = Seats()
    for client, count in fresh.items():
        seats.change(client, NOTHING, Held(fresh=count))
    return seats


def test_a_client_may_have_all_that_nobody_else_wants() -> None:
    seats = seats_with(a=7)
    assert seats.has_place("a", 1, CAPACITY)
    assert not seats.has_place("a", 2, CAPACITY)
    assert Seats().has_place("a", 100, CAPACITY), "alone, any number has a place"


def test_who_has_less_than_a_share_is_let_in_until_the_reserve_is_used() -> None:
    seats = seats_with(a=8)
    assert not seats.has_place("a", 1, CAPACITY)
    assert seats.has_place("b", 2, CAPACITY)
    assert not seats.has_place("b", 3, CAPACITY), "the reserve is a quarter"
    seats.change("b", NOTHING, Held(fresh=2))
    assert not seats.has_place("c", 1, CAPACITY)


def test_what_one_client_resumes_takes_no_place_from_others() -> None:
    seats = seats_with()
    seats.change("a", NOTHING, Held(paused=400))
    seats.change("a", Held(paused=400), Held(resumed=400))
    assert (seats.active, seats.fresh, seats.paused) == (400, 0, 0)
    assert not seats.has_place("a", 1, CAPACITY)
    assert seats.has_place("b", CAPACITY, CAPACITY)


def test_clients_without_sequences_are_forgotten() -> None:
    seats = seats_with(a=8)
    seats.change("a", Held(fresh=8), Held(paused=8))
    assert seats.most_paused == "a"
    seats.change("a", Held(paused=8), NOTHING)
    assert seats == Seats()


def test_all_that_is_kept_for_a_tape_counts() -> None:
    origin = {"conversation": [{"role": "user", "content": "x" * 50_000}], "request": {"m": "y"}}
    plain, kept = Tape("a", [Choice(1)]), Tape("b", [Choice(1)], response_context=origin)
    assert kept.size > plain.size + 50_000
    assert Tape("c", [Choice(1)], claim=IdempotencyClaim("k" * 9000, b"d")).size > plain.size + 9000
    assert Tape("d", [Choice(1) for _ in range(100)]).size > plain.size + 99 * 400
    before = plain.size
    for number in range(1000):
        plain.append(Entry("", number))
    assert plain.size >= before + 1000 * 208, "ids and latencies stay when entries go"


def test_a_plan_counts_prompts_grammar_and_salt() -> None:
    params = SamplingParams(max_tokens=1, seed=1)
    small = Plan([[1]], params).size
    assert Plan([[1] * 8000], params).size > small + 8000 * 30
    assert Plan([[1]], SamplingParams(max_tokens=1, seed=1, grammar="g" * 5000)).size > small + 5000


def test_sizes_count_what_is_nested() -> None:
    assert size_of({"a": [{"b": "x" * 1000}, ["y" * 1000]]}) > 2000
    assert size_of("x" * 1000) > 1000
    assert size_of(None) < 100


def test_flapping_readers_leave_the_counts_as_they_were() -> None:
    seats = Seats()
    for _ in range(1000):
        seats.change("a", NOTHING, Held(fresh=2))
        seats.change("a", Held(fresh=2), Held(paused=2))
        seats.change("a", Held(paused=2), Held(resumed=2))
        seats.change("a", Held(resumed=2), NOTHING)
    assert seats == Seats()
