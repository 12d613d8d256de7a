"""`tickertape cluster`: replicas of the service on Ray Serve, each with an engine of its own.

Ray starts replicas, replaces those that die, and hands requests to them. Tapes are in Redis: what a
replica has begun any other shows and goes on with. `tickertape cluster` needs nothing that runs
already; on a cluster of Ray's that is there, `serve run app.cluster.deploy:application replicas=4`.
"""

import contextlib
import logging
import os
import queue
import secrets
import signal
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import ExitStack, asynccontextmanager, contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from types import FrameType
from typing import Any

from fastapi import FastAPI
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app.cluster.autoscaling import SEQUENCES
from app.cluster.local_redis import own_redis
from app.main import create_app
from app.observability import logs
from app.services import Services
from app.settings import ClusterSettings, SettingsError, load
from model.protocol.errors import ModelLoadError

# Ray's own processes shall not be seen from outside. It reads this when it is imported, and then
# takes 127.0.0.1 for the address of this machine; on Linux it would choose one that others reach.
os.environ.setdefault("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")

try:
    import ray
    from ray import serve
except ImportError:
    raise SettingsError(
        "tickertape cluster needs Ray; install it with pip install 'tickertape[cluster]'"
    ) from None

logger = logging.getLogger("tickertape.cluster")

NAME = "tickertape"

# For all that Ray starts here. The metrics of the autoscaler would come every ten seconds.
_ENVIRONMENT = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_COLOR_PREFIX": "0",
    "RAY_worker_niceness": "0",  # by default replicas and their engines get 15
    "GRPC_ENABLE_FORK_SUPPORT": "0",  # else it warns of each engine that is started
    "RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH": "app.cluster.sessions:proxy_layers",
    "RAY_SERVE_REPLICA_AUTOSCALING_METRIC_PUSH_INTERVAL_S": "2",
    "RAY_SERVE_HANDLE_AUTOSCALING_METRIC_PUSH_INTERVAL_S": "2",
}

_LOGGING = {"log_level": "WARNING", "enable_access_log": False}  # of Ray; ours tells of requests
_LOOK_BACK_SECONDS = 15.0  # over which the autoscaler takes the mean
_OBJECT_STORE = 100 * 2**20  # nothing large is handed around
_ATTEMPTS = 3  # to start a replica, before it is said that it cannot be done

_ONE_SIGNAL = 1.0  # seconds in which several signals are one, as in app/server.py

# Whether there is room is for our own admission to say, which answers 429 where Ray would wait.
_UNBOUNDED = 100_000


@serve.ingress()
class Replica:
    """One application and its engine, in a process that Ray starts and ends."""

    def __init__(self, settings: ClusterSettings) -> None:
        self._settings = settings
        self._app: FastAPI

    def __serve_build_asgi_app__(self) -> FastAPI:
        logs.configure(self._settings.log_level, self._settings.log_format)
        self._app = _as_ray_needs_it(create_app(self._settings), self._settings.shutdown_grace)
        self._app.add_middleware(Named, name=serve.get_replica_context().replica_id.unique_id)
        return self._app

    async def check_health(self) -> None:
        """Ray asks now and then, and replaces a replica whose engine has failed for good."""
        failure = self._services.link.failure
        if failure.done():
            raise failure.result()

    async def record_autoscaling_stats(self) -> dict[str, float]:
        return {SEQUENCES: self._services.registry.num_active}

    @property
    def _services(self) -> Services:
        services: Services = self._app.state.services
        return services


class Named:
    """ASGI layer: says which replica has answered. With `serve`, uvicorn adds the other header."""

    def __init__(self, app: ASGIApp, name: str) -> None:
        self._app = app
        self._headers = [(b"x-replica", name.encode()), (b"x-content-type-options", b"nosniff")]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def naming(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message.get("headers", ()), *self._headers]
            await send(message)

        await self._app(scope, receive, naming)


def _as_ray_needs_it(app: FastAPI, grace: float) -> FastAPI:
    """Requests come as soon as it has started, so by then the model is loaded.

    And it is ended when no request is left: tapes that nobody reads may still be running.
    """
    start_and_stop = app.router.lifespan_context

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[Any]:
        async with start_and_stop(app) as state:
            services: Services = app.state.services
            await services.link.loaded()
            yield state
            services.drain()
            # As long as another replica is there, it would go on with them.
            store = services.registry.store
            await services.until_idle(grace, lambda: store.hands_over)

    app.router.lifespan_context = lifespan
    return app


def deployment(settings: ClusterSettings) -> serve.Application:
    """The service as Ray Serve deploys it. Whenever it is run anew, all replicas are replaced."""
    most = settings.max_replicas or settings.replicas
    options = serve.deployment(
        name=NAME,
        max_ongoing_requests=_UNBOUNDED,
        graceful_shutdown_timeout_s=settings.drain_timeout,
        graceful_shutdown_wait_loop_s=0.5,
        max_constructor_retry_count=_ATTEMPTS,
        logging_config=_LOGGING,
        max_surge_percent=100,  # those that come are ready before those go that are to be replaced
        ray_actor_options={"num_cpus": settings.replica_cpus, "num_gpus": settings.replica_gpus},
        autoscaling_config={
            "min_replicas": settings.replicas,
            "max_replicas": most,
            "target_ongoing_requests": settings.target_streams,
            "upscale_delay_s": settings.scale_up_after,
            "downscale_delay_s": settings.scale_down_after,
            "look_back_period_s": _LOOK_BACK_SECONDS,
            "policy": {"policy_function": "app.cluster.autoscaling:wanted_replicas"},
        },
        request_router_config={
            "request_router_class": "app.cluster.prefix_router:PrefixRouter",
            "request_router_kwargs": {"seats": settings.max_num_seqs},
        },
    )
    application: serve.Application = options(Replica).bind(_with_whole_paths(settings))
    return application


def application(flags: dict[str, Any]) -> serve.Application:
    """For `serve run app.cluster.deploy:application NAME=VALUE ...`, on a cluster that is there."""
    settings = load(ClusterSettings, flags)
    if settings.tapes == "memory":
        raise SettingsError("tapes must be in a Redis that all replicas reach: tapes=redis://...")
    return deployment(settings)


def _with_whole_paths(settings: ClusterSettings) -> ClusterSettings:
    """Replicas have a working directory of Ray's."""
    changed: dict[str, Any] = {}
    if Path(settings.model).exists():
        changed["model"] = str(Path(settings.model).resolve())
    if settings.api_key_file:
        changed["api_key_file"] = settings.api_key_file.resolve()
    changed["threads"] = settings.threads or settings.replica_cpus
    return settings.model_copy(update=changed)


def run(read: Callable[[], ClusterSettings]) -> None:
    """Serve until told to stop; at SIGHUP, read the settings again and replace all replicas.

    Raises ModelLoadError when the model cannot be served, SettingsError for what a user can mend.
    """
    settings = read()
    create_app(settings)  # what is wrong with model or keys is said here, once
    logs.configure(settings.log_level, settings.log_format)
    signals = _Signals()
    with ExitStack() as ends:
        folder = Path(ends.enter_context(TemporaryDirectory(prefix="tickertape-")))
        tapes = settings.tapes
        if tapes == "memory":
            tapes = ends.enter_context(own_redis(folder))
        ends.enter_context(_ray(settings, folder))
        signals.listen()  # Ray has its own handlers, for a driver that dies of them
        _deploy(settings, tapes)
        progress = _Progress(f"http://{settings.host}:{settings.port}")
        while (told := signals.next(progress.look)) == signal.SIGHUP:
            with contextlib.suppress(SettingsError):
                _deploy(_read_again(read), tapes)
        logger.info("ending: %s", told.name)
        signals.give_up_at_the_next()
        serve.shutdown()


def _read_again(read: Callable[[], ClusterSettings]) -> ClusterSettings:
    try:
        settings = read()
    except SettingsError as error:
        logger.error("nothing is changed: %s", error)
        raise
    logger.info("replacing all replicas, one after the other")
    return settings


def _deploy(settings: ClusterSettings, tapes: str) -> None:
    """Tell Ray what there should be; it comes to be meanwhile."""
    target = deployment(settings.model_copy(update={"tapes": tapes}))
    serve.run_many([serve.RunTarget(target, NAME, "/")], wait_for_applications_running=False)


class _Progress:
    """One line in the log whenever the replicas have changed."""

    def __init__(self, url: str) -> None:
        self._url = url
        self._last = ""

    def look(self) -> None:
        """Raises ModelLoadError when no replica can be started. One that is there goes on."""
        status = serve.status().applications[NAME]
        states = {
            state.lower(): count
            for deployed in status.deployments.values()
            for state, count in deployed.replica_states.items()
            if count
        }
        failed = status.message if status.status == "DEPLOY_FAILED" else ""
        if failed and "running" not in states:
            raise ModelLoadError(f"no replica can be started: {failed}")
        told = ", ".join(f"{count} {state}" for state, count in sorted(states.items()))
        if (told := f"{told or 'none'}{failed and '; ' + failed}") != self._last:
            self._last = told
            logger.info("replicas at %s: %s", self._url, told)


class _Signals:
    """Those that tell the cluster something, in the order in which they came."""

    _MEANT = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)

    def __init__(self) -> None:
        self._told: queue.SimpleQueue[signal.Signals] = queue.SimpleQueue()

    def listen(self) -> None:
        for number in self._MEANT:
            signal.signal(number, lambda number, _: self._told.put(signal.Signals(number)))

    def next(self, meanwhile: Callable[[], None]) -> signal.Signals:
        while True:
            with contextlib.suppress(queue.Empty):
                return self._told.get(timeout=1)
            meanwhile()

    def give_up_at_the_next(self) -> None:
        """A second one, well after the first, ends the wait for streams, too."""
        told = time.monotonic()

        def give_up(number: int, frame: FrameType | None) -> None:
            if time.monotonic() - told >= _ONE_SIGNAL:
                raise KeyboardInterrupt

        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, give_up)


@contextmanager
def _ray(settings: ClusterSettings, folder: Path) -> Iterator[None]:
    """A Ray of our own on this machine, for as long as the block runs."""
    os.environ |= _ENVIRONMENT
    os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))  # else it is kept in a file
    most = settings.max_replicas or settings.replicas
    logger.info("starting Ray")
    ray.init(
        address="local",
        # Not what the machine has but what may be there: while all are replaced, twice as many.
        num_cpus=2 * most * settings.replica_cpus + 1,
        include_dashboard=False,
        object_store_memory=_OBJECT_STORE,
        logging_level=logging.WARNING,
        _temp_dir=str(folder),
    )
    try:
        serve.start(
            proxy_location="HeadOnly",
            http_options={"host": settings.host, "port": settings.port},
            logging_config=_LOGGING,
        )
        yield
    finally:
        ray.shutdown()
