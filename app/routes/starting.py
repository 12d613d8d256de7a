"""What every route that generates shares: begin the tape, and wait for a whole answer."""

import asyncio
import hashlib
from collections.abc import Mapping
from math import inf
from typing import Any

import orjson
from pydantic import BaseModel

from app.caller import Caller
from app.errors import APIError, try_later
from app.schemas.ask import Ask
from app.schemas.sampling import LeavingFields, OnDisconnect
from app.services import Services
from app.settings import Settings
from app.tapes.plan import Plan, Terms
from app.tapes.tape import Claim, End, Tape

# How to read the tape, not what is on it.
_READING = {"stream", "stream_options"}


async def start(
    services: Services,
    caller: Caller,
    ask: Ask,
    key: str | None = None,
    *,
    streamed: bool = True,
    on_disconnect: OnDisconnect | None = None,
    origin: Mapping[str, Any] | None = None,
) -> Tape:
    """Admit the request and begin its tape, or find the one that it has begun. Raises APIError."""
    caller.tape = await _begun(
        services, caller, ask, key, streamed=streamed, on_disconnect=on_disconnect, origin=origin
    )
    return caller.tape


async def _begun(
    services: Services,
    caller: Caller,
    ask: Ask,
    key: str | None,
    *,
    streamed: bool,
    on_disconnect: OnDisconnect | None,
    origin: Mapping[str, Any] | None,
) -> Tape:
    """As `start`, which notes the tape for the request's line in the log."""
    fields = ask.fields
    claim = claim_of(caller, key, fields)
    if claim and (tape := await services.registry.claimed(claim)):
        return tape
    with services.limits.begin(caller.client, len(ask.prompts) * ask.n) as place:
        admitted = await services.admission.admit(ask, caller)
        plan = Plan(
            admitted.prompts,
            admitted.params,
            terms_of(services.settings, fields, on_disconnect),
            n=ask.n,
            priority=fields.priority,
            salt=f"{caller.owner}:{fields.cache_salt or ''}",  # others find nothing of it
            owner=caller.owner,
            client=caller.client,
            claim=claim,
            origin=origin,
        )
        tape = await services.registry.create(plan)
        place.hold(tape)
        if services.tracing:
            services.tracing.asked(tape, ask, admitted.params, streamed=streamed)
        return tape


def claim_of(caller: Caller, key: str | None, fields: BaseModel, of: str = "") -> Claim | None:
    """What this Idempotency-Key stands for: these fields, asked `of` a tape if of any."""
    return Claim(f"{caller.owner}:{key}", _digest(fields, of)) if key else None


def _digest(fields: BaseModel, of: str) -> bytes:
    asked = fields.model_dump(exclude=_READING) | ({"of": of} if of else {})
    options = orjson.OPT_SORT_KEYS | orjson.OPT_NON_STR_KEYS
    return hashlib.sha256(orjson.dumps(asked, option=options)).digest()


def terms_of(
    settings: Settings, fields: LeavingFields, on_disconnect: OnDisconnect | None = None
) -> Terms:
    return Terms(
        on_disconnect=on_disconnect or fields.on_disconnect,
        grace=settings.grace if fields.grace is None else fields.grace,
        timeout=fields.timeout,
        queue_timeout=settings.queue_timeout,
    )


async def whole(
    services: Services,
    caller: Caller,
    ask: Ask,
    key: str | None,
    *,
    origin: Mapping[str, Any] | None = None,
) -> tuple[Tape, End]:
    """The answer at once. Without a key nobody could fetch it later: it ends with its caller.

    Raises APIError when there is no whole answer to give.
    """
    leaving: OnDisconnect = "continue" if key else "abort"
    tape = await start(
        services, caller, ask, key, streamed=False, on_disconnect=leaving, origin=origin
    )
    services.registry.attach(tape)
    try:
        await _until_end_or_departure(tape, caller)
    finally:
        services.registry.detach(tape)
    end = await tape.ended()
    own = (ask.fields.timeout or inf) < services.settings.queue_timeout
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
