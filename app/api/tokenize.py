"""POST /tokenize and POST /detokenize: what the model reads a text as."""

from typing import Any

from fastapi import APIRouter
from starlette.responses import Response

from app.api.documented_responses import refusals
from app.api.json_route import StrictJSONRoute
from app.api.openai.route import check_model
from app.api.tokenize_types import (
    DetokenizeAnswer,
    DetokenizeBody,
    TokenizeAnswer,
    TokenizeBody,
)
from app.services import CallerDep, ServicesDep

router = APIRouter(route_class=StrictJSONRoute, tags=["tokens"])


@router.post(
    "/tokenize",
    response_model=TokenizeAnswer,
    operation_id="tokenize",
    responses=refusals(404, 422),
)
async def tokenize(body: TokenizeBody, services: ServicesDep, caller: CallerDep) -> Any:
    """The token ids of a text, or of a conversation as the model is shown it, and their texts."""
    check_model(services, body.model)
    name = "prompt" if body.messages is None else "messages"
    tokenized = await services.admission.tokenized(body.asked(), name, caller)
    content = b'{"tokens":%b,"pieces":%b,"count":%d,"max_model_len":%d}' % (
        tokenized.ids,
        tokenized.pieces,
        tokenized.count,
        services.admission.context,
    )
    return Response(content, media_type="application/json")


@router.post(
    "/detokenize",
    response_model=DetokenizeAnswer,
    operation_id="detokenize",
    responses=refusals(404, 422),
)
async def detokenize(body: DetokenizeBody, services: ServicesDep, caller: CallerDep) -> Any:
    """The text of token ids."""
    check_model(services, body.model)
    texts = await services.admission.texts_of([body.tokens], "tokens", caller, skip_special=False)
    return {"prompt": texts[0]}
