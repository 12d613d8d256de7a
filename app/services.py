"""What the routes work with: started and stopped in one order, and handed to them by `Depends`."""

import asyncio
import contextlib
import logging
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated

from fastapi import Depends, Request
from fastapi.security import HTTPBearer
from fastapi.security.utils import get_authorization_scheme_param

from app.admission import Admission, calls_tools
from app.caller import Caller
from app.guard.api_keys import ApiKeys
from app.guard.fair_share import Shares
from app.guard.heap import Heap
from app.guard.rate_limits import Limits, parse_rates
from app.observability.dashboard import Dash
from app.observability.logs import TapeLog
from app.observability.metrics import Metrics
from app.observability.tracing import Tracing
from app.processes.engine_client import EngineClient, configuration
from app.processes.tokenizer_client import TokenizerClient
from app.readers.frame_cache import FrameCache
from app.readers.turns import Turns
from app.sampling_defaults import sampling_defaults
from app.settings import Settings, SettingsError
from app.tapes.engine_recovery import EngineRecovery
from app.tapes.observer import Observer
from app.tapes.registry import Registry
from app.tapes.stores.base import TapeStore
from app.tapes.stores.memory import MemoryStore
from app.tapes.stores.retention import TapeRetention
from model.checkpoints.checkpoint import Checkpoint, open_checkpoint
from model.checkpoints.hub import resolve
from model.protocol.sampling_params import SamplingDefaults
from model.text.tokenizer import Tokenizer

_BODIES = 64 << 20  # bytes of bodies that all clients may have under way

logger = logging.getLogger("tickertape")


@dataclass(frozen=True, slots=True)
class Opened:
    """What can be wrong before the engine runs: files are opened, and options checked."""

    settings: Settings
    path: Path
    checkpoint: Checkpoint
    tokenizer: Tokenizer
    defaults: SamplingDefaults
    api_keys: ApiKeys
    store: TapeStore
    tracing: Tracing | None

    @property
    def model_name(self) -> str:
        given = self.settings.model
        return self.checkpoint.name if Path(given).exists() else given

    @property
    def max_model_len(self) -> int:
        return self.settings.max_model_len or self.checkpoint.config.max_model_len


def opened(settings: Settings) -> Opened:
    """Raises ModelLoadError when the model cannot be opened, SettingsError for what else cannot."""
    api_keys = _api_keys(settings)
    path = resolve(settings.model)
    checkpoint = open_checkpoint(path)
    # Opened before the first request needs it: the engine loads for longer than this takes.
    tokenizer = checkpoint.tokenizer()
    if tokenizer.corrected:
        names = ", ".join(tokenizer.corrected)
        logger.warning("the model calls %s text; taken as control tokens all the same", names)
    found = Opened(
        settings=settings,
        path=path,
        checkpoint=checkpoint,
        tokenizer=tokenizer,
        defaults=sampling_defaults(settings, checkpoint),
        api_keys=api_keys,
        store=_store(settings),
        tracing=None,
    )
    if not settings.otlp_endpoint:
        return found
    return replace(found, tracing=Tracing(settings.otlp_endpoint, found.model_name))


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
    heap: Heap
    metrics: Metrics
    dash: Dash
    turns: Turns
    frame_cache: FrameCache
    tracing: Tracing | None
    started: int  # seconds since 1970

    def drain(self) -> None:
        """Refuse new work; what runs goes on."""
        self.link.drain()

    async def until_idle(self, seconds: float, gives_up: Callable[[], bool]) -> None:
        """Return when no tape runs any more, after so many seconds, or when `gives_up` says so."""
        deadline = time.monotonic() + seconds
        # A signal handler makes it give up, so there is no event to wait for.
        while (  # noqa: ASYNC110
            self.registry.num_active and time.monotonic() < deadline and not gives_up()
        ):
            await asyncio.sleep(0.05)

    async def end_streams(self) -> None:
        """Give every stream its end."""
        self.registry.close()
        await self.registry.store.flush()
        self.dash.close()


@contextlib.asynccontextmanager
async def started(
    opened: Opened, metrics: Metrics, engine: EngineClient | None
) -> AsyncIterator[Services]:
    """The services for as long as the block runs, with an engine of their own unless given one."""
    settings, store, tracing = opened.settings, opened.store, opened.tracing
    link = engine or EngineClient(configuration(settings, opened.path), settings.engine_timeout)
    if not engine:
        await link.start()
    recovery, dash = EngineRecovery(link), Dash(metrics, link)
    observers: list[Observer] = [metrics, dash, TapeLog(), *([tracing] if tracing else [])]
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
    tokenizer_client = TokenizerClient(opened.path)
    await tokenizer_client.start()
    try:
        yield Services(
            settings=settings,
            model_name=opened.model_name,
            link=link,
            registry=registry,
            admission=await _admission(opened, tokenizer_client, link, registry),
            api_keys=opened.api_keys,
            limits=Limits(
                parse_rates(settings.rate_limit) if settings.rate_limit else (),
                settings.max_concurrent,
            ),
            bodies=Shares(max(_BODIES, 4 * settings.max_body_size)),
            heap=Heap(),
            metrics=metrics,
            dash=dash,
            turns=Turns(),
            frame_cache=FrameCache(),
            tracing=tracing,
            started=int(time.time()),
        )
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


async def _admission(
    opened: Opened, tokenizer_client: TokenizerClient, link: EngineClient, registry: Registry
) -> Admission:
    settings, template = opened.settings, opened.checkpoint.chat_template
    return Admission(
        tokenizer=opened.tokenizer,
        tokenizer_client=tokenizer_client,
        chat_template=template,
        has_tools=await calls_tools(tokenizer_client, opened.tokenizer, template),
        config=opened.checkpoint.config,
        defaults=opened.defaults,
        link=link,
        registry=registry,
        max_model_len=opened.max_model_len,
        capacity=settings.max_num_seqs + settings.max_waiting,
    )


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


def _api_keys(settings: Settings) -> ApiKeys:
    try:
        return ApiKeys(settings.api_key_file)
    except (OSError, ValueError) as error:
        raise SettingsError(
            f"--api-key-file (or TICKERTAPE_API_KEY_FILE): {error}; give a file with one key a line"
        ) from None


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
