"""A TCP proxy between a client and a server, to cut their connections for real."""

import asyncio
import contextlib
from typing import Self
from urllib.parse import urlsplit


class Proxy:
    """Use it with `async with`; clients connect to `url`.

    With `cut_after` every connection is reset so many seconds after it was made. `cut()` resets all
    there are. While `refuses`, new ones are closed at once. `heads` are the first bytes that each
    connection has sent.
    """

    def __init__(self, target: str, cut_after: float | None = None) -> None:
        self.lead_to(target)
        self._cut_after = cut_after
        self._open: set[asyncio.StreamWriter] = set()
        self._connections: set[asyncio.Task[None]] = set()
        self.refuses = False
        self.heads: list[bytes] = []

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", 0)
        self.url = f"http://127.0.0.1:{self._server.sockets[0].getsockname()[1]}"
        return self

    async def __aexit__(self, *_: object) -> None:
        self._server.close()
        self.cut()
        await asyncio.gather(*self._connections)

    def lead_to(self, target: str) -> None:
        """From now on connect to this one."""
        parts = urlsplit(target)
        self._target = parts.hostname, parts.port

    def cut(self) -> None:
        """Reset every connection, on both sides."""
        for writer in self._open:
            writer.transport.abort()

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task
        self._connections.add(task)
        try:
            if self.refuses:
                writer.transport.abort()
            else:
                await self._connect(reader, writer)
        finally:
            self._connections.discard(task)

    async def _connect(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            far_reader, far_writer = await asyncio.open_connection(*self._target)
        except OSError:
            writer.transport.abort()
            return
        both = writer, far_writer
        self._open.update(both)
        try:
            async with asyncio.timeout(self._cut_after):
                head = await reader.read(1 << 16)
                self.heads.append(head)
                far_writer.write(head)
                await asyncio.gather(_copy(reader, far_writer), _copy(far_reader, writer))
        except (TimeoutError, OSError):
            pass
        finally:
            for end in both:
                end.transport.abort()
                self._open.discard(end)


async def _copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Until the one side ends; the other is told."""
    with contextlib.suppress(OSError):
        while data := await reader.read(1 << 16):
            writer.write(data)
            await writer.drain()
    writer.close()
