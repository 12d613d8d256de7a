"""What the kernel knows of an answer that is on its way: how much waits, and how much was taken.

By itself the kernel closes a connection that takes or acknowledges nothing for --send-timeout
(RFC 5482). But to Linux a reader with a small window, which takes a few hundred bytes now and then,
takes nothing: its probes count on until the window holds a whole segment. So
app/readers/tape_response.py watches streams in its place.
"""

import asyncio
import contextlib
import fcntl
import socket
import sys
import termios
from typing import Final

# An extension of ASGI: its "sending" is a Sending.
EXTENSION: Final = "tickertape.sending"

_ON_LINUX: Final = sys.platform.startswith("linux")
_BYTES_ACKED: Final = slice(120, 128)  # tcpi_bytes_acked in Linux's struct tcp_info


class Sending:
    """Of a connection with a transport of asyncio."""

    def __init__(self, transport: asyncio.Transport) -> None:
        self._transport = transport
        self._socket: socket.socket = transport.get_extra_info("socket")

    def unsent(self) -> int:
        """Bytes written and not acknowledged; of those that the kernel has, on Linux only."""
        waiting = bytearray(4)
        if _ON_LINUX:
            with contextlib.suppress(OSError, ValueError):  # closed meanwhile
                fcntl.ioctl(self._socket.fileno(), termios.TIOCOUTQ, waiting)
        return self._transport.get_write_buffer_size() + int.from_bytes(waiting, sys.byteorder)

    def taken(self) -> int:
        """Bytes that were acknowledged, since the connection began; 0 where it is not known."""
        told = b""
        if _ON_LINUX:
            with contextlib.suppress(OSError):
                told = self._socket.getsockopt(
                    socket.IPPROTO_TCP, socket.TCP_INFO, _BYTES_ACKED.stop
                )
        return int.from_bytes(told[_BYTES_ACKED], sys.byteorder)

    def close_when_stuck(self, seconds: float) -> None:
        """Have the kernel do so; 0 is never."""
        if _ON_LINUX:
            with contextlib.suppress(OSError):
                self._socket.setsockopt(
                    socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, int(seconds * 1000)
                )
