"""What the routes work with, made once at start and handed to them by FastAPI's `Depends`."""

from dataclasses import dataclass
from typing import Annotated

from fastapi import Depends, Request

from app.admission import Admission
from app.engine_link import EngineLink
from app.settings import Settings
from app.tapes.registry import Registry


@dataclass(frozen=True, slots=True)
class Services:
    settings: Settings
    model_name: str
    link: EngineLink
    registry: Registry
    admission: Admission


def services_of(request: Request) -> Services:
    services: Services = request.app.state.services
    return services


async def _services(request: Request) -> Services:
    """FastAPI runs a dependency that is not async in a thread: 0.3 ms before the first token."""
    return services_of(request)


ServicesDep = Annotated[Services, Depends(_services)]
