"""Every request gets an id and, at its end, one line in the log and a place in the counts.

Around the whole application, also where it refuses. Of a stream only the first message is looked
at; for a frame it costs one call of a function.
"""

import logging
import re
import secrets
import time
from collections.abc import Awaitable
from typing import Any

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app.caller import Caller
from app.observability.logs import of_tape
from app.observability.metrics import Metrics

logger = logging.getLogger("tickertape.requests")

_GIVEN_ID = re.compile(rb"[A-Za-z0-9._:/+=@~-]{1,128}")

# Asked so often, and by machines, that a line for each would hide the others.
_QUIET = {"/health", "/ready", "/metrics"}

_FILES = ("/static/", "/favicon")  # a page loads dozens

_MAX_PATH = 200  # characters of an unknown one that are told


def new_request_id() -> str:
    """128 random bits."""
    return secrets.token_hex(16)


def request_id_of(headers: list[tuple[bytes, bytes]]) -> str:
    """The X-Request-Id that was sent, if it is up to 128 harmless characters; else a new one."""
    given = [value for name, value in headers if name == b"x-request-id"]
    if len(given) == 1 and _GIVEN_ID.fullmatch(given[0]):
        return given[0].decode()
    return new_request_id()


class Requests:
    """ASGI middleware that wraps no receive, and of sends only looks at the first."""

    def __init__(self, app: ASGIApp, metrics: Metrics) -> None:
        self._app = app
        self._metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        began = time.monotonic()
        request_id = request_id_of(scope["headers"])
        scope.setdefault("state", {})["request_id"] = request_id
        status = 500  # of what ends without an answer

        def noting(message: Message) -> Awaitable[None]:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"] = [
                    *message.get("headers", ()),
                    (b"x-request-id", request_id.encode()),
                ]
            return send(message)

        try:
            await self._app(scope, receive, noting)
        finally:
            self._ended(scope, status, time.monotonic() - began)

    def _ended(self, scope: Scope, status: int, seconds: float) -> None:
        route = _template(scope)
        self._metrics.answered(scope["method"], route, status)
        quiet = route in _QUIET or scope["path"].startswith(_FILES)
        level = logging.DEBUG if quiet else logging.INFO
        if logger.isEnabledFor(level):
            logger.log(level, "request", extra=_told(scope, route, status, seconds))


def _told(scope: Scope, route: str, status: int, seconds: float) -> dict[str, Any]:
    """What the line says: never what was asked for, nor a key."""
    client = scope.get("client")
    told = {
        "request_id": scope["state"]["request_id"],
        "method": scope["method"],
        "route": route,
        "status": status,
        "duration_ms": round(seconds * 1000, 3),
        "client": f"{client[0]}:{client[1]}" if client else None,
    }
    if route == "other":
        told["path"] = scope["path"][:_MAX_PATH]
    caller: Caller | None = scope["state"].get("caller")
    if caller and caller.owner:
        told["key"] = caller.owner
    if caller and caller.tape:
        told |= of_tape(caller.tape)
    return told


def _template(scope: Scope) -> str:
    """The path as its route was declared: of these there are few, whatever clients ask for."""
    path = getattr(scope.get("route"), "path", None)
    return path if isinstance(path, str) else "other"
