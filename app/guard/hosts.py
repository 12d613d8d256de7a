"""Under which names this server answers: a page of another name that resolves to it gets nothing.

DNS rebinding: a page whose own name is made to resolve to 127.0.0.1 is, for the browser, of the
same origin as this server. What it cannot change is the Host header.
"""

import re
from collections.abc import Collection

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from app.errors import APIError
from app.guard.loopback import is_loopback

_LOCAL = frozenset({"localhost", "127.0.0.1", "[::1]"})
_PORT = re.compile(r":\d*$")


def own_names(host: str, allowed: Collection[str]) -> frozenset[str] | None:
    """The names for a server bound to `host`, those in `allowed` among them; None is any.

    Bound to loopback it is reached as such; what else it may be called, only its user knows.
    """
    if "*" in allowed or not (allowed or (host.lower() == "localhost" or is_loopback(host))):
        return None
    bound = f"[{host}]" if ":" in host else host
    return _LOCAL | {bound.lower()} | {name.lower() for name in allowed}


class HostCheck:
    """ASGI middleware: 421 for every request to another name, whatever its path and method.

    Who sends no Host header is no browser, but for example HAProxy's probe.
    """

    def __init__(self, app: ASGIApp, names: frozenset[str]) -> None:
        self._app = app
        self._names = names

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan" or self._answers_to(scope):
            await self._app(scope, receive, send)
        else:
            await _MISDIRECTED(scope, receive, send)

    def _answers_to(self, scope: Scope) -> bool:
        hosts = Headers(scope=scope).getlist("host")
        return all(_PORT.sub("", host).lower() in self._names for host in hosts)


_MISDIRECTED = APIError(
    421,
    "this server does not answer to that Host; use the address that it listens on, or name the "
    "host in --allowed-hosts",
    code="unknown_host",
).response()
