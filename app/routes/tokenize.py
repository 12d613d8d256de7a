"""POST /tokenize and POST /detokenize: what the model reads a text as."""

import asyncio
from typing import Any

import orjson
from fastapi import APIRouter
from starlette.responses import Response

from app.routes.answers import refusals
from app.routes.body import StrictRoute
from app.schemas.tokens import (
    DetokenizeAnswer,
    DetokenizeBody,
    TokenizeAnswer,
    TokenizeBody,
)
from app.services import CallerDep, Services, ServicesDep

router = APIRouter(route_class=StrictRoute, tags=["tokens"])


@router.post(
    "/tokenize", response_model=TokenizeAnswer, operation_id="tokenize", responses=refusals(422)
)
async def tokenize(body: TokenizeBody, services: ServicesDep, caller: CallerDep) -> Any:
    """The token ids of a text, or of a conversation as the model is shown it, and their texts."""
    ids = await services.admission.encode(body.asked())
    return await asyncio.to_thread(_answer, services, ids)


def _answer(services: Services, ids: list[int]) -> Response:
    """Written by itself: a megabyte of text is 250,000 tokens, too many to be checked again."""
    pieces = {token_id: services.admission.tokenizer.piece(token_id) for token_id in set(ids)}
    answer = {
        "tokens": ids,
        "pieces": [pieces[token_id] for token_id in ids],
        "count": len(ids),
        "max_model_len": services.admission.context,
    }
    return Response(orjson.dumps(answer), media_type="application/json")


@router.post(
    "/detokenize",
    response_model=DetokenizeAnswer,
    operation_id="detokenize",
    responses=refusals(422),
)
async def detokenize(body: DetokenizeBody, services: ServicesDep, caller: CallerDep) -> Any:
    """The text of token ids."""
    services.admission.check_ids(body.tokens, "tokens")
    decode = services.admission.tokenizer.decode
    return {"prompt": await asyncio.to_thread(decode, body.tokens, skip_special=False)}
