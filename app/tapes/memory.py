"""Tapes in this process's memory: nothing to install, gone with the process."""

import time

from app.tapes.tape import Tape


class MemoryStore:
    """Keeps finished tapes for `ttl` seconds, oldest out first when they pass `budget` bytes."""

    def __init__(self, *, ttl: float, budget: int) -> None:
        self._ttl = ttl
        self._budget = budget
        self._tapes: dict[str, Tape] = {}

    def __len__(self) -> int:
        return len(self._tapes)

    def add(self, tape: Tape) -> None:
        self._tapes[tape.id] = tape

    def get(self, tape_id: str) -> Tape | None:
        return self._tapes.get(tape_id)

    def expire(self) -> None:
        """Drop finished tapes that are over age, then the oldest until the rest fit the budget."""
        oldest = time.monotonic() - self._ttl
        finished = [tape for tape in self._tapes.values() if tape.ended_at is not None]
        finished.sort(key=lambda tape: tape.ended_at or 0.0)
        kept = sum(tape.size for tape in finished)
        for tape in finished:
            if kept <= self._budget and (tape.ended_at or 0.0) > oldest:
                return
            kept -= tape.size
            del self._tapes[tape.id]
