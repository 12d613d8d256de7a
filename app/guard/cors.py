"""CORS: what browsers let other origins' pages do here."""

from starlette.datastructures import Headers
from starlette.middleware.cors import CORSMiddleware
from starlette.responses import Response
from starlette.types import ASGIApp

# What a page of another origin may read, beside what every page may.
EXPOSED = ["X-Tape", "X-Reader", "Content-Location", "Location", "Retry-After", "X-Request-Id"]


class Cors(CORSMiddleware):
    """For pages of the origins that are named, also where those are public and this server is not.

    The latter is Private Network Access: https://wicg.github.io/private-network-access/.
    """

    def __init__(self, app: ASGIApp, origins: list[str]) -> None:
        super().__init__(
            app,
            allow_origins=origins,
            allow_methods=["GET", "POST", "DELETE"],
            allow_headers=["*"],
            expose_headers=EXPOSED,
            allow_private_network=True,
        )

    def preflight_response(self, request_headers: Headers) -> Response:
        """Starlette's, which lets also refused origins into the private network."""
        response = super().preflight_response(request_headers)
        if response.status_code != 200:
            del response.headers["Access-Control-Allow-Private-Network"]
        return response
