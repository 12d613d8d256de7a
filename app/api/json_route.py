"""The one way JSON comes in: strictly, or a 4xx in our error shape."""

import codecs
import json
import re
from collections.abc import Callable, Coroutine, Generator
from typing import Any

from fastapi import Request
from fastapi.routing import APIRoute
from starlette.responses import Response

from app.errors import APIError, bodies_too_large, body_too_large, from_validation
from app.guard import strict_json
from app.services import caller_of, services_of

_LARGE = 1 << 14  # bytes: a smaller body is read and checked in a millisecond

Handler = Callable[[Request], Coroutine[Any, Any, Response]]


class _StrictRequest(Request):
    """A body of bounded size, and strict JSON."""

    field: Any = None  # the route's, FastAPI's ModelField: what the body must be
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
        services = services_of(self)
        services.bodies.give_back(caller_of(self).client, self._held)
        services.heap.freed(self._held)
        self._held = 0

    async def json(self) -> Any:
        """What the body says. A large one is read in turns, and checked: FastAPI takes it as it is.

        Where FastAPI refuses a body, a cycle of references keeps it until the next collection.
        """
        data = await self.body()
        steps = _read(data)
        if len(data) <= _LARGE:
            return strict_json.at_once(steps)
        return self._checked(await self._in_turns(steps))

    async def _in_turns(self, steps: Generator[None, None, Any]) -> Any:
        turns, client = services_of(self).turns, caller_of(self).client
        while True:
            await turns.take(client)
            try:
                next(steps)
            except StopIteration as end:
                value = end.value
                break
        await turns.take(client)
        return value

    def _checked(self, value: Any) -> Any:
        """As the route's type. Raises APIError."""
        if self.field is None:
            return value
        checked, faults = self.field.validate(value, loc=("body",))
        if faults:
            raise _first_of(faults)
        return checked


def _read(data: bytes) -> Generator[None, None, Any]:
    """In steps. Raises APIError for what is not strict JSON."""
    try:
        return (yield from strict_json.loads_in_steps(data.removeprefix(codecs.BOM_UTF8)))
    except ValueError as error:
        fault = _other_encoding(data) or f"the body is not valid JSON: {error}"
        raise APIError(400, fault, code="malformed_json") from None


def _first_of(faults: list[Any]) -> APIError:
    """The others are dropped: they hold what a validator raised, and that the frames with them."""
    first = from_validation(faults[0])
    faults.clear()
    return first


def _other_encoding(data: bytes) -> str | None:
    """What is wrong with a body that is not UTF-8 (RFC 8259, 8.1)."""
    if not (encoding := json.detect_encoding(data)).startswith("utf-8"):
        return f"the body is {encoding.upper()}; send JSON as UTF-8"
    try:
        data.decode()
    except UnicodeDecodeError as error:
        return f"the body is not UTF-8 from byte {error.start} on; send JSON as UTF-8"
    return None


def _check_labels(request: Request) -> None:
    """Of a body. Without JSON's label another site's page could send it: browsers do not ask then.

    Raises APIError 415.
    """
    kind = request.headers.get("content-type", "(none)").partition(";")[0].strip().lower()
    if kind != "application/json" and not re.fullmatch(r"application/[^/]+\+json", kind):
        raise APIError(
            415,
            f"Content-Type is {kind:.80}; send JSON, labelled application/json",
            code="unsupported_media_type",
        )
    coding = request.headers.get("content-encoding", "identity").strip().lower()
    if coding not in ("", "identity"):
        raise APIError(
            415,
            f"Content-Encoding is {coding:.80}; send the body uncompressed",
            code="unsupported_content_encoding",
            headers={"Accept-Encoding": "identity"},
        )


class StrictJSONRoute(APIRoute):
    """A route for callers with a key, whose body, if it takes one, is strict JSON.

    Who has no key is refused before the body is read; a body labelled otherwise gets 415.
    """

    def get_route_handler(self) -> Handler:
        handle = super().get_route_handler()

        async def strict(request: Request) -> Response:
            caller_of(request)
            if self.body_field:
                _check_labels(request)
            strictly = _StrictRequest(request.scope, request.receive)
            strictly.field = self.body_field
            try:
                return await handle(strictly)
            finally:
                strictly.let_go()

        return strict
