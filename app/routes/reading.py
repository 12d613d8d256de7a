"""What every streaming route shares: find the tape that a reader names, and stream it."""

from typing import Annotated

from fastapi import Header
from starlette.responses import Response

from app.dialects import native
from app.errors import APIError
from app.services import Services
from app.sse import TapeResponse
from app.tapes.position import parse_position
from app.tapes.tape import Tape

LastEventID = Annotated[
    str | None,
    Header(alias="Last-Event-ID", description="The id of the last frame received: go on after it."),
]

IdempotencyKey = Annotated[
    str | None,
    Header(
        alias="Idempotency-Key",
        min_length=1,
        max_length=255,
        description="The same key with the same request is the same tape, however often it comes.",
    ),
]


def find(services: Services, owner: str, tape_id: str) -> Tape:
    """Raises APIError 404 when there is no such tape, no longer, or it is somebody else's."""
    tape = services.registry.get(tape_id)
    if tape is None or tape.owner != owner:
        raise APIError(
            404,
            "no such tape; finished tapes are kept for "
            f"{services.settings.tape_ttl:g} s, start a new generation",
            code="tape_not_found",
        )
    return tape


def resume(services: Services, owner: str, event_id: str) -> Response:
    """Go on after the entry that a Last-Event-ID names; never starts a generation."""
    position = parse_position(event_id)
    return stream(services, find(services, owner, position.tape_id), position.entry)


def stream(services: Services, tape: Tape, after: int = 0) -> Response:
    """The tape as native SSE after entry `after`; 204 when the terminal entry was read already.

    204 makes a browser's EventSource stop. Raises APIError 400 when `after` is in the future.
    """
    if after > tape.last:
        raise APIError(
            400,
            f"entry {after} is in the future: this tape has {tape.last}",
            code="future_id",
        )
    if tape.end and after == tape.last:
        return Response(status_code=204)
    return TapeResponse(
        services.registry,
        tape,
        after,
        dialect=native,
        ping_interval=services.settings.ping_interval,
        send_timeout=services.settings.send_timeout,
    )
