"""/v1/responses: begin one, read it again from anywhere, cancel it."""

from functools import partial
from typing import Annotated, Any

from fastapi import APIRouter, Path, Query
from starlette.responses import Response

from app.api import documented_frames
from app.api.documented_responses import RESUMED, refusals, success
from app.api.json_pieces import text_of
from app.api.openai.answers import ResponseObject
from app.api.openai.responses_events import ITEM_PREFIX, ResponseForm, ResponsesDialect, response
from app.api.openai.responses_types import ResponseBody
from app.api.openai.route import REFUSALS, OpenAIRoute, check_model
from app.api.respond import IdempotencyKey, LastEventID, find, resume, start, stream, whole
from app.caller import Caller
from app.errors import APIError, context_exceeded, out_of_range
from app.readers.json_response import json_answer
from app.sampling_defaults import chosen
from app.services import CallerDep, Services, ServicesDep
from app.tapes.event_id import TAPE_ID
from app.tapes.generation_request import GenerationRequest
from app.tapes.plan import OnDisconnect
from app.tapes.tape import Tape
from model.protocol.messages import Message
from model.protocol.sampling_params import SamplingDefaults

router = APIRouter(prefix="/v1/responses", route_class=OpenAIRoute, tags=["openai"])

_PREFIX = "resp_"

ResponseID = Annotated[str, Path(json_schema_extra={"pattern": f"^{_PREFIX}{TAPE_ID}$"})]


@router.post(
    "",
    response_model=ResponseObject,
    operation_id="create_response",
    responses={
        **success(200, "retrieve_response", "cancel_response", stream=documented_frames.RESPONSE),
        **REFUSALS,
    },
)
async def create(
    body: ResponseBody,
    services: ServicesDep,
    caller: CallerDep,
    last_event_id: LastEventID = None,
    idempotency_key: IdempotencyKey = None,
) -> Response:
    """OpenAI's responses: whole, streamed as events, or in the background."""
    check_model(services, body.model)
    if last_event_id:
        return await resume(services, caller, last_event_id, partial(_dialect, services))
    _check_calls(services, body)
    earlier = await _earlier(services, caller, body)
    turns = [*earlier, *body.turns(await _referenced(services, caller, body))]
    request = body.generation(turns)
    context = _context(body, turns, request, services.admission.defaults)
    if body.background or body.stream:
        alone = body.background and "on_disconnect" not in body.model_fields_set
        leaving: OnDisconnect | None = "continue" if alone else None
        tape = await start(
            services,
            caller,
            body,
            request,
            idempotency_key,
            streamed=body.stream,
            on_disconnect=leaving,
            response_context=context,
        )
        if body.stream:
            return stream(services, tape, dialect=_dialect(services, tape))
    else:
        tape, _ = await whole(
            services, caller, body, request, idempotency_key, response_context=context
        )
    return await json_answer(services.turns, tape, response(tape, _form_of(services, tape)))


@router.get(
    "/{response_id}",
    response_model=ResponseObject,
    operation_id="retrieve_response",
    responses={**success(200, stream=documented_frames.RESPONSE), **RESUMED, **refusals(404)},
)
async def retrieve(
    response_id: ResponseID,
    services: ServicesDep,
    caller: CallerDep,
    stream_: Annotated[bool, Query(alias="stream", description="As events.")] = False,
    starting_after: Annotated[
        int | None, Query(ge=0, description="The sequence_number after which to go on.")
    ] = None,
    last_event_id: LastEventID = None,
) -> Response:
    """The response as it is now, or its events from the start or after one of them."""
    tape, form = await _stored(services, caller, response_id)
    if not stream_:
        return await json_answer(services.turns, tape, response(tape, form))
    if last_event_id:
        return await resume(services, caller, last_event_id, partial(_dialect, services))
    begun = -1 if starting_after is None else starting_after
    after = None if starting_after is None else 0  # events are not entries: it is told from all
    return stream(services, tape, after, dialect=ResponsesDialect(tape, form, begun))


@router.post(
    "/{response_id}/cancel",
    response_model=ResponseObject,
    operation_id="cancel_response",
    responses={**success(200), **refusals(404)},
)
async def cancel(response_id: ResponseID, services: ServicesDep, caller: CallerDep) -> Response:
    """End the generation; what it has brought forth stays. One that has ended stays as it is."""
    tape, form = await _stored(services, caller, response_id)
    await services.registry.end(tape)
    return await json_answer(services.turns, tape, response(tape, form))


async def _stored(
    services: Services, caller: Caller, response_id: str
) -> tuple[Tape, ResponseForm]:
    """Raises APIError 404 for one that is unknown, kept no longer, or was not to be stored."""
    tape = await find(services, caller, response_id.removeprefix(_PREFIX))
    form = _form_of(services, tape)
    if not form.stored or not response_id.startswith(_PREFIX):
        raise APIError(
            404, "no such response; it was made with store: false", code="response_not_found"
        )
    return tape, form


def _form_of(services: Services, tape: Tape) -> ResponseForm:
    if tape.response_context is None:
        raise APIError(
            404,
            f"this tape is no response; read it at /v1/tapes/{tape.id}",
            code="response_not_found",
        )
    return ResponseForm(
        services.model_name, services.admission.tokenizer.token_bytes, **tape.response_context
    )


async def _earlier(services: Services, caller: Caller, body: ResponseBody) -> list[Message]:
    """The conversation that is to go on. Raises APIError where it is not there."""
    if body.previous_response_id is None:
        return []
    tape, form = await _stored(services, caller, body.previous_response_id)
    _check_ended(tape, "previous_response_id")
    return [*form.conversation, {"role": "assistant", "content": text_of(tape.shown())}]


async def _referenced(services: Services, caller: Caller, body: ResponseBody) -> dict[str, str]:
    """The texts of the items that the input only names. Raises APIError where one is not there."""
    texts: dict[str, str] = {}
    tokens: dict[str, int] = {}
    total, context = 0, services.admission.context
    for item_id, param in body.references():
        if item_id not in texts:
            tape = await _tape_of_item(services, caller, item_id, param)
            _check_ended(tape, param)
            texts[item_id], tokens[item_id] = text_of(tape.shown()), tape.num_tokens
        total += tokens[item_id]
        if total > 2 * context:  # before all of it is put together
            message = f"the items that are referred to have {total} tokens. Leave some out"
            raise context_exceeded(param, context, message)
    return texts


async def _tape_of_item(services: Services, caller: Caller, item_id: str, param: str) -> Tape:
    try:
        if item_id.startswith(ITEM_PREFIX):
            response_id = _PREFIX + item_id.removeprefix(ITEM_PREFIX)
            return (await _stored(services, caller, response_id))[0]
    except APIError as error:
        if error.status_code != 404:
            raise
    raise APIError(
        404,
        f"{param}: no item '{item_id:.80}' is kept here. Messages of responses are kept for "
        f"{services.settings.tape_ttl:g} s (--tape-ttl) unless store is false; send the message "
        "itself, with its role and content",
        param=param,
        code="item_not_found",
    )


def _check_ended(tape: Tape, param: str) -> None:
    if tape.end is None:
        raise APIError(
            400,
            f"{param}: that response has not ended yet; retrieve it until it has",
            param=param,
            code="response_not_ended",
        )


def _check_calls(services: Services, body: ResponseBody) -> None:
    """Raises APIError where the model cannot be shown calls."""
    if body.has_calls and not services.admission.has_tools:
        raise out_of_range(
            "input",
            "this model's chat template has no tools; leave function_call and "
            "function_call_output out",
        )


def _context(
    body: ResponseBody, turns: list[Message], request: GenerationRequest, defaults: SamplingDefaults
) -> dict[str, Any]:
    """What a ResponseForm is made of later."""
    told = body.told(chosen(request.params, request.given, defaults))
    return {"conversation": turns, "request": told, "stored": body.store}


def _dialect(services: Services, tape: Tape) -> ResponsesDialect:
    return ResponsesDialect(tape, _form_of(services, tape))
