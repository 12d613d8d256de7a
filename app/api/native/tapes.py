"""/v1/tapes: start without reading, read from anywhere, look without reading, cancel."""

from typing import Annotated

from fastapi import APIRouter, Header, Path, Query
from starlette.responses import JSONResponse, Response

from app.api import documented_frames
from app.api.documented_responses import RESUMED, refusals, success
from app.api.json_route import StrictJSONRoute
from app.api.native import forking, frames
from app.api.native.fork_types import ForkBody, Forked
from app.api.native.frames import snapshot
from app.api.native.types import TapeBody, TapeCreated, TapeHeads, TapeSnapshot
from app.api.respond import IdempotencyKey, LastEventID, find, resume, start, stream
from app.errors import APIError
from app.readers.json_response import json_answer
from app.services import CallerDep, ServicesDep
from app.tapes.event_id import TAPE_ID, parse_position

TapeID = Annotated[str, Path(json_schema_extra={"pattern": f"^{TAPE_ID}$"})]

router = APIRouter(prefix="/v1/tapes", route_class=StrictJSONRoute, tags=["tapes"])


@router.post(
    "",
    status_code=201,
    response_model=TapeCreated,
    operation_id="create_tape",
    responses={
        200: {"description": "Resumed: the stream.", "content": documented_frames.NATIVE},
        **success(201, "read_tape", "cancel_tape"),
        **RESUMED,
        **refusals(404, 409, 422, 429, 503),
    },
)
async def create(
    body: TapeBody,
    services: ServicesDep,
    caller: CallerDep,
    last_event_id: LastEventID = None,
    idempotency_key: IdempotencyKey = None,
) -> Response:
    """Start a generation without reading it. The `Location` header holds the tape's address."""
    if last_event_id:
        return await resume(services, caller, last_event_id)
    tape = await start(services, caller, body, body.generation(), idempotency_key)
    return JSONResponse(
        {"tape": tape.id}, 201, headers={"Location": f"/v1/tapes/{tape.id}", "X-Tape": tape.id}
    )


@router.get(
    "/{tape_id}",
    response_model=TapeSnapshot,
    operation_id="read_tape",
    responses={
        **success(200, stream=documented_frames.NATIVE),
        204: {"description": "Its end was read already."},
        **refusals(404, 422),
    },
)
async def read(
    tape_id: TapeID,
    services: ServicesDep,
    caller: CallerDep,
    after: Annotated[int, Query(ge=0, description="Go on after this entry.")] = 0,
    last_event_id: LastEventID = None,
    accept: Annotated[str, Header(include_in_schema=False)] = "*/*",
) -> Response:
    """The tape as SSE, from its start or after an entry; as JSON, a snapshot of it as it is now."""
    tape = await find(services, caller, tape_id)
    if "application/json" in accept:
        return await json_answer(services.turns, tape, snapshot(tape))
    return stream(services, tape, _entry(last_event_id, tape_id, after))


@router.get(
    "/{tape_id}/heads",
    response_model=TapeHeads,
    operation_id="tape_heads",
    responses=refusals(404),
)
async def heads(tape_id: TapeID, services: ServicesDep, caller: CallerDep) -> Response:
    """Where the engine writes and where each reader reads, and what happened at which entry."""
    return JSONResponse(frames.heads(await find(services, caller, tape_id)))


@router.delete("/{tape_id}", status_code=204, operation_id="cancel_tape", responses=refusals(404))
async def cancel(tape_id: TapeID, services: ServicesDep, caller: CallerDep) -> Response:
    """End the generation; every reader gets the terminal frame."""
    await services.registry.end(await find(services, caller, tape_id))
    return Response(status_code=204)


@router.post(
    "/{tape_id}/fork",
    status_code=201,
    response_model=Forked,
    operation_id="fork_tape",
    responses={**success(201, "read_tape", "cancel_tape"), **refusals(404, 409, 422, 429, 503)},
)
async def fork(
    tape_id: TapeID,
    body: ForkBody,
    services: ServicesDep,
    caller: CallerDep,
    idempotency_key: IdempotencyKey = None,
) -> Response:
    """Start a new tape that begins with copies of this one's entries and goes on differently."""
    parent = await find(services, caller, tape_id)
    tape = caller.tape = await forking.fork(services, caller, parent, body, idempotency_key)
    return JSONResponse(
        {"tape": tape.id, "parent": tape.parent, "forked_at": tape.forked_at},
        201,
        headers={"Location": f"/v1/tapes/{tape.id}", "X-Tape": tape.id},
    )


def _entry(last_event_id: str | None, tape_id: str, after: int) -> int | None:
    """Last-Event-ID goes before `after`: an EventSource keeps its first URL when it reconnects.

    None is from the start, for who has nothing yet.
    """
    if not last_event_id:
        return after or None
    position = parse_position(last_event_id)
    if position.tape_id != tape_id:
        raise APIError(
            400,
            "Last-Event-ID names another tape than the path; read that tape at its own path",
            param="Last-Event-ID",
            code="malformed_id",
        )
    return position.entry
