"""Where tapes are kept. One file per kind of store; memory.py is the default."""

from typing import Protocol

from app.tapes.tape import Tape


class TapeStore(Protocol):
    """Holds tapes by id. A running tape is never dropped."""

    def add(self, tape: Tape) -> None: ...

    def get(self, tape_id: str) -> Tape | None:
        """The tape, or None if there is none of that id, or no longer."""

    def expire(self) -> None:
        """Drop what is too old or too much."""

    def __len__(self) -> int: ...
