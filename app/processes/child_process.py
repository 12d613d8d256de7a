"""A child process and the socket to it: started whole or not at all, ended within seconds."""

import asyncio
import contextlib
import logging
import os
import socket
from asyncio.subprocess import DEVNULL, Process
from collections.abc import Callable, Mapping, Sequence

logger = logging.getLogger("tickertape")

_SECONDS_TO_GO = 2.0  # after its socket is closed
_SECONDS_TO_DIE = 5.0  # after SIGKILL: in a system call that cannot be interrupted it takes longer


class ChildProcess:
    """A running child. Closing its socket tells it to exit."""

    def __init__(self, process: Process, transport: asyncio.Transport) -> None:
        self._process = process
        self._transport = transport

    @classmethod
    async def start(
        cls,
        command: Sequence[str],
        protocol: Callable[[], asyncio.Protocol],
        environment: Mapping[str, str] = os.environ,
    ) -> "ChildProcess":
        """Start `command`; the number of its socket is its last argument.

        Raises OSError, such as for want of descriptors or memory: then nothing is left behind.
        """
        ours, theirs = socket.socketpair()
        process: Process | None = None
        try:
            with theirs:
                process = await asyncio.create_subprocess_exec(
                    *command,
                    str(theirs.fileno()),
                    pass_fds=[theirs.fileno()],
                    env=environment,
                    stdin=DEVNULL,
                    start_new_session=True,  # a Ctrl-C or a hang-up of the terminal is for us only
                )
            loop = asyncio.get_running_loop()
            transport, _ = await loop.create_connection(protocol, sock=ours)
        except BaseException:
            ours.close()
            if process:
                _kill(process)
            raise
        return cls(process, transport)

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def connected(self) -> bool:
        return not self._transport.is_closing()

    def write(self, frame: bytes) -> None:
        self._transport.write(frame)

    def kill(self) -> None:
        """End it at once; nothing more is heard of it, even if it cannot be ended."""
        self._transport.abort()
        _kill(self._process)

    async def end(self) -> int | None:
        """Close the socket, and kill a child that does not exit by itself.

        Returns the exit code, or None for a child that even SIGKILL does not end: it is left.
        """
        self._transport.abort()  # `close` would wait until a child that hangs has read everything
        with contextlib.suppress(TimeoutError):
            return await asyncio.wait_for(self._process.wait(), _SECONDS_TO_GO)
        self.kill()
        with contextlib.suppress(TimeoutError):
            return await asyncio.wait_for(self._process.wait(), _SECONDS_TO_DIE)
        logger.error("process %d does not end after SIGKILL; it is left behind", self.pid)
        return None


def _kill(process: Process) -> None:
    with contextlib.suppress(ProcessLookupError):  # it has ended just now
        process.kill()
