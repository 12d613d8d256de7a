"""What routes may answer, for /openapi.json: refusals, streams, and where an answer leads."""

from typing import Any

from app.api.native.types import ErrorBody
from app.tapes.event_id import TAPE_ID

Answers = dict[int | str, dict[str, Any]]

_MEANINGS = {
    400: "It is malformed: the request, its JSON, an id or a header.",
    401: "It wants a key of this server.",
    403: "It is not for the pages of other sites.",
    404: "There is no such thing here, or not any more.",
    408: "Its body came too slowly, or it did not end within its own timeout.",
    409: "The Idempotency-Key was used with another request.",
    413: "The body is too large.",
    414: "Path and query are too long.",
    415: "The body is not labelled application/json, or it is compressed.",
    421: "This server does not answer to that Host.",
    422: "A field is missing, unknown or out of its range.",
    429: "There is no room now.",
    431: "The headers are too large.",
    500: "The generation failed, or the server has a fault; its log says more.",
    503: "No work is taken now, or it did not come to this request in time.",
}


def _header(description: str, *, always: bool = True, **schema: Any) -> dict[str, Any]:
    return {"description": description, "required": always, "schema": schema}


def _seconds(*, always: bool) -> dict[str, Any]:
    words = "Seconds to wait before trying again."
    return {"Retry-After": _header(words, always=always, type="integer", minimum=1)}


_HEADERS = {
    401: {"headers": {"WWW-Authenticate": _header("How.", type="string", const="Bearer")}},
    429: {"headers": _seconds(always=True)},
    503: {"headers": _seconds(always=False)},  # who gave it too little time need not come again
}


def refusals(*statuses: int) -> Answers:
    """Those of a route itself. What every route may refuse, app/api/openapi.py adds."""
    return {
        status: {
            "model": ErrorBody,
            "description": _MEANINGS[status],
            **_HEADERS.get(status, {}),
        }
        for status in statuses
    }


_TAPE = _header("The tape's id.", always=False, type="string", pattern=f"^{TAPE_ID}$")
_LINKS = {
    "read_tape": {"tape_id": "$response.header.X-Tape"},
    "cancel_tape": {"tape_id": "$response.header.X-Tape"},
    "retrieve_response": {"response_id": "resp_{$response.header.X-Tape}"},
    "cancel_response": {"response_id": "resp_{$response.header.X-Tape}"},
}


def success(status: int, *links: str, stream: dict[str, Any] | None = None) -> Answers:
    """With the operations that go on from there."""
    answer: dict[str, Any] = {"headers": {"X-Tape": _TAPE}}
    if stream:
        answer["content"] = stream
    if links:
        answer["links"] = {
            name: {"operationId": name, "parameters": _LINKS[name]} for name in links
        }
    return {status: answer}


RESUMED: Answers = {204: {"description": "Resumed at its end: there is no more."}}
