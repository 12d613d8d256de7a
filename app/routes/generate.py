"""POST /generate and GET /generate: a prompt in, its continuation out, whole or as a stream."""

import asyncio
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Header, Query, Request
from starlette.responses import Response

from app.dialects.native import logprobs_data
from app.errors import APIError
from app.routes.body import StrictRoute
from app.routes.reading import LastEventID, resume, stream
from app.schemas.native import (
    ErrorBody,
    GenerateAnswer,
    GenerateBody,
    GenerateFields,
    GenerateQuery,
    OnDisconnect,
)
from app.security import refuse_cross_site
from app.services import Services, ServicesDep
from app.tapes.tape import Tape

router = APIRouter(route_class=StrictRoute, tags=["native"])

Responses = dict[int | str, dict[str, Any]]

REFUSALS: Responses = {status: {"model": ErrorBody} for status in (400, 415, 422, 429, 503)}
STREAM = {"content": {"text/event-stream": {"schema": {"type": "string"}}}}


@router.post(
    "/generate",
    response_model=GenerateAnswer,
    responses={200: STREAM, 204: {"description": "Resumed at its end."}, **REFUSALS},
)
async def generate(
    body: GenerateBody,
    request: Request,
    services: ServicesDep,
    last_event_id: LastEventID = None,
    accept: Annotated[str, Header()] = "*/*",
) -> Response | GenerateAnswer:
    """Continue a prompt. `stream: true`, or `Accept: text/event-stream`, streams the tokens."""
    if last_event_id:
        return resume(services, last_event_id)
    if body.stream or "text/event-stream" in accept:
        return stream(services, await start(services, body))
    return await _whole(services, body, request)


@router.get(
    "/generate",
    response_class=Response,
    dependencies=[Depends(refuse_cross_site)],
    responses={
        200: STREAM,
        204: {"description": "Resumed at its end."},
        403: {"model": ErrorBody},
        **REFUSALS,
    },
)
async def generate_stream(
    query: Annotated[GenerateQuery, Query()],
    services: ServicesDep,
    last_event_id: LastEventID = None,
) -> Response:
    """The same as a stream, for a browser's EventSource and for `curl -N`."""
    if last_event_id:
        return resume(services, last_event_id)
    return stream(services, await start(services, query))


async def start(
    services: Services, fields: GenerateFields, on_disconnect: OnDisconnect | None = None
) -> Tape:
    """Admit the request and begin its tape. Raises APIError."""
    admitted = await services.admission.admit(fields)
    return services.registry.create(
        admitted.prompt_ids,
        admitted.params,
        on_disconnect or fields.on_disconnect,
        fields.grace,
        priority=fields.priority,
        salt=fields.cache_salt or "",
    )


async def _whole(services: Services, body: GenerateBody, request: Request) -> GenerateAnswer:
    """The answer at once; nobody could fetch it later, so it is aborted when the caller leaves."""
    tape = await start(services, body, on_disconnect="abort")
    services.registry.attach(tape)
    try:
        await _until_end_or_departure(tape, request)
    finally:
        services.registry.detach(tape)
    end = await tape.ended()
    if end.finish_reason == "error":
        raise APIError(500, end.error or "the generation failed; try again", code="engine_error")
    return GenerateAnswer.model_validate(
        {
            "generated_text": tape.text,
            "finish_reason": end.finish_reason,
            "usage": end.usage,
            "timings": end.timings,
            "tape": tape.id,
            "logprobs": logprobs_data(tape.entries) or None,
        },
        from_attributes=True,
    )


async def _until_end_or_departure(tape: Tape, request: Request) -> None:
    tasks = (asyncio.create_task(tape.ended()), asyncio.create_task(_departure(request)))
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in tasks:
            task.cancel()


async def _departure(request: Request) -> None:
    """Return when the caller has closed the connection."""
    while (await request.receive())["type"] != "http.disconnect":
        pass
