"""How fast places become free, measured: what a client is told that has to come back later."""

import math
import time
from collections import deque
from collections.abc import Callable

_KEPT = 64
_LONGEST = 60


class RetryAfterEstimator:
    """Notes when generations end, while any is under way."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._ends: deque[float] = deque(maxlen=_KEPT)
        self._since = clock()  # from when on the ends are counted

    def begin(self, num_active: int, num_new: int = 1) -> None:
        """So many are new; the first after a silence begin the measurement anew."""
        if num_active == num_new:
            self._ends.clear()
            self._since = self._clock()

    def end(self) -> None:
        if len(self._ends) == _KEPT:
            self._since = self._ends[0]
        self._ends.append(self._clock())

    def seconds_to_a_place(self) -> int:
        """Whole seconds until about one more generation has ended; from 1 to 60.

        Before any has, it takes at least as long as has been waited already.
        """
        seconds = (self._clock() - self._since) / max(len(self._ends), 1)
        return min(max(math.ceil(seconds), 1), _LONGEST)
