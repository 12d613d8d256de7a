"""A Redis of our own, where nobody has named one."""

import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from app.settings import SettingsError

_REDIS_SECONDS = 10.0


@contextmanager
def own_redis(folder: Path) -> Iterator[str]:
    """A Redis for as long as the block runs; its URL. Only this user can open its socket."""
    program = shutil.which("redis-server")
    if program is None:
        raise SettingsError(
            "tapes are to be in Redis; install redis-server, or name a Redis that runs with "
            "--tapes (or TICKERTAPE_TAPES)"
        )
    path = folder / "redis.sock"
    command = [program, "--port", "0", "--unixsocket", str(path), "--unixsocketperm", "700"]
    process = subprocess.Popen(
        [*command, "--dir", str(folder), "--save", ""],
        stdout=subprocess.DEVNULL,
        start_new_session=True,  # Ctrl-C is for us, and Redis goes last
    )
    try:
        _wait_for(path, process)
        yield f"unix://{path}"
    finally:
        process.terminate()
        process.wait()


def _wait_for(path: Path, process: subprocess.Popen[bytes]) -> None:
    """Until it takes connections. Raises SettingsError when it does not."""
    deadline = time.monotonic() + _REDIS_SECONDS
    with socket.socket(socket.AF_UNIX) as probe:
        while probe.connect_ex(str(path)):
            if process.poll() is not None or time.monotonic() > deadline:
                raise SettingsError("redis-server does not start; name a Redis with --tapes")
            time.sleep(0.02)
