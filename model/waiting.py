"""Sequences that wait, the next one first."""

from bisect import bisect_left, insort
from collections.abc import Iterator

from model.request import Request


def rank(request: Request) -> tuple[int, bool, int]:
    """By priority, lower first; among equals, those that have run before, then by arrival."""
    return request.priority, not request.admitted, request.number


class WaitingQueue:
    """A list kept in the order of `rank`; nothing that `rank` reads may change for what is in it.

    To insert among 10,000 moves 80 kB of pointers: 2 µs, less than a heap with its stale entries.
    """

    def __init__(self) -> None:
        self._requests: list[Request] = []

    def __len__(self) -> int:
        return len(self._requests)

    def __iter__(self) -> Iterator[Request]:
        return iter(self._requests)

    @property
    def first(self) -> Request:
        return self._requests[0]

    @property
    def last(self) -> Request:
        return self._requests[-1]

    def add(self, request: Request) -> None:
        insort(self._requests, request, key=rank)

    def remove(self, request: Request) -> None:
        """Raises ValueError when it is not here."""
        index = bisect_left(self._requests, rank(request), key=rank)
        if index == len(self._requests) or self._requests[index] is not request:
            raise ValueError(f"{request.id} does not wait")
        del self._requests[index]
