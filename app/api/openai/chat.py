"""POST /v1/chat/completions: a conversation in, the model's next turn out."""

from collections.abc import Iterator

from fastapi import APIRouter
from starlette.responses import Response

from app.api import documented_frames
from app.api.documented_responses import success
from app.api.openai.answers import ChatCompletion
from app.api.openai.chat_chunks import ChatDialect, ChatForm, completion
from app.api.openai.chat_types import ChatBody
from app.api.openai.route import REFUSALS, OpenAIRoute, check_end, check_model
from app.api.respond import IdempotencyKey, LastEventID, respond
from app.errors import out_of_range
from app.services import CallerDep, Services, ServicesDep
from app.tapes.tape import End, Tape
from model.protocol.messages import ForcedCalls
from model.text import tool_calls

router = APIRouter(prefix="/v1/chat/completions", route_class=OpenAIRoute, tags=["openai"])


@router.post(
    "",
    response_model=ChatCompletion,
    operation_id="chat",
    responses={**success(200, stream=documented_frames.CHAT), **REFUSALS},
)
async def chat(
    body: ChatBody,
    services: ServicesDep,
    caller: CallerDep,
    last_event_id: LastEventID = None,
    idempotency_key: IdempotencyKey = None,
) -> Response:
    """OpenAI's chat completions, with `stream: true` as chunks."""
    check_model(services, body.model)
    _check_tools(services, body)
    form = _form(services, body)

    def answer(tape: Tape, end: End) -> Iterator[bytes]:
        check_end(end)
        return completion(tape, end, form)

    return await respond(
        services,
        caller,
        body,
        lambda: body.generation(_forced_calls(body)),
        last_event_id=last_event_id,
        key=idempotency_key,
        streamed=body.stream,
        dialect=lambda tape: ChatDialect(tape, form),
        answer=answer,
    )


def _check_tools(services: Services, body: ChatBody) -> None:
    """Raises APIError where the model has none."""
    if body.tools and not services.admission.has_tools:
        raise out_of_range(
            "tools",
            "this model's chat template has no tools, or calls them in a way not read here; "
            "leave tools out",
        )


def _form(services: Services, body: ChatBody) -> ChatForm:
    return ChatForm(
        services.model_name,
        services.admission.tokenizer.token_bytes,
        tools=bool(body.tools) and body.tool_choice != "none",
        include_usage=body.stream_options.include_usage,
    )


def _forced_calls(body: ChatBody) -> ForcedCalls | None:
    functions = [(one.name, one.parameters) for one in body.forced_tools]
    if not functions:
        return None
    named = body.tool_choice != "required"
    several = body.parallel_tool_calls and not named
    return ForcedCalls(functions, tool_calls.OPEN, tool_calls.CLOSE, several)
