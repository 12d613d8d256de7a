"""What the routes work with, made once at start and handed to them by FastAPI's `Depends`."""

from dataclasses import dataclass
from typing import Annotated

from fastapi import Depends, Request
from fastapi.security import HTTPBearer
from fastapi.security.utils import get_authorization_scheme_param

from app.admission import Admission
from app.caller import Caller
from app.guard.api_keys import ApiKeys
from app.guard.fair_share import Shares
from app.guard.rate_limits import Limits
from app.observability.dashboard import Dash
from app.observability.metrics import Metrics
from app.observability.tracing import Tracing
from app.processes.engine_client import EngineClient
from app.readers.frame_cache import FrameCache
from app.readers.turns import Turns
from app.settings import Settings
from app.tapes.registry import Registry


@dataclass(frozen=True, slots=True)
class Services:
    settings: Settings
    model_name: str
    link: EngineClient
    registry: Registry
    admission: Admission
    api_keys: ApiKeys
    limits: Limits
    bodies: Shares  # bytes of request bodies that are read or worked on
    metrics: Metrics
    dash: Dash
    turns: Turns
    frame_cache: FrameCache
    tracing: Tracing | None
    started: int  # seconds since 1970


def services_of(request: Request) -> Services:
    services: Services = request.app.state.services
    return services


async def _services(request: Request) -> Services:
    """FastAPI runs a dependency that is not async in a thread: 0.3 ms before the first token."""
    return services_of(request)


ServicesDep = Annotated[Services, Depends(_services)]

_bearer = HTTPBearer(auto_error=False, description="A key of --api-key-file, where there is one.")


def caller_of(request: Request) -> Caller:
    """Looked up once for each request. Raises APIError 401 without a key where one is needed."""
    if not hasattr(request.state, "caller"):
        request.state.caller = _identified(request)
    caller: Caller = request.state.caller
    return caller


def _identified(request: Request) -> Caller:
    scheme, key = get_authorization_scheme_param(request.headers.get("Authorization"))
    # Starlette reads headers as latin-1, which gives their bytes back.
    given = key.encode("latin-1") if scheme.lower() == "bearer" else None
    owner = services_of(request).api_keys.owner(given)
    return Caller(owner, request.client.host if request.client else "", request.receive)


async def _caller(request: Request, _: Annotated[object, Depends(_bearer)]) -> Caller:
    """The scheme stands here for the documentation."""
    return caller_of(request)


CallerDep = Annotated[Caller, Depends(_caller)]
