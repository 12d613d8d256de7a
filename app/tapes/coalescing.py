"""Which entries may share a frame: those that follow each other in one choice."""

from collections.abc import Iterator, Sequence

from app.tapes.tape import Entry


def runs(last: int, entries: Sequence[Entry]) -> Iterator[tuple[int, list[Entry]]]:
    """The entries, whose last one has the number `last`, in runs of one choice each.

    Each with the number of its last entry: a reader that has it has all before it.
    """
    number = last - len(entries)
    run: list[Entry] = []
    for entry in entries:
        if run and entry.index != run[0].index:
            yield number, run
            run = []
        number += 1
        run.append(entry)
    if run:
        yield number, run
