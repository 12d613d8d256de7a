"""POST /generate and GET /generate: a prompt in, its continuation out, whole or as a stream."""

import asyncio
import hashlib
from typing import Annotated, Any

import orjson
from fastapi import APIRouter, Depends, Header, Query, Request
from starlette.responses import Response

from app.dialects.native import logprobs_data
from app.errors import APIError, try_later
from app.routes.body import StrictRoute
from app.routes.reading import IdempotencyKey, LastEventID, resume, stream
from app.schemas.native import (
    ErrorBody,
    GenerateAnswer,
    GenerateBody,
    GenerateFields,
    GenerateQuery,
    OnDisconnect,
)
from app.security import refuse_cross_site
from app.services import OwnerDep, Services, ServicesDep
from app.settings import Settings
from app.tapes.registry import Terms
from app.tapes.tape import Claim, End, Tape

router = APIRouter(route_class=StrictRoute, tags=["native"])

Responses = dict[int | str, dict[str, Any]]

REFUSALS: Responses = {
    status: {"model": ErrorBody} for status in (400, 401, 409, 415, 422, 429, 503)
}
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
    owner: OwnerDep,
    last_event_id: LastEventID = None,
    idempotency_key: IdempotencyKey = None,
    accept: Annotated[str, Header()] = "*/*",
) -> Response | GenerateAnswer:
    """Continue a prompt. `stream: true`, or `Accept: text/event-stream`, streams the tokens."""
    if last_event_id:
        return resume(services, owner, last_event_id)
    if body.stream or "text/event-stream" in accept:
        return stream(services, await start(services, owner, body, idempotency_key))
    return await _whole(services, owner, body, idempotency_key, request)


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
    owner: OwnerDep,
    last_event_id: LastEventID = None,
) -> Response:
    """The same as a stream, for a browser's EventSource and for `curl -N`."""
    if last_event_id:
        return resume(services, owner, last_event_id)
    return stream(services, await start(services, owner, query))


async def start(
    services: Services,
    owner: str,
    fields: GenerateFields,
    key: str | None = None,
    *,
    on_disconnect: OnDisconnect | None = None,
) -> Tape:
    """Admit the request and begin its tape, or find the one that it has begun. Raises APIError."""
    claim = Claim(f"{owner}:{key}", _digest(fields)) if key else None
    if claim and (tape := services.registry.claimed(claim)):
        return tape
    admitted = await services.admission.admit(fields)
    if claim and (tape := services.registry.claimed(claim)):  # begun while this one was tokenized
        return tape
    return services.registry.create(
        admitted.prompt_ids,
        admitted.params,
        _terms(services.settings, fields, on_disconnect),
        priority=fields.priority,
        salt=f"{owner}:{fields.cache_salt or ''}",  # what another key has cached is not found
        owner=owner,
        claim=claim,
    )


def _digest(fields: GenerateFields) -> bytes:
    """Of what is asked for. `stream` is not: it says how to read the tape, not what is on it."""
    asked = fields.model_dump(exclude={"stream"})
    options = orjson.OPT_SORT_KEYS | orjson.OPT_NON_STR_KEYS
    return hashlib.sha256(orjson.dumps(asked, option=options)).digest()


def _terms(settings: Settings, fields: GenerateFields, on_disconnect: OnDisconnect | None) -> Terms:
    return Terms(
        on_disconnect=on_disconnect or fields.on_disconnect,
        grace=settings.grace if fields.grace is None else fields.grace,
        timeout=fields.timeout,
        queue_timeout=settings.queue_timeout,
    )


async def _whole(
    services: Services, owner: str, body: GenerateBody, key: str | None, request: Request
) -> GenerateAnswer:
    """The answer at once. Without a key nobody could fetch it later: it ends with its caller."""
    leaving: OnDisconnect = "continue" if key else "abort"
    tape = await start(services, owner, body, key, on_disconnect=leaving)
    services.registry.attach(tape)
    try:
        await _until_end_or_departure(tape, request)
    finally:
        services.registry.detach(tape)
    end = await tape.ended()
    _check_whole(tape, end)
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


def _check_whole(tape: Tape, end: End) -> None:
    """Raises APIError when there is no whole answer to give."""
    if end.finish_reason == "error":
        raise APIError(500, end.error or "the generation failed; try again", code="engine_error")
    if end.finish_reason == "timeout" and not tape.output_ids:
        raise try_later(503, end.error or "it timed out", code="timeout")
    if tape.num_dropped:
        raise APIError(
            500,
            "the answer outgrew --max-tape-memory; stream it, or ask for fewer logprobs",
            code="tape_too_large",
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
