"""Text that is always whole code points, cut at stop strings, however it is split into tokens."""

import random
import time
from collections.abc import Sequence
from itertools import pairwise
from typing import cast

import pytest
from hypothesis import HealthCheck, assume, example, given, settings
from hypothesis import strategies as st

from model.text.detokenizer import Detokenizer, earliest_match, longest_partial_match
from model.text.tokenizer import Tokenizer
from tests.prompts import PROMPTS


class Pieces:
    """A vocabulary of these pieces and nothing else: token n is piece n."""

    def __init__(self, pieces: Sequence[bytes]) -> None:
        self._pieces = pieces

    def token_bytes(self, id: int) -> bytes:
        return self._pieces[id]


def pushed(pieces: Sequence[bytes], stop: Sequence[str] = ()) -> list[str]:
    """What is shown after each piece, until a stop string was met, and at the end."""
    detokenizer = Detokenizer(cast(Tokenizer, Pieces(pieces)), stop)
    shown = []
    for id in range(len(pieces)):
        shown.append(detokenizer.push(id))
        if detokenizer.stopped:
            break
    return [*shown, detokenizer.finish()]


def split(data: bytes, cuts: list[int]) -> list[bytes]:
    ends = sorted({position % (len(data) + 1) for position in cuts} | {0, len(data)})
    return [data[start:end] for start, end in pairwise(ends)]


fixture_is_constant = settings(
    deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
ANY_TEXT = st.text() | st.lists(st.sampled_from([*PROMPTS, "👩‍👩‍👧‍👦", "🏳️‍🌈", "é", "\u0000"])).map(
    "".join
)


def check_equals_decode(tokenizer: Tokenizer, ids: list[int]) -> None:
    detokenizer = Detokenizer(tokenizer)
    pieces = [*(detokenizer.push(id) for id in ids), detokenizer.finish()]
    expected = tokenizer.decode(ids)
    assert "".join(pieces) == expected
    for piece in pieces:
        piece.encode()  # raises if it holds a lone surrogate
        assert "\ufffd" not in piece or "\ufffd" in expected


@fixture_is_constant
@given(text=ANY_TEXT)
def test_any_text_comes_out_as_decode_gives_it(tokenizer: Tokenizer, text: str) -> None:
    check_equals_decode(tokenizer, tokenizer.encode(text))


@pytest.fixture(scope="module")
def no_texts(tokenizer: Tokenizer) -> list[int]:
    """Tokens that are no UTF-8 alone: bytes of code points."""
    ids = [id for id in range(tokenizer.vocab_size) if not is_text(tokenizer.token_bytes(id))]
    assert len(ids) > 50
    return ids


def is_text(data: bytes) -> bool:
    try:
        data.decode()
    except UnicodeDecodeError:
        return False
    return True


@fixture_is_constant
@given(data=st.data())
def test_any_token_ids_come_out_as_decode_gives_them(
    tokenizer: Tokenizer, no_texts: list[int], data: st.DataObject
) -> None:
    ids = st.sampled_from(no_texts) | st.integers(0, tokenizer.vocab_size + 5)
    check_equals_decode(tokenizer, data.draw(st.lists(ids, max_size=30)))


@given(text=st.text(), cuts=st.lists(st.integers(0, 200)))
def test_no_piece_ends_inside_a_code_point(text: str, cuts: list[int]) -> None:
    """Also where the vocabulary of the default model has no token for it."""
    shown = pushed(split(text.encode(), cuts))
    assert "".join(shown) == text
    assert shown[-1] == "", "nothing of a valid text is left for the end"


def test_an_unfinished_code_point_is_replaced_at_the_end() -> None:
    assert pushed([b"a", "é".encode()[:1]]) == ["a", "", "\ufffd"]


# ---- stop strings

LETTERS = st.text("abé🍕", max_size=24)
STOPS = st.lists(st.text("abé🍕", min_size=1, max_size=6), min_size=1, max_size=4)


def matches(text: str, stop: Sequence[str]) -> list[tuple[int, int]]:
    """Beginning and end of every occurrence of a stop string."""
    return [(at, at + len(s)) for s in stop for at in range(len(text)) if text.startswith(s, at)]


def unambiguous(text: str, stop: Sequence[str]) -> bool:
    """Whether the stop string that begins first is also the first to be complete."""
    found = matches(text, stop)
    return not found or min(found)[0] == min((end, at) for at, end in found)[1]


@settings(max_examples=500, deadline=None)
@given(text=LETTERS, stop=STOPS, cuts=st.lists(st.integers(0, 100)))
def test_the_text_ends_before_the_first_stop_string(
    text: str, stop: list[str], cuts: list[int]
) -> None:
    assume(unambiguous(text, stop))
    end = min((at for at, _ in matches(text, stop)), default=len(text))
    shown = pushed(split(text.encode(), cuts), stop)
    assert "".join(shown) == text[:end]


@settings(max_examples=500, deadline=None)
@given(data=st.data(), text=st.text("abcdef é🍕\n", min_size=1, max_size=40))
def test_nothing_of_a_stop_string_leaks_before_it_is_met(data: st.DataObject, text: str) -> None:
    """Stop strings taken out of the text, so that one is met every time."""
    at = data.draw(st.integers(0, len(text) - 1))
    stop = text[at : data.draw(st.integers(at + 1, len(text)))]
    beginnings = [stop, stop + "!", stop + "?"]  # one is the beginning of others
    shown = pushed(split(text.encode(), data.draw(st.lists(st.integers(0, 200)))), beginnings)
    assert "".join(shown) == text[: text.index(stop)]


@example(text="abcd", stop=["abcd", "bc"], cuts=[3])
@settings(max_examples=500, deadline=None)
@given(text=LETTERS, stop=STOPS, cuts=st.lists(st.integers(0, 100)))
def test_where_the_text_ends_does_not_depend_on_the_tokens(
    text: str, stop: list[str], cuts: list[int]
) -> None:
    data = text.encode()
    expected = "".join(pushed(split(data, list(range(len(data)))), stop))
    assert "".join(pushed(split(data, cuts), stop)) == expected


def test_a_stop_string_of_many_tokens_is_met() -> None:
    assert pushed([bytes([byte]) for byte in b"so <|stop|> on"], ["<|stop|>"]) == [
        *"so ", "", "", "", "", "", "", "", "", "",
    ]  # fmt: skip


def test_what_only_looked_like_a_stop_string_is_released_as_soon_as_it_cannot_be_one() -> None:
    shown = pushed([b"a", b"EN", b"x", b"E", b"N"], ["END"])
    assert shown == ["a", "", "ENx", "", "", "EN"]


def test_no_more_is_held_back_than_can_be_the_beginning_of_a_stop_string() -> None:
    assert pushed([b"xxE", b"EE", b"N"], ["END"]) == ["xx", "EE", "", "EN"]


def test_after_a_stop_string_nothing_more_comes() -> None:
    detokenizer = Detokenizer(cast(Tokenizer, Pieces([b"a END b"])), ["END"])
    assert detokenizer.push(0) == "a "
    assert detokenizer.stopped
    assert detokenizer.finish() == ""


def test_unchecked_text_is_shown_whole() -> None:
    """As long as a sequence has not its min_tokens."""
    detokenizer = Detokenizer(cast(Tokenizer, Pieces([b"a END b", b"END"])), ["END"])
    assert detokenizer.push(0, check_stop=False) == "a END b"
    assert not detokenizer.stopped
    assert detokenizer.push(1) == ""
    assert detokenizer.stopped


def test_a_stop_string_that_the_last_unfinished_code_point_completes_is_not_shown() -> None:
    assert "".join(pushed([b"a", b"\xf0\x9f"], ["\ufffd"])) == "a"


@pytest.mark.parametrize("shape", ["unlike", "alike"])
def test_the_work_of_a_token_does_not_grow(shape: str) -> None:
    """10,000 tokens and 16 stop strings of 256 characters, also where text looks like them."""
    rng = random.Random(1)
    if shape == "unlike":
        stop = ["".join(rng.choices("abcdefgh", k=256)) for _ in range(16)]
        pieces = [bytes(rng.choices(b"abcdefgh", k=4)) for _ in range(10_000)]
    else:
        stop = ["a" * 255 + chr(ord("b") + n) for n in range(16)]
        pieces = [b"aaaa"] * 10_000

    def seconds(count: int) -> float:
        began = time.process_time()
        assert sum(map(len, pushed(pieces[:count], stop))) == 4 * count
        return time.process_time() - began

    short = max(seconds(1000) for _ in range(5))
    assert seconds(10_000) < 10 * 2 * short, "ten times the tokens, not their square"


@given(text=LETTERS, stop=STOPS)
def test_earliest_match_is_the_one_complete_first(text: str, stop: list[str]) -> None:
    _, at = min(((end, at) for at, end in matches(text, stop)), default=(None, None))
    assert earliest_match(text, stop) == at


@given(text=LETTERS, stop=STOPS)
def test_longest_partial_match_is_that_of_brute_force(text: str, stop: list[str]) -> None:
    assume(not matches(text, stop))  # a whole one is looked for first
    partial = [n for n in range(1, len(text) + 1) if any(s.startswith(text[-n:]) for s in stop)]
    assert longest_partial_match(text, stop) == max(partial, default=0)
