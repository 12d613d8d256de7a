"""What OpenAI's routes share: their way to refuse, the model's name, streams and whole answers."""

from collections.abc import Callable, Coroutine
from typing import Any

from fastapi import Request
from fastapi.exceptions import RequestValidationError
from starlette.responses import Response

from app.api.documented_responses import RESUMED, refusals
from app.api.json_route import StrictJSONRoute
from app.api.openai import common
from app.errors import APIError, from_validation
from app.services import Services
from app.tapes.tape import End

REFUSALS = {**RESUMED, **refusals(404, 408, 409, 429, 503)}


class OpenAIRoute(StrictJSONRoute):
    """Refuses with 400 what native routes refuse with 422: OpenAI's clients raise by the status."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        handle = super().get_route_handler()

        async def refusing(request: Request) -> Response:
            try:
                return await handle(request)
            except RequestValidationError as error:
                raise _bad_request(from_validation(error.errors()[0])) from None
            except APIError as error:
                raise _bad_request(error) from None

        return refusing


def _bad_request(error: APIError) -> APIError:
    if error.status_code != 422:
        return error
    return APIError(400, error.detail, param=error.param, code=error.code)


def check_end(end: End) -> None:
    """Raises APIError for an end that OpenAI's answers have no word for, though there is text.

    Clients that try again by themselves would only run into the same timeout.
    """
    reason = end.finish_reason
    if reason in common.STATUS:
        message = end.error or common.WORDS[reason]
        raise APIError(
            common.STATUS[reason], message, code=reason, headers={"X-Should-Retry": "false"}
        )


def check_model(services: Services, name: str | None) -> None:
    """Raises APIError 404 for another model than the one that is served."""
    if name is not None and name != services.model_name:
        raise APIError(
            404,
            f"model: '{name:.200}' is not served here; this is '{services.model_name}'",
            param="model",
            code="model_not_found",
        )
