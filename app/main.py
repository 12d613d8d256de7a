"""The application: routes, errors and services put together. Nothing is decided here."""

import logging
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from importlib.metadata import version
from pathlib import Path

from fastapi import FastAPI

from app import errors
from app.admission import Admission, calls_tools
from app.api import dashboard, models, openapi, operations, pages, tokenize
from app.api.arrivals import Arrivals
from app.api.native import generate, tapes
from app.api.openai import chat, completions, responses
from app.guard.api_keys import ApiKeys
from app.guard.cors import Cors
from app.guard.fair_share import Shares
from app.guard.hosts import HostCheck, own_names
from app.guard.normal_requests import NormalRequests
from app.guard.rate_limits import Limits, parse_rates
from app.observability.access_log import Requests
from app.observability.dashboard import Dash
from app.observability.logs import TapeLog
from app.observability.metrics import Metrics
from app.observability.tracing import TraceContext, Tracing
from app.processes.engine_client import EngineClient, configuration
from app.processes.tokenizer_client import TokenizerClient
from app.readers.frame_cache import FrameCache
from app.readers.turns import Turns
from app.sampling_defaults import sampling_defaults
from app.services import Services
from app.settings import Settings, SettingsError
from app.tapes.engine_recovery import EngineRecovery
from app.tapes.observer import Observer
from app.tapes.registry import Registry
from app.tapes.stores.base import TapeStore
from app.tapes.stores.memory import MemoryStore
from app.tapes.stores.retention import TapeRetention
from model.checkpoints.checkpoint import open_checkpoint
from model.checkpoints.hub import resolve

_BODIES = 64 << 20  # bytes of bodies that all clients may have under way

logger = logging.getLogger("tickertape")


def create_app(settings: Settings | None = None, engine: EngineClient | None = None) -> FastAPI:
    """The service for one model.

    Its engine comes and goes with it, or is one that was started before and is another's to stop.

    Raises ModelLoadError when the model cannot be opened, SettingsError when the keys cannot.
    """
    settings = settings or Settings()
    api_keys = _api_keys(settings)
    path = resolve(settings.model)
    checkpoint = open_checkpoint(path)
    model_name = checkpoint.name if Path(settings.model).exists() else settings.model
    # Opened before the first request needs it: the engine loads for longer than this takes.
    tokenizer = checkpoint.tokenizer()
    if tokenizer.corrected:
        names = ", ".join(tokenizer.corrected)
        logger.warning("the model calls %s text; taken as control tokens all the same", names)
    defaults = sampling_defaults(settings, checkpoint)
    max_model_len = settings.max_model_len or checkpoint.config.max_model_len
    metrics = Metrics(model_name, max_model_len)
    store = _store(settings)
    tracing = Tracing(settings.otlp_endpoint, model_name) if settings.otlp_endpoint else None

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        link = engine or EngineClient(configuration(settings, path), settings.engine_timeout)
        if not engine:
            await link.start()
        recovery = EngineRecovery(link)
        dash = Dash(metrics, link)
        observers: list[Observer] = [metrics, dash, TapeLog()]
        if tracing:
            observers.append(tracing)
        registry = Registry(
            recovery,
            store,
            settings.max_tape_memory,
            observers,
            max_paused=settings.max_paused,
            max_readers=settings.max_readers,
        )
        await store.start(registry)
        metrics.watch(link, recovery, registry)
        dash.look_at(registry)
        dash.start()
        tokenizer_client = TokenizerClient(path)
        await tokenizer_client.start()
        admission = Admission(
            tokenizer=tokenizer,
            tokenizer_client=tokenizer_client,
            chat_template=checkpoint.chat_template,
            has_tools=await calls_tools(tokenizer_client, tokenizer, checkpoint.chat_template),
            config=checkpoint.config,
            defaults=defaults,
            link=link,
            registry=registry,
            max_model_len=max_model_len,
            capacity=settings.max_num_seqs + settings.max_waiting,
        )
        limits, now = _limits(settings), int(time.time())
        app.state.services = Services(
            settings=settings,
            model_name=model_name,
            link=link,
            registry=registry,
            admission=admission,
            api_keys=api_keys,
            limits=limits,
            bodies=Shares(max(_BODIES, 4 * settings.max_body_size)),
            metrics=metrics,
            dash=dash,
            turns=Turns(),
            frame_cache=FrameCache(),
            tracing=tracing,
            started=now,
        )
        try:
            yield
        finally:
            registry.close()
            await store.flush()
            await dash.stop()
            await tokenizer_client.stop()
            if not engine:
                await link.stop()
            await store.stop()
            if tracing:
                await tracing.close()

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
    if tracing:
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


def _store(settings: Settings) -> TapeStore:
    retention = TapeRetention(ttl=settings.tape_ttl, budget=settings.tape_memory)
    if settings.tapes == "memory":
        return MemoryStore(retention)
    try:
        from app.tapes.stores.redis import RedisStore
    except ImportError:
        raise SettingsError(
            "--tapes (or TICKERTAPE_TAPES) needs a package for Redis; install it with "
            "pip install 'tickertape[redis]', or leave the option out"
        ) from None

    try:
        return RedisStore(
            settings.tapes, retention, ttl=settings.tape_ttl, max_tape_size=settings.max_tape_memory
        )
    except ValueError as error:
        raise SettingsError(
            f"--tapes (or TICKERTAPE_TAPES): {error}; give a URL such as redis://127.0.0.1:6379/0"
        ) from None


def _limits(settings: Settings) -> Limits:
    rates = parse_rates(settings.rate_limit) if settings.rate_limit else ()
    return Limits(rates, settings.max_concurrent)


def _api_keys(settings: Settings) -> ApiKeys:
    try:
        return ApiKeys(settings.api_key_file)
    except (OSError, ValueError) as error:
        raise SettingsError(
            f"--api-key-file (or TICKERTAPE_API_KEY_FILE): {error}; give a file with one key a line"
        ) from None
