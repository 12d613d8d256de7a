"""Run in a network namespace of its own: a server, a stream, and then the only interface goes down.

unshare --net --map-root-user python -m tests.e2e.network_namespace LOG
"""

import asyncio
import fcntl
import socket
import struct
import sys
import time
from pathlib import Path

import httpx

from tests.answers import typing
from tests.server import running
from tests.speed import patience

SIOCGIFFLAGS, SIOCSIFFLAGS, IFF_UP = 0x8913, 0x8914, 1
ESTABLISHED = "01"
BODY = {"prompt": "Once", "max_length": 4000, "ignore_eos": True, "grace": 60}


def loopback(*, up: bool) -> None:
    """netdevice(7): the flags of interface lo."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as control:
        request = struct.pack("16sH14x", b"lo", 0)
        _, flags = struct.unpack("16sH14x", fcntl.ioctl(control, SIOCGIFFLAGS, request))
        flags = flags | IFF_UP if up else flags & ~IFF_UP
        fcntl.ioctl(control, SIOCSIFFLAGS, struct.pack("16sH14x", b"lo", flags))


def connections(port: int) -> int:
    """How many of the server's own sockets are connected; needs no network."""
    lines = Path("/proc/net/tcp").read_text().splitlines()[1:]
    fields = [line.split() for line in lines]
    return sum(
        local.endswith(f":{port:04X}") and state == ESTABLISHED for _, local, _, state, *_ in fields
    )


async def main(log: Path) -> None:
    loopback(up=True)
    with running(log, "--send-timeout", "2", "--ping-interval", "1") as server:
        async with (
            httpx.AsyncClient(base_url=server.url, timeout=patience(60)) as http,
            typing(http, BODY),
        ):
            took = await go_dark(server.port)
            await server.health_becomes(10, running=0, paused=1)
        assert server.stop() == 0
    print(f"the server let go after {took:.1f} s")


async def go_dark(port: int) -> float:
    """Nothing gets through until the server has no connection left; how many seconds it took."""
    loopback(up=False)
    dark = time.monotonic()
    while connections(port):
        assert time.monotonic() < dark + patience(30)
        await asyncio.sleep(0.05)
    loopback(up=True)
    return time.monotonic() - dark


if __name__ == "__main__":
    asyncio.run(main(Path(sys.argv[1])))
