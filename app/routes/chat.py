"""POST /v1/chat/completions: a conversation in, the model's next turn out."""

from fastapi import APIRouter
from starlette.responses import Response

from app.dialects import tool_calls
from app.dialects.openai_chat import ChatForm, ChatStream, completion
from app.errors import out_of_range
from app.json_answer import json_answer
from app.routes.answers import success
from app.routes.openai import REFUSALS, OpenAIRoute, check_end, check_model
from app.routes.reading import IdempotencyKey, LastEventID, reached, stream
from app.routes.starting import start, whole
from app.schemas import frames
from app.schemas.ask import Ask
from app.schemas.openai import grammar_of
from app.schemas.openai_answers import ChatCompletion
from app.schemas.openai_chat import ChatBody
from app.services import CallerDep, Services, ServicesDep
from model.messages import ForcedCalls

router = APIRouter(prefix="/v1/chat/completions", route_class=OpenAIRoute, tags=["openai"])


@router.post(
    "",
    response_model=ChatCompletion,
    operation_id="chat",
    responses={**success(200, stream=frames.CHAT), **REFUSALS},
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
    if last_event_id:
        tape, after = await reached(services, caller, last_event_id)
        return stream(services, tape, after, dialect=ChatStream(tape, form))
    if body.stream:
        tape = await start(services, caller, _ask(body), idempotency_key)
        return stream(services, tape, dialect=ChatStream(tape, form))
    tape, end = await whole(services, caller, _ask(body), idempotency_key)
    check_end(end)
    return await json_answer(services, tape, completion(tape, end, form))


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


def _ask(body: ChatBody) -> Ask:
    grammar = _forced_call(body) or grammar_of(body.response_format)
    return body.ask(body.conversation(), grammar)


def _forced_call(body: ChatBody) -> ForcedCalls | None:
    functions = [(one.name, one.parameters) for one in body.forced_tools]
    if not functions:
        return None
    named = body.tool_choice != "required"
    several = body.parallel_tool_calls and not named
    return ForcedCalls(functions, tool_calls.OPEN, tool_calls.CLOSE, several)
