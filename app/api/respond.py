"""How every dialect answers: go on with a tape, stream a new one, or wait for its end."""

import asyncio
import hashlib
from collections.abc import Callable, Iterator, Mapping
from math import inf
from typing import Annotated, Any

import orjson
from fastapi import Header
from pydantic import AfterValidator, BaseModel
from starlette.responses import Response

from app.api.native import frames as native
from app.api.sampling_fields import LeavingFields
from app.caller import Caller
from app.errors import APIError, try_later
from app.readers.json_response import json_answer
from app.readers.tape_response import Dialect, TapeResponse
from app.services import Services
from app.settings import Settings
from app.tapes.event_id import POSITION, parse_position
from app.tapes.generation_request import GenerationRequest
from app.tapes.plan import OnDisconnect, Plan, ReaderPolicy
from app.tapes.tape import End, IdempotencyClaim, Tape

# How to read the tape, not what is on it.
_READING = {"stream", "stream_options"}


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


async def respond(
    services: Services,
    caller: Caller,
    body: LeavingFields,
    generation: Callable[[], GenerationRequest],
    *,
    last_event_id: str | None,
    key: str | None,
    streamed: bool,
    dialect: Callable[[Tape], Dialect],
    answer: Callable[[Tape, End], Iterator[bytes]],
) -> Response:
    """The response to a POST that generates. Raises APIError.

    With `last_event_id` nothing new begins, and `generation`, what the body asks for, is not made.
    `answer` is the whole answer as JSON, in pieces.
    """
    if last_event_id:
        return await resume(services, caller, last_event_id, dialect)
    if streamed:
        tape = await start(services, caller, body, generation(), key)
        return stream(services, tape, dialect=dialect(tape))
    tape, end = await whole(services, caller, body, generation(), key)
    return await json_answer(services.turns, tape, answer(tape, end))


# ---- tapes that there are


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


async def resume(
    services: Services,
    caller: Caller,
    event_id: str,
    dialect: Callable[[Tape], Dialect] = lambda tape: native,
) -> Response:
    """Go on after the entry that a Last-Event-ID names. Raises APIError."""
    position = parse_position(event_id)
    tape = await find(services, caller, position.tape_id)
    return stream(services, tape, position.entry, dialect=dialect(tape))


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


# ---- new tapes


async def start(
    services: Services,
    caller: Caller,
    body: LeavingFields,
    request: GenerationRequest,
    key: str | None = None,
    *,
    streamed: bool = True,
    on_disconnect: OnDisconnect | None = None,
    response_context: Mapping[str, Any] | None = None,
) -> Tape:
    """Admit the request and begin its tape, or find the one that it has begun. Raises APIError.

    `body` is the request as it was sent: the same one with the same `key` is the same tape.
    `on_disconnect` goes before what the body says.
    """
    claim = claim_of(caller, key, body)
    if claim and (tape := await services.registry.claimed(claim)):
        caller.tape = tape
        return tape
    with services.limits.begin(caller.client, request.num_choices) as place:
        prompts, params = await services.admission.admit(request, caller)
        plan = Plan(
            prompts,
            params,
            policy_of(services.settings, body, on_disconnect),
            n=request.n,
            priority=request.priority,
            salt=f"{caller.owner}:{request.cache_salt}",  # others find nothing of it
            owner=caller.owner,
            client=caller.client,
            claim=claim,
            response_context=response_context,
        )
        tape = caller.tape = await services.registry.create(plan)
        place.hold(tape)
        if services.tracing:
            services.tracing.asked(tape, request, params, streamed=streamed)
        return tape


def claim_of(
    caller: Caller, key: str | None, body: BaseModel, of: str = ""
) -> IdempotencyClaim | None:
    """What this Idempotency-Key stands for: this body, sent `of` a tape if of any."""
    return IdempotencyClaim(f"{caller.owner}:{key}", _digest(body, of)) if key else None


def _digest(body: BaseModel, of: str) -> bytes:
    asked = body.model_dump(exclude=_READING) | ({"of": of} if of else {})
    options = orjson.OPT_SORT_KEYS | orjson.OPT_NON_STR_KEYS
    return hashlib.sha256(orjson.dumps(asked, option=options)).digest()


def policy_of(
    settings: Settings, body: LeavingFields, on_disconnect: OnDisconnect | None = None
) -> ReaderPolicy:
    return ReaderPolicy(
        on_disconnect=on_disconnect or body.on_disconnect,
        grace=settings.grace if body.grace is None else body.grace,
        timeout=body.timeout,
        queue_timeout=settings.queue_timeout,
    )


async def whole(
    services: Services,
    caller: Caller,
    body: LeavingFields,
    request: GenerationRequest,
    key: str | None,
    *,
    response_context: Mapping[str, Any] | None = None,
) -> tuple[Tape, End]:
    """The answer at once. Without a key nobody could fetch it later: it ends with its caller.

    Raises APIError when there is no whole answer to give.
    """
    tape = await start(
        services,
        caller,
        body,
        request,
        key,
        streamed=False,
        on_disconnect="continue" if key else "abort",
        response_context=response_context,
    )
    services.registry.add_reader(tape)
    try:
        await _until_end_or_departure(tape, caller)
    finally:
        services.registry.remove_reader(tape)
    end = await tape.ended()
    own = (body.timeout or inf) < services.settings.queue_timeout
    _check_whole(tape, end, own_timeout=own)
    return tape, end


def _check_whole(tape: Tape, end: End, *, own_timeout: bool) -> None:
    """No token at all is an answer, too, to who gave it no more time."""
    if end.finish_reason == "error":
        raise APIError(500, end.error or "the generation failed; try again", code="engine_error")
    if end.finish_reason == "timeout" and not tape.num_tokens and not own_timeout:
        raise try_later(503, end.error or "it timed out", code="timeout")
    if tape.num_dropped:  # a client that tries again by itself shall not do so here
        raise APIError(
            422,
            "the answer outgrew --max-tape-memory; stream it, or ask for less: fewer logprobs, "
            "choices or tokens",
            code="tape_too_large",
        )


async def _until_end_or_departure(tape: Tape, caller: Caller) -> None:
    tasks = (asyncio.create_task(tape.ended()), asyncio.create_task(caller.leaves()))
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in tasks:
            task.cancel()
