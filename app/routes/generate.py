"""POST /generate and GET /generate: a prompt in, its continuation out, whole or as a stream."""

from typing import Annotated

from fastapi import APIRouter, Depends, Header, Query, Request
from starlette.responses import Response

from app.dialects.native import answer
from app.json_answer import json_answer
from app.normal_requests import asks_for_head
from app.routes.answers import RESUMED, refusals, success
from app.routes.body import StrictRoute
from app.routes.reading import IdempotencyKey, LastEventID, resume, stream
from app.routes.starting import start, whole
from app.schemas import frames
from app.schemas.native import GenerateAnswer, GenerateBody, GenerateQuery
from app.security import refuse_cross_site
from app.services import CallerDep, ServicesDep

router = APIRouter(route_class=StrictRoute, tags=["native"])


@router.post(
    "/generate",
    response_model=GenerateAnswer,
    operation_id="generate",
    responses={
        **success(200, "read_tape", stream=frames.NATIVE),
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
    if last_event_id:
        return await resume(services, caller, last_event_id)
    if body.stream or "text/event-stream" in accept:
        return stream(services, await start(services, caller, body.ask(), idempotency_key))
    tape, end = await whole(services, caller, body.ask(), idempotency_key)
    return await json_answer(services, tape, answer(tape, end))


@router.get(
    "/generate",
    response_class=Response,
    dependencies=[Depends(refuse_cross_site)],
    operation_id="stream",
    responses={
        **success(200, stream=frames.NATIVE),
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
    return stream(services, await start(services, caller, query.ask()))
