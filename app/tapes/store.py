"""Where tapes are kept. One file per kind of store; memory.py is the default."""

from typing import Protocol

from app.tapes.tape import Tape


class TapeStore(Protocol):
    """Holds tapes by id. A running tape is never dropped; of others, `num_expired` were."""

    num_expired: int

    def add(self, tape: Tape) -> None: ...

    def get(self, tape_id: str) -> Tape | None:
        """The tape, or None if there is none of that id, or no longer."""

    def claimed(self, key: str) -> Tape | None:
        """The tape that was asked for with this Idempotency-Key, while it is kept."""

    def finished(self, tape: Tape) -> None:
        """The tape has its terminal entry: from now on it may be dropped."""

    def __len__(self) -> int:
        """How many there are, those that are too old not counted."""
