"""The typing page at /, the operations page at /dash, and the API's documentation at /docs.

No CDN is needed. A browser is told to load, run and connect to nothing but this server, whatever
the page shows.
"""

import hashlib
import re
from base64 import b64encode
from pathlib import Path

from fastapi import APIRouter, Request
from fastapi.openapi.docs import get_swagger_ui_html
from starlette.responses import FileResponse, Response
from starlette.staticfiles import StaticFiles
from starlette.types import Scope

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


class Files(StaticFiles):
    """What lies in static/, with the page's headers."""

    async def get_response(self, path: str, scope: Scope) -> Response:
        response = await super().get_response(path, scope)
        response.headers.update(_HEADERS)
        return response


@router.get("/")
async def index() -> Response:
    return FileResponse(STATIC / "index.html", headers=_HEADERS)


@router.get("/dash")
async def dash() -> Response:
    return FileResponse(STATIC / "dash.html", headers=_HEADERS)


@router.get("/docs")
async def docs(request: Request) -> Response:
    response = get_swagger_ui_html(
        openapi_url=str(request.app.openapi_url),
        title=f"{request.app.title} API",
        swagger_js_url="/static/vendor/swagger-ui/swagger-ui-bundle.js",
        swagger_css_url="/static/vendor/swagger-ui/swagger-ui.css",
        swagger_favicon_url="/static/favicon.svg",
    )
    response.headers.update(_HEADERS | {"Content-Security-Policy": _docs_policy(response)})
    return response


def _docs_policy(response: Response) -> str:
    """Swagger UI draws with images of its own, and FastAPI starts it by a script in the page.

    That script is allowed by the hash of what is sent: no other one runs.
    """
    inline = re.findall(rb"<script>(.*?)</script>", bytes(response.body), re.DOTALL)
    hashes = " ".join(f"'sha256-{_sha256(script)}'" for script in inline)
    return _POLICY.replace("script-src 'self'", f"script-src 'self' {hashes}").replace(
        "img-src 'self'", "img-src 'self' data:"
    )


def _sha256(script: bytes) -> str:
    return b64encode(hashlib.sha256(script).digest()).decode()
