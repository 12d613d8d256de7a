"""Whether the server can listen on its address, asked before the model loads."""

import errno
import socket
from collections.abc import Iterable

_TRIED_AFTER = 100  # ports after the busy one, before any free one is named


class AddressError(Exception):
    """The address cannot be listened on; one line that says what to do."""


def check(host: str, port: int) -> None:
    """Raises AddressError when another program has the port, or this user may not take it.

    A host without an address is left to the server, whose message names the option.
    """
    try:
        addresses = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except (OSError, UnicodeError):
        return
    for family, _, _, _, address in addresses:
        if error := _obstacle(family, address):
            raise AddressError(_sentence(host, port, error))


def busy(host: str, port: int) -> AddressError:
    """For a port that another program took after `check`."""
    return AddressError(_sentence(host, port, OSError(errno.EADDRINUSE, "in use")))


def _obstacle(family: int, address: tuple[object, ...]) -> OSError | None:
    """Why a server cannot listen there. An address family that is switched off is no obstacle."""
    try:
        with socket.socket(family, socket.SOCK_STREAM) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if family == socket.AF_INET6:  # as asyncio does: IPv4 has its own
                probe.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            probe.bind(address)
            probe.listen(1)  # two that may share an address by SO_REUSEADDR part only here
    except OSError as error:
        return error if error.errno in (errno.EADDRINUSE, errno.EACCES) else None
    return None


def _sentence(host: str, port: int, error: OSError) -> str:
    why = "needs root" if error.errno == errno.EACCES else f"is already in use on {host}"
    later = range(port + 1, min(port + 1 + _TRIED_AFTER, 65536))
    free = _first_free(host, later if error.errno == errno.EADDRINUSE else range(8000, 8100))
    advice = f"--port {free} is free" if free else "--port 0 takes a free one"
    return f"port {port} {why}: choose another with --port (or TICKERTAPE_PORT); {advice}"


def _first_free(host: str, ports: Iterable[int]) -> int | None:
    for port in ports:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        if not any(_obstacle(family, address) for family, _, _, _, address in found):
            return port
    return None
