"""One shape for every error before the headers: {"error": {type, message, param, code}}.

Every message tells its reader what to do; a refused parameter is named, with its range.
"""

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse, Response

_PLAIN_WORDS = {
    404: "nothing is at this path; /docs lists what there is",
    405: "this path does not take this method; /docs lists those it takes",
}


# What pydantic puts into the place of an error beside names: "[key]", "list[str]", "NamedTool".
_OF_PYDANTIC = re.compile(r"\[|^[A-Z][A-Za-z]+$")


# Characters of a key that are told: it is anybody's, and may have megabytes.
_MAX_NAME = 80


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
        super().__init__(status, _in_one_line(message), dict(headers or {}))
        self.param = param and _in_one_line(param)
        self.code = code

    def response(self) -> Response:
        error = {
            "type": error_type(self.status_code),
            "message": self.detail,
            "param": self.param,
            "code": self.code,
        }
        return JSONResponse({"error": error}, self.status_code, self.headers)


def _in_one_line(text: str) -> str:
    """Messages quote what was sent, and nobody's keys or names shall write lines into a log."""
    return "".join(character if character.isprintable() else "\ufffd" for character in text)


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


def context_exceeded(param: str, context: int, message: str) -> APIError:
    """422: more tokens than the context has, in OpenAI's words and with its code.

    Clients look for either in the message, to shorten the conversation or to ask another model:
    litellm 1.110 for the words (exception_mapping_utils.py), langchain-openai 1.7 for the code
    (_handle_openai_bad_request), which openai-python 3.57 does not put into its exception's text.
    """
    words = f"This model's maximum context length is {context} tokens. However, {message}"
    code = "context_length_exceeded"
    return APIError(422, f"{param}: {words} ({code})", param=param, code=code)


def try_later(status: int, message: str, *, code: str, seconds: int = 1) -> APIError:
    """429 or 503, with the Retry-After that tells a client when."""
    return APIError(status, message, code=code, headers={"Retry-After": str(seconds)})


def body_too_large(limit: int) -> APIError:
    """413. The rest of the body is not read, so the connection can serve nothing more."""
    return APIError(
        413,
        f"the body has more than {limit} bytes; --max-body-size sets the limit",
        code="body_too_large",
        headers={"Connection": "close"},
    )


def bodies_too_large(limit: int) -> APIError:
    """429. The rest of the body is not read, so the connection can serve nothing more."""
    return APIError(
        429,
        f"the bodies of your requests under way take too much of the {limit} bytes that there are "
        "for those of all clients; try again when some of them are answered",
        code="bodies_too_large",
        headers={"Connection": "close", "Retry-After": "1"},
    )


def install(app: FastAPI, page_for: Callable[[Request], Response | None] = lambda _: None) -> None:
    """Give every error of this app the one shape.

    A path that there is not is answered with `page_for`, where that has a page for the request.
    """

    @app.exception_handler(APIError)
    async def refused(_: Request, error: APIError) -> Response:
        return error.response()

    @app.exception_handler(RequestValidationError)
    async def invalid(_: Request, error: RequestValidationError) -> Response:
        return from_validation(error.errors()[0]).response()

    @app.exception_handler(HTTPException)
    async def http(request: Request, error: HTTPException) -> Response:
        if error.status_code == 404 and (page := page_for(request)):
            return page
        message = _PLAIN_WORDS.get(error.status_code, str(error.detail))
        headers = _allow(request, error) if error.status_code == 405 else error.headers
        return APIError(error.status_code, message, headers=headers).response()

    @app.exception_handler(Exception)
    async def unexpected(request: Request, error: Exception) -> Response:
        """Sent from outside of all middleware: nobody else would name the request."""
        headers = {"X-Request-Id": getattr(request.state, "request_id", "")}
        message = "An error of ours; the server's log says more."
        return APIError(500, message, headers=headers).response()


def _allow(request: Request, error: HTTPException) -> Mapping[str, str]:
    """All methods of a path; Starlette names those of its first route alone, of a file none."""
    if "route" not in request.scope:  # a file, or the document: FastAPI has no route for them
        given = (error.headers or {}).get("Allow", "GET, HEAD")
        return {"Allow": ", ".join(sorted(given.split(", ")))}  # Starlette's is a set's order
    path = request.scope["route"].path
    methods = {
        m for route in _routes(request.app.routes) if route.path == path for m in route.methods
    }
    if "GET" in methods:
        methods.add("HEAD")  # app/guard/normal_requests.py
    return {"Allow": ", ".join(sorted(methods))}


def _routes(routes: Iterable[Any]) -> Iterator[Any]:
    """Those that have methods, of included routers too."""
    for route in routes:
        if router := getattr(route, "original_router", None):
            yield from _routes(router.routes)
        elif hasattr(route, "methods"):
            yield route


def from_validation(first: Mapping[str, Any]) -> APIError:
    """pydantic's first complaint as one sentence that names the field."""
    places = ("body", "query", "path", "header")
    location = [str(part)[:_MAX_NAME] for part in first["loc"] if part not in places]
    named = [part for part in location if not _OF_PYDANTIC.search(part)]
    if param := first.get("ctx", {}).get("param"):
        named.append(param)
    param = ".".join(named) or None
    if first["type"] == "extra_forbidden":
        message = f"{param} is not a field of this request; see /docs for those that are"
        return APIError(422, message, param=param, code="unknown_field")
    if first["type"] == "missing":
        return APIError(422, f"{param or 'the JSON body'} is required", param=param, code="missing")
    message = _in_words_of_json(first)
    subject = param or "the JSON body"
    return APIError(422, f"{subject}: {message}", param=param, code="invalid_value")


def _in_words_of_json(complaint: Mapping[str, Any]) -> str:
    """pydantic's are Python's: what it calls a dictionary is not what was sent."""
    if complaint["type"] in ("dict_type", "model_type", "model_attributes_type"):
        return "should be an object"
    message = str(complaint["msg"])
    for prefix in ("Value error, ", "Input ", "String ", "List ", "Dictionary "):
        message = message.removeprefix(prefix)
    return message.replace(" after validation", "")
