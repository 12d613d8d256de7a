"""Where readers stand on a tape, and what happened to it. Only people look at this."""

import time
from collections import deque
from dataclasses import dataclass, field
from itertools import count
from typing import Final, Literal

_KEPT: Final = 64  # marks of a tape, the newest

_numbers = count(1)


@dataclass(slots=True, eq=False)
class Head:
    """One reader of this process, and the last entry that was handed to it."""

    entry: int = 0
    reader: int = field(default_factory=lambda: next(_numbers))


MarkKind = Literal["resume", "leave", "pause", "engine"]


@dataclass(frozen=True, slots=True)
class Mark:
    """What happened after this entry.

    A reader left, or came back and was given `replayed` entries that it had missed; the last reader
    was gone, so the generation paused; or the engine died, and another one went on.
    """

    kind: MarkKind
    entry: int
    reader: int | None = None
    replayed: int | None = None
    at: float = field(default_factory=time.monotonic)


@dataclass(slots=True, eq=False)
class Heads:
    """The reading heads of one tape in this process, and its newest marks."""

    reading: list[Head] = field(default_factory=list)
    marks: deque[Mark] = field(default_factory=lambda: deque(maxlen=_KEPT))
