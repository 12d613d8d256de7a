"""Whole answers as JSON, piece by piece: each piece is work for a millisecond or so.

A generator of pieces yields b"" where it has worked for a while and has nothing to give yet: its
caller lets others go first there, or goes on at once where the answer is small.
"""

from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from typing import Any, Final

import orjson

from app.sse import one_line
from app.tapes.tape import Entry, Tape, pages

# In the place of a list that is written piece by piece. JSON has no such character elsewhere: in
# strings it is escaped.
LATER: Final = orjson.Fragment(b"\x00")

Choices = list[list[Entry]]


def entries_of(tape: Tape) -> Generator[bytes, None, Choices]:
    """The entries of each choice, as far as they are kept now; yields b"" between pages."""
    choices: Choices = [[] for _ in tape.choices]
    for number, page in enumerate(pages(tape.shown())):
        if number:
            yield b""
        for entry in page:
            choices[entry.index].append(entry)
    return choices


def text_of(entries: Iterable[Entry]) -> str:
    return "".join([entry.text for entry in entries])


def items(
    entries: Sequence[Entry], show: Callable[[Sequence[Entry]], list[Any]]
) -> Iterator[bytes]:
    """What `show` makes of the entries as the items of one JSON list; pieces may be empty."""
    for page in pages(entries):
        yield orjson.dumps(show(page))[1:-1]


def written(answer: Any, lists: Iterable[Iterator[bytes]] = ()) -> Iterator[bytes]:
    """JSON of an answer, as one line; its LATERs are these lists, in the order of the text."""
    first, *others = one_line(orjson.dumps(answer)).split(b"\x00")
    yield first
    for items, following in zip(lists, others, strict=True):
        before = b"["
        for number, piece in enumerate(items):
            if number:
                yield b""
            if piece:
                yield before + one_line(piece)
                before = b","
        yield (b"[]" if before == b"[" else b"]") + following
