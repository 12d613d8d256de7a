"""/openapi.json: what FastAPI tells of the routes, and what only the running server knows.

Its model's numbers bound what is asked for, keys are wanted or not, and what lies before the
routes may refuse any request.
"""

from functools import cache
from typing import Any

import orjson
from fastapi import FastAPI, Request
from starlette.responses import Response

from app.api.documented_frames import DEFINITIONS
from app.api.documented_responses import refusals
from app.api.validation import MODEL_LIMIT
from app.services import Services, services_of

Object = dict[str, Any]

_ANYWHERE = (400, 414, 421, 431, 500)
_WITH_A_BODY = (408, 413, 415)
_WITH_A_KEY = (401,)

# Of every answer: app/observability/access_log.py.
_REQUEST_ID = {
    "X-Request-Id": {
        "description": "What the log calls this request: the one that was sent, or a new one.",
        "required": True,
        "schema": {"type": "string", "pattern": "^[A-Za-z0-9._:/+=@~-]{1,128}$"},
    }
}

# FastAPI's own idea of a 422, on every route that has a parameter.
_NOT_OURS = ("HTTPValidationError", "ValidationError")


def install(app: FastAPI) -> None:
    """Have `app` serve the document of its services.

    It is made and written once: what it tells does not change while the server runs, and to make
    it takes 40 ms.
    """
    plain = app.openapi

    def described() -> Object:
        return _document(plain(), app.state.services)

    @cache
    def written() -> bytes:
        return orjson.dumps(described())

    app.openapi_url = "/openapi.json"  # where app/api/pages.py finds it

    @app.get(app.openapi_url, include_in_schema=False)
    async def document(request: Request) -> Response:
        await services_of(request).turns.take(request.state.client)  # it has 150 kB
        return Response(written(), media_type="application/json")

    app.openapi = described  # type: ignore[method-assign]


def _document(plain: Object, services: Services) -> Object:
    document: Object = _filled(plain, _own(services))
    components = document["components"]
    for name in _NOT_OURS:
        components["schemas"].pop(name, None)
    components["schemas"] |= DEFINITIONS
    if not services.api_keys.wanted:
        del components["securitySchemes"]
    for path in document["paths"].values():
        for operation in path.values():
            _complete(operation, keys=services.api_keys.wanted)
    return document


def _own(services: Services) -> dict[str, Object]:
    """What bounds the values that are marked with MODEL_LIMIT."""
    admission = services.admission
    last_id = admission.config.vocab_size - 1
    return {
        "token_id": {"maximum": last_id},
        "token_key": {"pattern": f"^({numbers_to(last_id)})$"},
        "length": {"maximum": admission.context - 1},
        "name": {"enum": [services.model_name]},
        "tools": {} if admission.has_tools else {"maxItems": 0},
    }


def _filled(value: Any, own: dict[str, Object]) -> Any:
    """A copy, with what is marked filled in."""
    if isinstance(value, list):
        return [_filled(item, own) for item in value]
    if not isinstance(value, dict):
        return value
    filled = {
        key: _exact(key, _filled(item, own)) for key, item in value.items() if key != MODEL_LIMIT
    }
    return filled | own.get(value.get(MODEL_LIMIT, ""), {})


def _exact(key: str, value: Any) -> Any:
    """FastAPI makes floats of bounds: that of a 64-bit integer becomes one too high."""
    if isinstance(value, float) and value.is_integer():
        return int(value) - (key == "maximum" and value == 2**63)
    return value


def numbers_to(last: int) -> str:
    """A pattern of the decimal numbers from 0 to `last`, without leading zeros."""
    digits = str(last)
    shorter = [f"[1-9][0-9]{{{length - 1}}}" for length in range(1, len(digits))]
    same = [
        f"{digits[:at]}[{int(at == 0)}-{int(digit) - 1}][0-9]{{{len(digits) - at - 1}}}"
        for at, digit in enumerate(digits)
        if int(digit) > int(at == 0)
    ]
    return "|".join(["0", *shorter, *same, digits])


def _complete(operation: Object, *, keys: bool) -> None:
    """What FastAPI does not know of an operation, or takes for something else."""
    answers = operation["responses"]
    if "HTTPValidationError" in str(answers.get("422")):
        del answers["422"]
    statuses = [*_ANYWHERE]
    if "requestBody" in operation:
        statuses += _WITH_A_BODY
    if operation.get("security"):
        statuses += _WITH_A_KEY if keys else ()
        operation["security"] = operation["security"] if keys else []
    for status, answer in refusals(*statuses).items():
        answers.setdefault(str(status), _written(answer))
    for answer in answers.values():
        answer["headers"] = answer.get("headers", {}) | _REQUEST_ID
    operation["responses"] = dict(sorted(answers.items()))
    for parameter in operation.get("parameters", []):
        _as_text(parameter)


def _written(answer: Object) -> Object:
    """As FastAPI writes it."""
    schema = {"$ref": "#/components/schemas/ErrorBody"}
    rest = {key: value for key, value in answer.items() if key != "model"}
    return rest | {"content": {"application/json": {"schema": schema}}}


def _as_text(parameter: Object) -> None:
    """In headers and queries null is to leave it out, and an object is written as JSON."""
    schema = parameter["schema"]
    some = [one for one in schema.get("anyOf", []) if one != {"type": "null"}]
    if len(some) == 1:
        del schema["anyOf"]
        schema |= some[0]
    elif some:
        schema["anyOf"] = some
    if schema.get("type") == "object":
        parameter["content"] = {"application/json": {"schema": parameter.pop("schema")}}
