"""POST /v1/completions: texts or token ids in, their continuations out."""

from fastapi import APIRouter, Request
from starlette.responses import JSONResponse, Response

from app.dialects.openai_completions import CompletionForm, CompletionStream, completion
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
    request: Request,
    services: ServicesDep,
    caller: CallerDep,
    last_event_id: LastEventID = None,
    idempotency_key: IdempotencyKey = None,
) -> Response:
    """OpenAI's completions, with `stream: true` as chunks."""
    check_model(services, body.model)
    form = _form(services, body)
    if last_event_id:
        tape, after = await reached(services, caller, last_event_id)
        return stream(services, tape, after, dialect=CompletionStream(tape, form))
    if body.stream:
        tape = await start(services, caller, body.ask(), idempotency_key)
        return stream(services, tape, dialect=CompletionStream(tape, form))
    tape, end = await whole(services, caller, body.ask(), idempotency_key, request)
    check_end(end)
    return JSONResponse(completion(tape, end, form), headers={"X-Tape": tape.id})


def _form(services: Services, body: CompletionBody) -> CompletionForm:
    return CompletionForm(
        services.model_name,
        echo=_echo(services, body) if body.echo else (),
        include_usage=body.stream_options.include_usage,
    )


def _echo(services: Services, body: CompletionBody) -> list[str]:
    """What the text of each choice begins with."""
    return [_text(services, prompt) for prompt in body.prompt for _ in range(body.n)]


def _text(services: Services, prompt: str | list[int]) -> str:
    return prompt if isinstance(prompt, str) else services.admission.tokenizer.decode(prompt)
