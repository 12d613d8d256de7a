"""POST /tokenize and POST /detokenize: what the model reads a text as."""

import asyncio
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

import orjson
from fastapi import APIRouter
from starlette.responses import Response

from app.routes.answers import refusals
from app.routes.body import StrictRoute
from app.routes.openai import check_model
from app.schemas.tokens import (
    DetokenizeAnswer,
    DetokenizeBody,
    TokenizeAnswer,
    TokenizeBody,
)
from app.services import CallerDep, ServicesDep

_AT_ONCE = 2048

router = APIRouter(route_class=StrictRoute, tags=["tokens"])


@router.post(
    "/tokenize",
    response_model=TokenizeAnswer,
    operation_id="tokenize",
    responses=refusals(404, 422),
)
async def tokenize(body: TokenizeBody, services: ServicesDep, caller: CallerDep) -> Any:
    """The token ids of a text, or of a conversation as the model is shown it, and their texts."""
    check_model(services, body.model)
    ids = await services.admission.encode(body.asked())
    content = b'{"tokens":%b,"pieces":%b,"count":%d,"max_model_len":%d}' % (
        await _written(ids),
        await _written(ids, cache(services.admission.tokenizer.piece)),
        len(ids),
        services.admission.context,
    )
    return Response(content, media_type="application/json")


async def _written(ids: Sequence[int], shown: Callable[[int], int | str] = int) -> bytes:
    """A JSON list, a part at a time: of a megabyte there may be a million tokens."""
    parts = []
    for start in range(0, len(ids), _AT_ONCE):
        values = [shown(token_id) for token_id in ids[start : start + _AT_ONCE]]
        parts.append(orjson.dumps(values)[1:-1])
        await asyncio.sleep(0)  # whoever waits has a turn
    return b"[%b]" % b",".join(parts)


@router.post(
    "/detokenize",
    response_model=DetokenizeAnswer,
    operation_id="detokenize",
    responses=refusals(404, 422),
)
async def detokenize(body: DetokenizeBody, services: ServicesDep, caller: CallerDep) -> Any:
    """The text of token ids."""
    check_model(services, body.model)
    services.admission.check_ids(body.tokens, "tokens")
    decode = services.admission.tokenizer.decode
    return {"prompt": await asyncio.to_thread(decode, body.tokens, skip_special=False)}
