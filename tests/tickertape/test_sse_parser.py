"""The SSE parser against the published case lists for clients, and against one written otherwise.

The cases are those of LaunchDarkly's sse-contract-tests and of the web-platform-tests' eventsource
folder, told again in the words of the HTML standard, section 9.2.6.
"""

import time
from collections.abc import Iterable
from itertools import accumulate, cycle, pairwise, takewhile

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tickertape.sse_parser import EventStreamParser, ServerSentEvent

Event = tuple[str, str, str]  # event, data, id


def message(data: str, id: str = "", event: str = "message") -> Event:
    return event, data, id


def parse(*chunks: bytes) -> list[Event]:
    return outcome(chunks)[0]


def as_tuple(event: ServerSentEvent) -> Event:
    return event.event, event.data, event.id


def pieces(raw: bytes, size: int) -> list[bytes]:
    return [raw[start : start + size] for start in range(0, len(raw), size)]


CASES: dict[str, tuple[str, list[Event]]] = {
    "one line": ("data: Hello\n\n", [message("Hello")]),
    "two events": ("data: Hello\n\ndata: World\n\n", [message("Hello"), message("World")]),
    "two lines": ("data: Hello\ndata:World\n\n", [message("Hello\nWorld")]),
    "empty data is an event": ("data:\n\n", [message("")]),
    "data without a colon": ("data\n\ndata\ndata\n\n", [message(""), message("\n")]),
    "empty line first": ("data:\ndata: 2\ndata: 3\n\n", [message("\n2\n3")]),
    "empty line in the middle": ("data: 1\ndata:\ndata: 3\n\n", [message("1\n\n3")]),
    "more empty lines": ("\n\ndata: 1\n\n\n\ndata: 2\n\n", [message("1"), message("2")]),
    "a name": ("event: hi\ndata: x\n\n", [message("x", event="hi")]),
    "a name is forgotten": (
        "event: hi\ndata: x\n\ndata: y\n\n",
        [message("x", event="hi"), message("y")],
    ),
    "an empty name is the default": ("event:\ndata: x\n\n", [message("x")]),
    "the last name counts": ("event: a\nevent: b\ndata: x\n\n", [message("x", event="b")]),
    "a name without data": ("event: hi\n\ndata: y\n\n", [message("y")]),
    "an id": ("id: abc\ndata: x\n\n", [message("x", "abc")]),
    "an id stays": ("id: a\ndata: 1\n\ndata: 2\n\n", [message("1", "a"), message("2", "a")]),
    "an empty id resets": (
        "id: a\ndata: 1\n\nid: \ndata: 2\n\n",
        [message("1", "a"), message("2")],
    ),
    "an id without a colon resets": (
        "id: a\ndata: 1\n\nid\ndata: 2\n\n",
        [message("1", "a"), message("2")],
    ),
    "an id with NUL is ignored": ("id: a\0bc\ndata: x\n\n", [message("x")]),
    "and leaves the one before": (
        "id: a\ndata: 1\n\nid: b\0\ndata: 2\n\n",
        [message("1", "a"), message("2", "a")],
    ),
    "an id without data": ("id: a\n\ndata: x\n\n", [message("x", "a")]),
    "any order": ("data: x\nid: a\nevent: hi\n\n", [message("x", "a", "hi")]),
    "unknown fields": ("color: blue\ndata: x\nfoo\n\n", [message("x")]),
    "field names have a case": ("Data: no\nDATA: no\ndata: x\n\n", [message("x")]),
    "a name may not begin with a blank": (" data: no\ndata: x\n\n", [message("x")]),
    "nor end with one": ("data : no\ndata: x\n\n", [message("x")]),
    "no blank": ("event:hi\ndata:x\n\n", [message("x", event="hi")]),
    "one blank is taken away": ("event:  hi\ndata:  x \n\n", [message(" x ", event=" hi")]),
    "a tab is not": ("data:\tx\n\n", [message("\tx")]),
    "colons in a value": ("data: a: b:c\ndata:: d\n\n", [message("a: b:c\n: d")]),
    "comments": (": ping\ndata: 1\n:\n:: data: no\ndata: 2\n\n", [message("1\n2")]),
    "a comment alone is no event": (": ping\n\n", []),
    "NUL in data": ("data: a\0b\n\n", [message("a\0b")]),
    "a field with NUL is unknown": ("data\0: no\ndata: x\n\n", [message("x")]),
    "no other line ends": (
        "data: a\u2028b\u2029c\x85d\x0be\x0cf\n\n",
        [message("a\u2028b\u2029c\x85d\x0be\x0cf")],
    ),
    "many bytes a character": ("data: €豆腐🐙\n\n", [message("€豆腐🐙")]),
    "what breaks off is dropped": ("data: 1\n\ndata: 2\n", [message("1")]),
    "a mark at the start": ("\ufeffdata: x\n\n", [message("x")]),
    "a second mark is text": ("\ufeff\ufeffdata: no\ndata: x\n\n", [message("x")]),
    "a mark later is text": (
        "data: 1\n\n\ufeffdata: no\n\ndata: 2\n\n",
        [message("1"), message("2")],
    ),
    "a retry that is none": ("retry: 10x\nretry: -1\nretry:\ndata: x\n\n", [message("x")]),
}


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"], ids=["LF", "CRLF", "CR"])
@pytest.mark.parametrize("size", [1, 2, 3, 1 << 20])
@pytest.mark.parametrize("case", CASES)
def test_published_cases_in_pieces_of_any_size(case: str, size: int, end: str) -> None:
    text, events = CASES[case]
    assert parse(*pieces(text.replace("\n", end).encode(), size)) == events


def test_a_line_end_may_be_cut_in_two() -> None:
    chunks = [b"data: Hello\r", b"\ndata: World\r", b"\n\r\ndata: OK\r", b"\n", b"\r", b"", b"\n"]
    assert parse(*chunks) == [message("Hello\nWorld"), message("OK")]


def test_an_event_is_there_with_the_first_half_of_its_last_line_end() -> None:
    assert parse(b"data: x\r\n\r") == [message("x")]
    assert parse(b"data: x\r\r") == [message("x")]


def test_line_ends_of_all_kinds_in_one_stream() -> None:
    raw = b"data: 1\rdata: 2\r\ndata: 3\n\rdata: 4\n\n"
    assert parse(raw) == [message("1\n2\n3"), message("4")]
    assert parse(*pieces(raw, 1)) == [message("1\n2\n3"), message("4")]


def test_bytes_that_are_no_text_become_replacement_characters() -> None:
    for size in (1, 100):
        assert parse(*pieces(b"data: a\xffb\xe2\x82c\n\n", size)) == [message("a\ufffdb\ufffdc")]


def test_retry_is_digits_only() -> None:
    for value, retry in [
        (b"10", 10),
        (b"0", 0),
        (b"03000", 3000),
        (b"0" * 5000 + b"10", 10),
        (b"1x", None),
        (b" 1", None),
        (b"-1", None),
        (b"1.5", None),
        (b"", None),
        ("١".encode(), None),  # a digit, but not of ASCII
        (b"9" * 5000, 999999999),
    ]:
        parser = EventStreamParser()
        assert list(parser.feed(b"retry: " + value + b"\n")) == []
        assert parser.retry == retry, value


def test_an_id_moves_the_cursor_without_any_event() -> None:
    parser = EventStreamParser()
    assert list(parser.feed(b"retry: 1000\nid: tape:0\n\n")) == []
    assert (parser.last_event_id, parser.retry) == ("tape:0", 1000)


def test_an_id_counts_only_once_its_block_is_complete() -> None:
    """What breaks off is asked for again, so the cursor stays in front of it."""
    parser = EventStreamParser()
    assert len(list(parser.feed(b"id: a\ndata: 1\n\nid: b\ndata: 2\n"))) == 1
    assert parser.last_event_id == "a"
    assert [as_tuple(event) for event in parser.feed(b"\n")] == [message("2", "b")]
    assert parser.last_event_id == "b"


def test_many_events_at_once_keep_their_order() -> None:
    raw = b"".join(b"data: %d\n\n" % number for number in range(1000))
    assert parse(raw) == [message(str(number)) for number in range(1000)]


@pytest.mark.parametrize("size", [1, 1023, 1024, 1025, 4096, 8192, 65536, 1 << 20])
def test_payloads_of_any_size(size: int) -> None:
    raw = b"data: " + b"x" * size + b"\n\n"
    assert parse(*pieces(raw, 1 << 14)) == [message("x" * size)]


@pytest.mark.alone
def test_a_long_line_in_small_pieces_takes_linear_time() -> None:
    def seconds(size: int) -> float:
        chunks = pieces(b"data: " + b"x" * size + b"\n\n", 8)
        began = time.process_time()
        parse(*chunks)
        return time.process_time() - began

    seconds(1 << 12)
    small, large = min(seconds(1 << 15) for _ in range(5)), seconds(1 << 19)
    assert large < 16 * small * 6, "sixteen times the size, not its square"


# ---- the same, written line by line over all of the text at once

Outcome = tuple[list[Event], str, int | None]  # events, last_event_id, retry


def outcome(chunks: Iterable[bytes]) -> Outcome:
    parser = EventStreamParser()
    events = [as_tuple(event) for chunk in chunks for event in parser.feed(chunk)]
    return events, parser.last_event_id, parser.retry


def reference(raw: bytes) -> Outcome:
    text = raw.decode(errors="replace").removeprefix("\ufeff")
    lines = text.replace("\r\n", "\n").replace("\r", "\n").split("\n")[:-1]
    events: list[Event] = []
    data, event, id, last_id, retry = "", "", "", "", None
    for line in lines:
        name, value = line, ""
        if ":" in line:
            name, value = line.split(":", 1)
            value = value[1:] if value[:1] == " " else value
        if line == "":
            last_id = id
            if data:
                events.append((event or "message", data[:-1], id))
            data, event = "", ""
        elif name == "data":
            data += value + "\n"
        elif name == "event":
            event = value
        elif name == "id" and "\0" not in value:
            id = value
        elif name == "retry" and value and set(value) <= set("0123456789"):
            retry = int(value)
    return events, last_id, retry


text = st.one_of(
    st.text(st.sampled_from("ab: \0\ufeff豆\u2028id"), max_size=6),
    st.text(st.sampled_from("019"), max_size=4),
)
line = st.one_of(
    st.builds(
        "{}{}{}".format,
        st.sampled_from(["data", "event", "id", "retry", "", "x"]),
        st.sampled_from([":", ": ", ""]),
        text,
    ),
    st.just(""),
)
stream = st.lists(st.tuples(line, st.sampled_from(["\n", "\r", "\r\n"])), max_size=30)


@given(
    st.sampled_from(["", "\ufeff", "\ufeff\ufeff"]),
    stream,
    st.binary(max_size=4),
    st.sampled_from([b"\n\n", b"\r", b""]),
    st.lists(st.integers(1, 7), min_size=1, max_size=50),
)
def test_any_stream_cut_anywhere_is_read_as_if_at_once(
    mark: str, lines: list[tuple[str, str]], noise: bytes, tail: bytes, sizes: list[int]
) -> None:
    raw = (mark + "".join(line + end for line, end in lines)).encode() + noise + tail
    cuts = takewhile(lambda cut: cut < len(raw), accumulate(cycle(sizes)))
    chunks = [raw[start:end] for start, end in pairwise([0, *cuts, len(raw)])]
    assert b"".join(chunks) == raw
    assert outcome(chunks) == outcome([raw]) == reference(raw)
