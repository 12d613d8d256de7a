"""How much one client may start: so many in a span of time, and so many at once.

A client is a key, or where there are no keys an address.
"""

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from math import ceil
from time import monotonic
from typing import Protocol

from app.errors import out_of_range, try_later


class Generation(Protocol):
    """What a tape is here: something that ends."""

    @property
    def end(self) -> object | None: ...


@dataclass(slots=True, eq=False)
class Place:
    """Room for what a request starts: taken before its tape is there, free when that has ended."""

    who: str
    sequences: int
    tape: Generation | None = None
    given_back: bool = False

    def hold(self, tape: Generation) -> None:
        """The place is the tape's from now on."""
        self.tape = tape

    @property
    def taken(self) -> bool:
        return not self.given_back and (self.tape is None or self.tape.end is None)


@dataclass(frozen=True, slots=True)
class Rate:
    """At most `amount` starts within any `seconds`."""

    amount: int
    seconds: float

    def wait(self, starts: Sequence[float], now: float) -> float:
        """Seconds until one more may follow these."""
        if len(starts) < self.amount:
            return 0
        return max(0, starts[-self.amount] + self.seconds - now)


def parse_rates(text: str) -> tuple[Rate, ...]:
    """'60/minute', or several with commas between. Raises ValueError."""
    import limits  # takes 0.1 s, which only those wait for who limit

    return tuple(Rate(item.amount, item.get_expiry()) for item in limits.parse_many(text))


@dataclass(slots=True)
class Limits:
    """Counts what each client starts. Without rates and `at_once`, everything may.

    The clock is monotonic: when the machine's is set back, nobody waits longer.
    """

    rates: Sequence[Rate] = ()
    at_once: int | None = None
    clock: Callable[[], float] = monotonic
    _starts: dict[str, deque[float]] = field(default_factory=dict)  # whoever started last is last
    _places: list[Place] = field(default_factory=list)

    @contextmanager
    def begin(self, who: str, sequences: int = 1) -> Iterator[Place]:
        """A place for so many sequences: `hold` the tape in it, else it is free after the block.

        Raises APIError 429, or 422 for more than there can ever be. A resume must not come here.
        """
        self._check_places(who, sequences)
        self._count_start(who)
        place = Place(who, sequences)
        self._places.append(place)
        try:
            yield place
        finally:
            place.given_back = place.tape is None

    def _check_places(self, who: str, sequences: int) -> None:
        self._places = [place for place in self._places if place.taken]
        if self.at_once is None:
            return
        if sequences > self.at_once:
            raise out_of_range("n", f"must make at most {self.at_once} answers, not {sequences}")
        taken = sum(place.sequences for place in self._places if place.who == who)
        if taken + sequences > self.at_once:
            raise try_later(
                429,
                f"{taken} generations of yours have not ended, and --max-concurrent is "
                f"{self.at_once}; cancel one, or try again when it has ended",
                code="too_many_concurrent",
            )

    def _count_start(self, who: str) -> None:
        if not self.rates:
            return
        now = self.clock()
        starts = self._starts.pop(who, deque(maxlen=max(rate.amount for rate in self.rates)))
        self._starts[who] = starts
        if wait := max(rate.wait(starts, now) for rate in self.rates):
            raise try_later(
                429,
                "you have started as many generations as --rate-limit allows; try again in "
                f"{ceil(wait)} s",
                code="rate_limited",
                seconds=ceil(wait),
            )
        starts.append(now)
        self._forget_old(now)

    def _forget_old(self, now: float) -> None:
        """Clients whose starts count no longer: addresses come without end."""
        longest = max(rate.seconds for rate in self.rates)
        while self._starts[oldest := next(iter(self._starts))][-1] <= now - longest:
            del self._starts[oldest]
