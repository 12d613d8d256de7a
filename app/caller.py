"""Who asks, and whether they are still there."""

import asyncio
from collections.abc import Coroutine
from dataclasses import dataclass
from typing import Any, TypeVar

from starlette.types import Receive

from app.errors import APIError
from app.tapes.tape import Tape

T = TypeVar("T")


class CallerLeftError(APIError):
    """The caller has closed the connection: nobody reads an answer. 499 is what nginx logs."""

    def __init__(self) -> None:
        super().__init__(499, "the client has closed the connection", code="client_closed_request")


@dataclass(slots=True)
class Caller:
    """Who asks: `owner` is whose tapes they may read, and make; "" where there are no keys.

    `tape` is the one that they have begun or found: what the log tells of the request. `receive` is
    ASGI's: it tells when they leave.
    """

    owner: str
    address: str
    receive: Receive
    tape: Tape | None = None

    @property
    def client(self) -> str:
        """Whose share of the server a request counts towards: a key's, or else an address's."""
        return self.owner or self.address

    async def leaves(self) -> None:
        """Return when the caller has closed the connection. The body must have been read."""
        while (await self.receive())["type"] != "http.disconnect":
            pass

    async def unless_left(self, work: Coroutine[Any, Any, T]) -> T:
        """What `work` returns. Raises CallerLeftError, and cancels it, when the caller leaves."""
        working, leaving = asyncio.create_task(work), asyncio.create_task(self.leaves())
        try:
            await asyncio.wait((working, leaving), return_when=asyncio.FIRST_COMPLETED)
            if not working.done():
                raise CallerLeftError
            return working.result()
        finally:
            working.cancel()
            leaving.cancel()
