"""POST /v1/completions: texts or token ids in, their continuations out."""

from fastapi import APIRouter
from starlette.responses import Response

from app.caller import Caller
from app.dialects.openai_completions import CompletionForm, CompletionStream, completion
from app.json_answer import json_answer
from app.routes.answers import success
from app.routes.openai import REFUSALS, OpenAIRoute, check_end, check_model
from app.routes.reading import IdempotencyKey, LastEventID, reached, stream
from app.routes.starting import start, whole
from app.schemas import frames
from app.schemas.openai_answers import Completion
from app.schemas.openai_completions import CompletionBody
from app.services import CallerDep, Services, ServicesDep

router = APIRouter(prefix="/v1/completions", route_class=OpenAIRoute, tags=["openai"])


@router.post(
    "",
    response_model=Completion,
    operation_id="complete",
    responses={**success(200, stream=frames.COMPLETION), **REFUSALS},
)
async def complete(
    body: CompletionBody,
    services: ServicesDep,
    caller: CallerDep,
    last_event_id: LastEventID = None,
    idempotency_key: IdempotencyKey = None,
) -> Response:
    """OpenAI's completions, with `stream: true` as chunks."""
    check_model(services, body.model)
    form = await _form(services, caller, body)
    if last_event_id:
        tape, after = await reached(services, caller, last_event_id)
        return stream(services, tape, after, dialect=CompletionStream(tape, form))
    if body.stream:
        tape = await start(services, caller, body.ask(), idempotency_key)
        return stream(services, tape, dialect=CompletionStream(tape, form))
    tape, end = await whole(services, caller, body.ask(), idempotency_key)
    check_end(end)
    return await json_answer(services, tape, completion(tape, end, form))


async def _form(services: Services, caller: Caller, body: CompletionBody) -> CompletionForm:
    return CompletionForm(
        services.model_name,
        echo=await _echo(services, caller, body) if body.echo else (),
        include_usage=body.stream_options.include_usage,
    )


async def _echo(services: Services, caller: Caller, body: CompletionBody) -> list[str]:
    """What the text of each choice begins with."""
    texts = await services.admission.echo(body.prompt, caller)
    return [text for text in texts for _ in range(body.n)]
