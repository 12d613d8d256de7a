"""Requests as the routes know them: HEAD is a GET without its body, and a path has no empty parts.

Clients put a path together from a base that ends with a slash, or end it with one themselves.
"""

from starlette.types import ASGIApp, Receive, Scope, Send


class NormalRequests:
    """ASGI middleware. A request that is as the routes know it passes through untouched."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or _is_normal(scope):
            await self._app(scope, receive, send)
            return
        # A copy: the HTTP server must go on to see the HEAD, for which it sends no body.
        normal = dict(scope, path=normal_path(scope["path"]))
        if scope["method"] == "HEAD":
            normal["method"] = "GET"
            normal["state"]["head"] = True
        try:
            await self._app(normal, receive, send)
        finally:
            scope["route"] = normal.get("route")  # which the log and the counts name


def asks_for_head(scope: Scope) -> bool:
    """Whether only the headers are wanted: then no stream is begun (RFC 9110, 9.3.2)."""
    return bool(scope["state"].get("head"))


def normal_path(path: str) -> str:
    """Without slashes at its end, and with one between two parts."""
    return "/" + "/".join(part for part in path.split("/") if part)


def _is_normal(scope: Scope) -> bool:
    path = scope["path"]
    return scope["method"] != "HEAD" and "//" not in path and (path == "/" or path[-1:] != "/")
