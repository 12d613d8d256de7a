"""The pages: chats at /, operations at /dash, the API's reference at /docs, and one for 404.

No CDN is needed. A browser is told to load, run and connect to nothing but this server, whatever
the page shows.
"""

from pathlib import Path

from fastapi import APIRouter, Request
from starlette.responses import Response
from starlette.types import Scope

from app.api.page_files import PageFile, PageFiles, hold

STATIC = Path(__file__).resolve().parents[2] / "static"

_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
_HEADERS = {
    "Content-Security-Policy": _POLICY,
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
}

router = APIRouter(include_in_schema=False)


class Files(PageFiles):
    """What lies in static/, with the page's headers."""

    def __init__(self) -> None:
        super().__init__(directory=STATIC)
        hold(STATIC)

    async def get_response(self, path: str, scope: Scope) -> Response:
        response = await super().get_response(path, scope)
        response.headers.update(_HEADERS)
        return response


@router.get("/")
async def index() -> Response:
    return PageFile(STATIC / "index.html", headers=_HEADERS)


@router.get("/dash")
async def dash() -> Response:
    return PageFile(STATIC / "dash.html", headers=_HEADERS)


@router.get("/docs")
async def docs() -> Response:
    return PageFile(STATIC / "docs.html", headers=_HEADERS)


@router.get("/favicon.ico")
async def favicon() -> Response:
    """Browsers ask for it on pages that name no icon."""
    return PageFile(STATIC / "favicon.svg", headers=_HEADERS)


def not_found(request: Request) -> Response | None:
    """404 for people: what to do next, in the pages' style. None for a program.

    A browser's address line asks for HTML by name.
    """
    is_read = request.method in ("GET", "HEAD")
    if not is_read or "text/html" not in request.headers.get("accept", ""):
        return None
    return PageFile(STATIC / "404.html", 404, headers=_HEADERS)
