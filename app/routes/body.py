"""The one way JSON comes in: strictly, or a 4xx in our error shape."""

from collections.abc import Callable, Coroutine
from typing import Any

from fastapi import Request
from fastapi.routing import APIRoute
from starlette.responses import Response

from app import strict_json
from app.errors import APIError, bodies_too_large, body_too_large
from app.services import caller_of, services_of

Handler = Callable[[Request], Coroutine[Any, Any, Response]]


class _StrictRequest(Request):
    """A body of bounded size, and strict JSON."""

    _held = 0  # bytes, of those that all clients share

    async def body(self) -> bytes:
        if not hasattr(self, "_body"):
            limit = services_of(self).settings.max_body_size
            read = bytearray()
            async for chunk in self.stream():
                read += chunk
                if len(read) > limit:
                    raise body_too_large(limit)
                self._hold(len(chunk))
            self._body = bytes(read)
        return self._body

    def _hold(self, size: int) -> None:
        bodies, client = services_of(self).bodies, caller_of(self).client
        if not bodies.take(client, size):
            raise bodies_too_large(bodies.capacity)
        self._held += size

    def let_go(self) -> None:
        """The body is worked on no more."""
        services_of(self).bodies.give_back(caller_of(self).client, self._held)
        self._held = 0

    async def json(self) -> Any:
        try:
            return strict_json.loads(await self.body())
        except ValueError as error:
            raise APIError(
                400, f"the body is not valid JSON: {error}", code="malformed_json"
            ) from None


class StrictRoute(APIRoute):
    """A route for callers with a key, whose body, if it takes one, is strict JSON.

    Who has no key is refused before the body is read; a body labelled otherwise gets 415.
    """

    def get_route_handler(self) -> Handler:
        handle = super().get_route_handler()

        async def strict(request: Request) -> Response:
            caller_of(request)
            kind = request.headers.get("content-type", "(none)").partition(";")[0]
            if self.body_field and kind.strip().lower() != "application/json":
                raise APIError(
                    415,
                    f"Content-Type is {kind:.80}; send JSON, labelled application/json",
                    code="unsupported_media_type",
                )
            strictly = _StrictRequest(request.scope, request.receive)
            try:
                return await handle(strictly)
            finally:
                strictly.let_go()

        return strict
