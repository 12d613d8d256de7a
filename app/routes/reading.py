"""What every streaming route shares: find the tape that a reader names, and stream it."""

from typing import Annotated

from fastapi import Header
from pydantic import AfterValidator
from starlette.responses import Response

from app.caller import Caller
from app.dialects import native
from app.errors import APIError
from app.services import Services
from app.sse import Dialect, TapeResponse
from app.tapes.position import POSITION, parse_position
from app.tapes.tape import Tape


def _checked(event_id: str | None) -> str | None:
    """Refused here, it is refused on every route, also where there is nothing to go on with."""
    if event_id:
        parse_position(event_id)
    return event_id


LastEventID = Annotated[
    str | None,
    AfterValidator(_checked),
    Header(
        alias="Last-Event-ID",
        description="The id of the last frame received: go on after it. An empty one is none.",
        json_schema_extra={"pattern": f"^({POSITION})?$"},
    ),
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


async def find(services: Services, caller: Caller, tape_id: str) -> Tape:
    """Raises APIError 404 when there is no such tape, no longer, or it is somebody else's."""
    tape = await services.registry.get(tape_id)
    if tape is None or tape.owner != caller.owner:
        raise APIError(
            404,
            "no such tape; finished tapes are kept for "
            f"{services.settings.tape_ttl:g} s, start a new generation",
            code="tape_not_found",
        )
    caller.tape = tape
    return tape


async def resume(services: Services, caller: Caller, event_id: str) -> Response:
    """Go on after the entry that a Last-Event-ID names; never starts a generation."""
    tape, after = await reached(services, caller, event_id)
    return stream(services, tape, after)


async def reached(services: Services, caller: Caller, event_id: str) -> tuple[Tape, int]:
    """The tape that a Last-Event-ID names, and the entry. Raises APIError."""
    position = parse_position(event_id)
    return await find(services, caller, position.tape_id), position.entry


def stream(
    services: Services, tape: Tape, after: int | None = None, *, dialect: Dialect = native
) -> Response:
    """The tape as SSE, from its start or, resumed, after an entry that its reader has.

    204 when that is the terminal entry, which makes a browser's EventSource stop. Raises APIError
    400 when it is in the future, and 429 when too many read already.
    """
    if after is not None and after > tape.last:
        raise APIError(
            400,
            f"entry {after} is in the future: this tape has {tape.last}",
            code="future_id",
        )
    if tape.has_ended and after == tape.last:
        return Response(status_code=204)
    services.registry.check_readers(tape)
    return TapeResponse(
        services.registry,
        tape,
        after,
        metrics=services.metrics,
        turns=services.turns,
        cache=services.frame_cache,
        dialect=dialect,
        ping_interval=services.settings.ping_interval,
        send_timeout=services.settings.send_timeout,
    )
