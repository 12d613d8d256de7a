"""One shape for every error before the headers: {"error": {type, message, param, code}}.

Every message tells its reader what to do; a refused parameter is named, with its range.
"""

from collections.abc import Mapping
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse, Response

_PLAIN_WORDS = {
    404: "nothing is at this path; /docs lists what there is",
    405: "this path does not take this method; /docs lists those it takes",
}


class APIError(HTTPException):
    """A refusal with its HTTP status. Raise it anywhere before the response has begun.

    An HTTPException, because FastAPI lets only those pass unchanged through body parsing.
    """

    def __init__(
        self,
        status: int,
        message: str,
        *,
        param: str | None = None,
        code: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(status, message, dict(headers or {}))
        self.param = param
        self.code = code

    def response(self) -> Response:
        error = {
            "type": error_type(self.status_code),
            "message": self.detail,
            "param": self.param,
            "code": self.code,
        }
        return JSONResponse({"error": error}, self.status_code, self.headers)


def error_type(status: int) -> str:
    """The class of an error, in OpenAI's words."""
    match status:
        case 401:
            return "authentication_error"
        case 403:
            return "permission_error"
        case 404:
            return "not_found_error"
        case 429:
            return "rate_limit_error"
        case _ if status >= 500:
            return "server_error"
        case _:
            return "invalid_request_error"


def out_of_range(param: str, message: str) -> APIError:
    """422: a named parameter that cannot be honoured."""
    return APIError(422, f"{param}: {message}", param=param, code="invalid_value")


def try_later(status: int, message: str, *, code: str, seconds: int = 1) -> APIError:
    """429 or 503, with the Retry-After that tells a client when."""
    return APIError(status, message, code=code, headers={"Retry-After": str(seconds)})


def install(app: FastAPI) -> None:
    """Give every error of this app the one shape."""

    @app.exception_handler(APIError)
    async def refused(_: Request, error: APIError) -> Response:
        return error.response()

    @app.exception_handler(RequestValidationError)
    async def invalid(_: Request, error: RequestValidationError) -> Response:
        return from_validation(error.errors()[0]).response()

    @app.exception_handler(HTTPException)
    async def http(_: Request, error: HTTPException) -> Response:
        message = _PLAIN_WORDS.get(error.status_code, str(error.detail))
        return APIError(error.status_code, message, headers=error.headers).response()

    @app.exception_handler(Exception)
    async def unexpected(_: Request, error: Exception) -> Response:
        return APIError(500, "An error of ours; the server's log says more.").response()


def from_validation(first: Mapping[str, Any]) -> APIError:
    """pydantic's first complaint as one sentence that names the field."""
    places = ("body", "query", "path", "header")
    location = [str(part) for part in first["loc"] if part not in places]
    param = ".".join(part for part in location if part != "[key]") or None
    if first["type"] == "extra_forbidden":
        message = f"{param} is not a field of this request; see /docs for those that are"
        return APIError(422, message, param=param, code="unknown_field")
    if first["type"] == "missing":
        return APIError(422, f"{param or 'the JSON body'} is required", param=param, code="missing")
    message = str(first["msg"])
    for prefix in ("Value error, ", "Input ", "String ", "List ", "Dictionary "):
        message = message.removeprefix(prefix)
    subject = param or "the JSON body"
    return APIError(422, f"{subject}: {message}", param=param, code="invalid_value")
