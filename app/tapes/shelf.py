"""The tapes that this process has in memory."""

import time

from app.tapes.tape import Tape


class Shelf:
    """Keeps finished tapes for `ttl` seconds, oldest out first when they pass `budget` bytes.

    A running one is never dropped; of others, `num_expired` were.
    """

    def __init__(self, *, ttl: float, budget: int) -> None:
        self._ttl = ttl
        self._budget = budget
        self._tapes: dict[str, Tape] = {}
        self._claimed: dict[str, Tape] = {}  # by Idempotency-Key
        self._finished: dict[str, Tape] = {}  # in the order in which they ended
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
        self._finished[tape.id] = tape
        self._finished_size += tape.size
        self._expire()

    def reopened(self, tape: Tape) -> None:
        """It was finished here, but another process goes on with it: it must not be dropped yet."""
        if self._finished.pop(tape.id, None):
            self._finished_size -= tape.size

    def _expire(self) -> None:
        """Drop the oldest while they are over age, or all finished ones together over budget."""
        oldest = time.monotonic() - self._ttl
        while self._finished:
            tape = next(iter(self._finished.values()))
            if self._finished_size <= self._budget and (tape.ended_at or 0.0) > oldest:
                return
            self._finished_size -= tape.size
            del self._finished[tape.id], self._tapes[tape.id]
            self.num_expired += 1
            # Another replica may have used the key for a tape that is here by now.
            if tape.claim and self._claimed.get(tape.claim.key) is tape:
                del self._claimed[tape.claim.key]
