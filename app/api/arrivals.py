"""Which request begins when: of each client, one in each pass of the event loop.

Many requests cost a few milliseconds of the loop each. A client that sends hundreds of them at once
waits for them itself: between two of them the loop serves everybody else.
"""

import asyncio
from collections import deque

from starlette.requests import Request
from starlette.types import ASGIApp, Receive, Scope, Send

from app.errors import APIError
from app.services import caller_of


class Arrivals:
    """ASGI middleware. It wraps neither `receive` nor `send`: a stream's frames cost nothing.

    A request's `state.client` says whose share of the server it counts towards.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app
        self._begun: set[str] = set()  # clients with a request that began in this pass of the loop
        self._waiting: dict[str, deque[asyncio.Future[None]]] = {}  # never empty; the next is first

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            scope["state"]["client"] = client = _client(scope, receive)
            await self._turn(client)
        await self._app(scope, receive, send)

    async def _turn(self, client: str) -> None:
        """Return when a request of this client may begin."""
        if client not in self._begun:
            self._begin(client)
            return
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.setdefault(client, deque()).append(turn)
        await turn

    def _begin(self, client: str) -> None:
        if not self._begun:
            asyncio.get_running_loop().call_soon(self._next_pass)
        self._begun.add(client)

    def _next_pass(self) -> None:
        self._begun.clear()
        for client in list(self._waiting):
            if turn := self._next_of(client):
                self._begin(client)
                turn.set_result(None)

    def _next_of(self, client: str) -> "asyncio.Future[None] | None":
        """The first that still waits: the server may have cancelled some."""
        turns = self._waiting[client]
        while turns and turns[0].done():
            turns.popleft()
        turn = turns.popleft() if turns else None
        if not turns:
            del self._waiting[client]
        return turn


def _client(scope: Scope, receive: Receive) -> str:
    """Who is refused later for want of a key counts by address."""
    try:
        return caller_of(Request(scope, receive)).client
    except APIError:
        return scope["client"][0] if scope.get("client") else ""
