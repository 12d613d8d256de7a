"""The application: routes, errors and services put together. Nothing is decided here."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from importlib.metadata import version
from pathlib import Path

from fastapi import FastAPI
from starlette.staticfiles import StaticFiles

from app import errors
from app.admission import Admission
from app.engine_link import EngineLink, configuration
from app.options import SettingsError
from app.routes import generate, ops, page, tapes
from app.security import ApiKeys
from app.services import Services
from app.settings import Settings
from app.tapes.memory import MemoryStore
from app.tapes.recovery import Recovery
from app.tapes.registry import Registry
from model.loading.checkpoint import open_checkpoint
from model.loading.hub import resolve


def create_app(settings: Settings | None = None) -> FastAPI:
    """The service for one model.

    Raises ModelLoadError when the model cannot be opened, SettingsError when the keys cannot.
    """
    settings = settings or Settings()
    api_keys = _api_keys(settings)
    path = resolve(settings.model)
    checkpoint = open_checkpoint(path)
    model_name = checkpoint.name if Path(settings.model).exists() else settings.model
    # Opened before the first request needs it: the engine loads for longer than this takes.
    tokenizer = checkpoint.tokenizer()

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        link = EngineLink(configuration(settings, path), settings.engine_timeout)
        await link.start()
        store = MemoryStore(ttl=settings.tape_ttl, budget=settings.tape_memory)
        registry = Registry(Recovery(link), store, settings.max_tape_memory)
        admission = Admission(
            tokenizer=tokenizer,
            config=checkpoint.config,
            link=link,
            registry=registry,
            max_model_len=settings.max_model_len or checkpoint.config.max_model_len,
            capacity=settings.max_num_seqs + settings.max_waiting,
        )
        app.state.services = Services(settings, model_name, link, registry, admission, api_keys)
        try:
            yield
        finally:
            registry.close()
            await link.stop()

    app = FastAPI(
        title="Tickertape",
        version=version("tickertape"),
        summary="A language model whose every answer is a tape that can be resumed.",
        lifespan=lifespan,
        docs_url=None,
        redoc_url=None,
    )
    errors.install(app)
    for module in (generate, tapes, ops, page):
        app.include_router(module.router)
    app.mount("/static", StaticFiles(directory=page.STATIC), name="static")
    return app


def _api_keys(settings: Settings) -> ApiKeys:
    if settings.api_key_file is None:
        return ApiKeys()
    try:
        return ApiKeys.read(settings.api_key_file)
    except (OSError, ValueError) as error:
        raise SettingsError(
            f"--api-key-file (or TICKERTAPE_API_KEY_FILE): {error}; give a file with one key a line"
        ) from None
