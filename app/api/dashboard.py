"""GET /v1/dash: what the operations page shows, as a stream of its own."""

from functools import partial
from typing import Annotated

from fastapi import APIRouter, Query
from starlette.responses import Response

from app.api import documented_frames
from app.api.documented_responses import refusals
from app.api.json_route import StrictJSONRoute
from app.caller import Caller
from app.guard.loopback import is_loopback
from app.readers.tape_response import EventStreamResponse
from app.services import CallerDep, ServicesDep

router = APIRouter(prefix="/v1/dash", route_class=StrictJSONRoute, tags=["operation"])


@router.get(
    "",
    response_class=Response,
    operation_id="watch",
    responses={200: {"content": documented_frames.DASH}, **refusals(422)},
)
async def watch(
    services: ServicesDep,
    caller: CallerDep,
    samples: Annotated[
        int | None, Query(ge=1, le=10, description="End after so many; without it, never.")
    ] = None,
) -> Response:
    """The last ten minutes, then once a second how the server does, and the caller's tapes."""
    turn = partial(services.turns.take, caller.client)
    return EventStreamResponse(
        services.dash.watch(_owner(caller), turn, samples),
        send_timeout=services.settings.send_timeout,
    )


def _owner(caller: Caller) -> str | None:
    """Whose tapes are shown. Without keys all, but to this machine only: who has a tape's id can
    read it and cancel it."""
    return caller.owner if caller.owner or is_loopback(caller.address) else None
