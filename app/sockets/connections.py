"""Which connections are open, and which of them goes when there are no descriptors for another.

Whoever has to send something can hold a connection without a cost to itself. So these have a place
in an order: at a shortage the first of them is closed, and a newcomer gets in.
"""

import contextlib
import logging
import math
import resource
import time
from collections.abc import Iterator
from enum import Enum, auto
from itertools import chain
from typing import Generic, Protocol, TypeVar

logger = logging.getLogger("tickertape")

# Descriptors left for other things than clients: 15 that are always open, those of an engine that
# is started anew, connections to Redis and to whoever collects traces.
_RESERVE = 64

_TELL_EVERY = 60.0  # seconds


class Use(Enum):
    """What a connection is used for. At a shortage those of the first kind go first."""

    IDLE = auto()  # between two requests
    INCOMPLETE = auto()  # the client has not sent its request yet, or not all of it
    STALLED = auto()  # the client does not take its answer
    ANSWERING = auto()  # never closed for another


class Closable(Protocol):
    def give_way(self) -> None: ...


C = TypeVar("C", bound=Closable)


class Connections(Generic[C]):
    """All of one server, by use, those that have been used so for longest first."""

    def __init__(self) -> None:
        self._by_use: dict[Use, dict[C, None]] = {use: {} for use in Use}
        self._uses: dict[C, Use] = {}
        self._told = -_TELL_EVERY

    def note(self, connection: C, use: Use) -> None:
        """A connection that is new, or whose use may have changed."""
        if self._uses.get(connection) is not use:
            self.forget(connection)
            self._uses[connection] = use
            self._by_use[use][connection] = None

    def forget(self, connection: C) -> None:
        """One that is closed."""
        if use := self._uses.pop(connection, None):
            del self._by_use[use][connection]

    def make_room(self) -> bool:
        """For a new one: where descriptors are short, others are closed.

        False when all others are being answered.
        """
        most = _most()
        while len(self._uses) >= most:
            self._tell()
            first = next(self._in_order(), None)
            if first is None:
                return False
            self.forget(first)  # it is closed later: the next newcomer must find another
            first.give_way()
        return True

    def _in_order(self) -> Iterator[C]:
        """Those that may be closed, the first to go first."""
        return chain.from_iterable(
            self._by_use[use] for use in (Use.IDLE, Use.INCOMPLETE, Use.STALLED)
        )

    def _tell(self) -> None:
        if (now := time.monotonic()) - self._told >= _TELL_EVERY:
            self._told = now
            logger.warning(
                "short of file descriptors: connections that wait for their clients are closed; "
                "raise the limit of open files (ulimit -n, LimitNOFILE)"
            )


def allow_all_descriptors() -> None:
    """Raise this process's own limit to what it may have at most: shells give 1024 of many more."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with contextlib.suppress(OSError, ValueError):  # where "unlimited" is none that can be set
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def _most() -> float:
    """How many connections there may be, by the limit of this moment."""
    limit, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if limit == resource.RLIM_INFINITY:
        return math.inf
    return limit - min(_RESERVE, limit // 2)
