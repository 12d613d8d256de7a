"""The application: routes, errors and services put together. Nothing is decided here."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from importlib.metadata import version

from fastapi import FastAPI

from app import errors
from app.api import dashboard, models, openapi, operations, pages, tokenize
from app.api.arrivals import Arrivals
from app.api.native import generate, tapes
from app.api.openai import chat, completions, responses
from app.guard.cors import Cors
from app.guard.hosts import HostCheck, own_names
from app.guard.normal_requests import NormalRequests
from app.observability.access_log import Requests
from app.observability.metrics import Metrics
from app.observability.tracing import TraceContext
from app.processes.engine_client import EngineClient
from app.services import opened, started
from app.settings import Settings


def create_app(settings: Settings | None = None, engine: EngineClient | None = None) -> FastAPI:
    """The service for one model.

    Its engine comes and goes with it, or is one that was started before and is another's to stop.

    Raises ModelLoadError when the model cannot be opened, SettingsError when the keys cannot.
    """
    settings = settings or Settings()
    model = opened(settings)
    metrics = Metrics(model.model_name, model.max_model_len)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        async with started(model, metrics, engine) as services:
            app.state.services = services
            yield

    app = FastAPI(
        title="Tickertape",
        version=version("tickertape"),
        summary="A language model whose every answer is a tape that can be resumed.",
        lifespan=lifespan,
        # FastAPI's own: its spans hold query strings, which hold prompts, and it wraps each frame.
        telemetry={"tracing": False, "metrics": False, "logs": False},
        docs_url=None,
        redoc_url=None,
        openapi_url=None,  # app/api/openapi.py serves it
        redirect_slashes=False,  # NormalRequests leaves none
    )
    errors.install(app, pages.not_found)
    openapi.install(app)
    for module in (
        generate,
        tapes,
        completions,
        chat,
        responses,
        models,
        tokenize,
        operations,
        dashboard,
        pages,
    ):
        app.include_router(module.router)
    app.mount("/static", pages.Files(), name="static")
    _admit_pages(app, settings)
    if model.tracing:
        app.add_middleware(TraceContext)
    app.add_middleware(NormalRequests)
    app.add_middleware(Arrivals)
    app.add_middleware(Requests, metrics=metrics)  # the last is the outermost: it sees all answers
    return app


def _admit_pages(app: FastAPI, settings: Settings) -> None:
    """Whose pages may ask: those of our own names, and of the origins that are named.

    What is not configured wraps nothing: a frame of a stream passes through every layer.
    """
    if settings.cors_origins:
        app.add_middleware(Cors, origins=settings.cors_origins.split(","))
    allowed = (settings.allowed_hosts or "").split(",")
    if names := own_names(settings.host, [name for name in allowed if name]):
        app.add_middleware(HostCheck, names=names)
