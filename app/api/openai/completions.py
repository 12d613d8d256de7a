"""POST /v1/completions: texts or token ids in, their continuations out."""

from collections.abc import Iterator

from fastapi import APIRouter
from starlette.responses import Response

from app.api import documented_frames
from app.api.documented_responses import success
from app.api.openai.answers import Completion
from app.api.openai.completions_chunks import CompletionForm, CompletionsDialect, completion
from app.api.openai.completions_types import CompletionBody
from app.api.openai.route import REFUSALS, OpenAIRoute, check_end, check_model
from app.api.respond import IdempotencyKey, LastEventID, respond
from app.caller import Caller
from app.services import CallerDep, Services, ServicesDep
from app.tapes.tape import End, Tape

router = APIRouter(prefix="/v1/completions", route_class=OpenAIRoute, tags=["openai"])


@router.post(
    "",
    response_model=Completion,
    operation_id="complete",
    responses={**success(200, stream=documented_frames.COMPLETION), **REFUSALS},
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

    def answer(tape: Tape, end: End) -> Iterator[bytes]:
        check_end(end)
        return completion(tape, end, form)

    return await respond(
        services,
        caller,
        body,
        body.generation,
        last_event_id=last_event_id,
        key=idempotency_key,
        streamed=body.stream,
        dialect=lambda tape: CompletionsDialect(tape, form),
        answer=answer,
    )


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
