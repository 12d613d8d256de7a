"""Where a reader stands: the SSE id `<tape>:<n>` says which tape, and the last entry it has."""

import re
from dataclasses import dataclass

from app.errors import APIError

TAPE_ID = "[A-Za-z0-9_-]{22}"
POSITION = f"({TAPE_ID}):(0|[1-9][0-9]{{0,9}})"
_ID = re.compile(POSITION)


@dataclass(frozen=True, slots=True)
class Position:
    tape_id: str
    entry: int

    def __str__(self) -> str:
        return f"{self.tape_id}:{self.entry}"


def parse_position(event_id: str) -> Position:
    """Raises APIError 400 when the id is not one that we sent."""
    match = _ID.fullmatch(event_id)
    if match is None:
        raise APIError(
            400,
            "Last-Event-ID is not '<tape>:<entry>'; send the id of the last frame you received",
            param="Last-Event-ID",
            code="malformed_id",
        )
    return Position(match[1], int(match[2]))
