"""The tapes that this process has in memory."""

import time

from app.tapes.tape import Tape


class TapeRetention:
    """Keeps finished tapes for `ttl` seconds, oldest out first when all pass `budget` bytes.

    `live_size` is about how many bytes those take that have not ended, when it was last counted.
    Neither these nor what is read at the moment are dropped; of others, `num_expired` were.
    """

    def __init__(self, *, ttl: float, budget: int) -> None:
        self._ttl = ttl
        self.budget = budget
        self.live_size = 0
        self._tapes: dict[str, Tape] = {}
        self._claimed: dict[str, Tape] = {}  # by Idempotency-Key
        self._finished: dict[str, tuple[Tape, int]] = {}  # with sizes, in the order of their ends
        self._finished_size = 0
        self.num_expired = 0

    def __len__(self) -> int:
        self._expire()
        return len(self._tapes)

    def add(self, tape: Tape) -> None:
        self._tapes[tape.id] = tape
        if tape.claim:
            self._claimed[tape.claim.key] = tape

    def get(self, tape_id: str) -> Tape | None:
        self._expire()
        return self._tapes.get(tape_id)

    def claimed(self, key: str) -> Tape | None:
        self._expire()
        return self._claimed.get(key)

    def finished(self, tape: Tape) -> None:
        self._finished[tape.id] = tape, tape.size
        self._finished_size += tape.size
        self._expire()

    def reopened(self, tape: Tape) -> None:
        """It was finished here, but another process goes on with it: it must not be dropped yet."""
        if finished := self._finished.pop(tape.id, None):
            self._finished_size -= finished[1]

    def make_room(self, live_size: int) -> None:
        """For so many bytes of tapes that have not ended."""
        self.live_size = live_size
        self._expire()

    def _expire(self) -> None:
        """Drop the oldest while they are over age, or all tapes together over budget."""
        oldest = time.monotonic() - self._ttl
        while unread := self._oldest_unread():
            tape, size = unread
            fits = self._finished_size + self.live_size <= self.budget
            if fits and (tape.ended_at or 0.0) > oldest:
                return
            self._finished_size -= size
            del self._finished[tape.id], self._tapes[tape.id]
            self.num_expired += 1
            # Another replica may have used the key for a tape that is here by now.
            if tape.claim and self._claimed.get(tape.claim.key) is tape:
                del self._claimed[tape.claim.key]

    def _oldest_unread(self) -> tuple[Tape, int] | None:
        """Of the finished ones; to drop one that is read would free nothing."""
        return next((one for one in self._finished.values() if not one[0].readers), None)
