"""`tickertape serve`: the engine first, and the application while it loads.

Both take seconds, most of it for what they import: so nothing heavy is imported up here.
"""

import asyncio
import logging

import uvicorn

from app.observability import logs
from app.processes.engine_client import EngineClient, configuration
from app.settings import Settings
from app.sockets import listening
from model.checkpoints.hub import resolve

logger = logging.getLogger("tickertape")


def run(settings: Settings) -> None:
    """Serve until told to stop. Raises ModelLoadError when the model cannot be served, and
    SettingsError when the keys or the tapes cannot be had, AddressError when the port is not free.
    """
    logs.configure(settings.log_level, settings.log_format)
    listening.check(settings.host, settings.port)
    new_loop = uvicorn.Config("", log_config=None).get_loop_factory()
    with asyncio.Runner(loop_factory=new_loop) as runner:
        runner.run(_serve(settings))


async def _serve(settings: Settings) -> None:
    link = EngineClient(configuration(settings, resolve(settings.model)), settings.engine_timeout)
    if logs.for_a_person(settings.log_format):
        logger.info("loading %s", settings.model)
    await link.start()
    try:
        from app.server import serve

        await serve(settings, link)
    finally:
        await link.stop()
