"""Which entries may share a frame: those that follow each other in one choice."""

from collections.abc import Iterator, Sequence

from app.tapes.tape import End, Entry


def runs(last: int, batch: Sequence[Entry | End]) -> Iterator[tuple[int, list[Entry] | End]]:
    """The batch, whose last entry has the number `last`, in runs of one choice each, and its end.

    Each with the number of its last entry: a reader that has it has all before it.
    """
    number = last - len(batch)
    run: list[Entry] = []
    for item in batch:
        if run and (isinstance(item, End) or item.index != run[0].index):
            yield number, run
            run = []
        number += 1
        if isinstance(item, End):
            yield number, item
        else:
            run.append(item)
    if run:
        yield number, run
