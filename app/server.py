"""uvicorn with one worker, and an end that leaves no stream without its end."""

import asyncio
import contextlib
import gc
import logging
import signal
import socket
import sys
import time
from collections.abc import Iterator
from types import FrameType

import uvicorn
from sse_starlette.sse import AppStatus

from app.main import create_app
from app.observability import logs
from app.observability.banner import address_of, banner
from app.processes.engine_client import EngineClient, EngineFailedError
from app.services import Services
from app.settings import Settings, SettingsError
from app.sockets import listening
from app.sockets.connections import allow_all_descriptors
from app.sockets.http_protocol import http_with
from model.protocol.errors import ModelLoadError
from model.protocol.messages import Ready

logger = logging.getLogger("tickertape")

# After every tape has its terminal entry, how long readers may take to fetch it.
_FLUSH_SECONDS = 1

# Seconds in which several signals are one: a supervisor may signal a group and its leader, GNU make
# hands a signal on that its child has got too.
_ONE_SIGNAL = 1.0

# Objects between two collections of the young ones, and collections between two of older ones.
_COLLECTIONS = (5_000, 10, 100)

# Bytes that the kernel keeps for one reader (it doubles them). By itself it takes megabytes, and a
# reader that takes nothing would be noticed minutes later.
_SEND_BUFFER = 64 * 1024


class Server(uvicorn.Server):
    """Ends every tape when the process is told to go, and goes when the engine cannot serve."""

    failure: EngineFailedError | None = None
    _first_signal: float | None = None

    @property
    def _services(self) -> Services:
        services: Services = self.config.app.state.services  # type: ignore[union-attr]
        return services

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        try:
            await super().startup(sockets)
        except SystemExit:  # uvicorn has logged why; the address was free before the model loaded
            settings = self._services.settings
            raise listening.busy(settings.host, settings.port) from None
        for server in self.servers:
            for opened in server.sockets:
                bound_connections(opened, self._services.settings.send_timeout)
        _spare_the_loop_collections()

    async def main_loop(self) -> None:
        watch = asyncio.create_task(self._watch_engine())
        await super().main_loop()
        watch.cancel()

    async def _watch_engine(self) -> None:
        """Say when the model is loaded; end the server when it cannot be."""
        link = self._services.link
        try:
            self._announce(await link.loaded())
            raise await asyncio.shield(link.failure)
        except EngineFailedError as failure:
            if not self.should_exit:  # else the engine was told to go, too, and has not ignored it
                self.failure = failure
                self.should_exit = True

    def _announce(self, ready: Ready) -> None:
        """A banner for a person at a terminal; elsewhere the same in one line of the log."""
        settings, model = self._services.settings, self._services.model_name
        port = self.servers[0].sockets[0].getsockname()[1]
        url = address_of(settings.host, port)
        if logs.for_a_person(settings.log_format) and logger.isEnabledFor(logging.INFO):
            print(banner(model, url, ready), file=sys.stderr, flush=True)
            return
        logger.info(
            "%s loaded in %.1f s: %s on %s, context %d tokens, KV cache %d blocks",
            model,
            ready.load_seconds,
            ready.dtype,
            ready.device,
            ready.max_model_len,
            ready.kv_blocks_total,
            extra={
                "url": url,
                "dash": f"{url}/dash",
                "docs": f"{url}/docs",
                "base_url": f"{url}/v1",
                "model": model,
                "dtype": ready.dtype,
                "threads": ready.threads,
                "kv_tokens": ready.kv_tokens,
                "kv_bytes": ready.kv_bytes,
            },
        )

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """From now on to the end of the process: one that comes after the last stream has ended
        must not change the exit code.

        A terminal that hangs up is like SIGTERM, unless nohup has made SIGHUP ignored.
        """
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            if number != signal.SIGHUP or signal.getsignal(number) != signal.SIG_IGN:
                signal.signal(number, self.handle_exit)
        yield

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """The first signal drains, one that comes well after it ends the wait at once."""
        now = time.monotonic()
        self._first_signal = self._first_signal or now
        self.force_exit = self.force_exit or now - self._first_signal >= _ONE_SIGNAL
        if self.started:  # before that, no services are there
            self._services.drain()
        self.should_exit = True

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Refuse new work, let streams finish within the grace period, end the rest, and go."""
        services = self._services
        services.drain()  # a signal has done so already, a failing engine has not
        grace = services.settings.shutdown_grace
        await services.until_idle(grace, lambda: self.force_exit or self.failure is not None)
        await services.end_streams()
        await super().shutdown(sockets)


def _spare_the_loop_collections() -> None:
    """What start-up made stays: a full collection would walk it all, 60 ms in which no token moves.

    With Python's own thresholds a body of 40,000 lists caused a full collection: 20 to 120 ms.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(*_COLLECTIONS)


def bound_connections(listening: socket.socket, seconds: float) -> None:
    """Every connection accepted here inherits it: little is kept for a reader, and one that takes
    or acknowledges nothing for so long is closed by the kernel (RFC 5482), wherever it has gone."""
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _SEND_BUFFER)
    if hasattr(socket, "TCP_USER_TIMEOUT"):
        listening.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, int(seconds * 1000))


async def _check_host(host: str) -> None:
    """Raises SettingsError for one that has no address; uvicorn would not name the option."""
    try:
        await asyncio.get_running_loop().getaddrinfo(host, None, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError) as error:
        raise SettingsError(
            f"--host (or TICKERTAPE_HOST) {host!r} has no address: {error}; give 127.0.0.1, or "
            "0.0.0.0 to be reached from other machines"
        ) from None


async def serve(settings: Settings, link: EngineClient) -> None:
    """Serve until told to stop. Raises ModelLoadError when the model cannot be served,
    SettingsError when the host has no address, and AddressError when its port is taken.
    """
    await _check_host(settings.host)
    # We end the streams ourselves; sse-starlette would cancel them without a terminal frame.
    AppStatus.enable_automatic_graceful_drain = False
    config = uvicorn.Config(
        create_app(settings, link),
        host=settings.host,
        port=settings.port,
        http=http_with(settings),
        ws="none",
        headers=[("X-Content-Type-Options", "nosniff")],
        log_config=None,
        log_level=settings.log_level,
        access_log=False,  # app/observability/access_log.py tells more
        timeout_graceful_shutdown=_FLUSH_SECONDS,
    )
    allow_all_descriptors()
    server = Server(config)
    await asyncio.sleep(0)  # a Ctrl-C that has come by now ends it here, not in uvicorn's start-up
    await server.serve()
    if server.failure:
        raise ModelLoadError(str(server.failure))
