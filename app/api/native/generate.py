"""POST /generate and GET /generate: a prompt in, its continuation out, whole or as a stream."""

from typing import Annotated

from fastapi import APIRouter, Depends, Header, Query, Request
from starlette.responses import Response

from app.api import documented_frames
from app.api.documented_responses import RESUMED, refusals, success
from app.api.json_route import StrictJSONRoute
from app.api.native import frames as native
from app.api.native.frames import answer
from app.api.native.types import GenerateAnswer, GenerateBody, GenerateQuery
from app.api.respond import IdempotencyKey, LastEventID, respond, resume, start, stream
from app.guard.api_keys import refuse_cross_site
from app.guard.normal_requests import asks_for_head
from app.services import CallerDep, ServicesDep

router = APIRouter(route_class=StrictJSONRoute, tags=["native"])


@router.post(
    "/generate",
    response_model=GenerateAnswer,
    operation_id="generate",
    responses={
        **success(200, "read_tape", stream=documented_frames.NATIVE),
        **RESUMED,
        **refusals(404, 409, 422, 429, 503),
    },
)
async def generate(
    body: GenerateBody,
    services: ServicesDep,
    caller: CallerDep,
    last_event_id: LastEventID = None,
    idempotency_key: IdempotencyKey = None,
    accept: Annotated[str, Header(include_in_schema=False)] = "*/*",
) -> Response:
    """Answer a conversation, or continue a prompt.

    To stream the tokens, send `stream: true` or `Accept: text/event-stream`.
    """
    return await respond(
        services,
        caller,
        body,
        body.generation,
        last_event_id=last_event_id,
        key=idempotency_key,
        streamed=body.stream or "text/event-stream" in accept,
        dialect=lambda tape: native,
        answer=answer,
    )


@router.get(
    "/generate",
    response_class=Response,
    dependencies=[Depends(refuse_cross_site)],
    operation_id="stream",
    responses={
        **success(200, stream=documented_frames.NATIVE),
        **RESUMED,
        **refusals(403, 404, 422, 429, 503),
    },
)
async def generate_stream(
    query: Annotated[GenerateQuery, Query()],
    request: Request,
    services: ServicesDep,
    caller: CallerDep,
    last_event_id: LastEventID = None,
) -> Response:
    """The same as a stream, for a browser's EventSource and for `curl -N`."""
    if last_event_id:
        return await resume(services, caller, last_event_id)
    if asks_for_head(request.scope):
        return Response(media_type="text/event-stream")
    return stream(services, await start(services, caller, query, query.generation()))
