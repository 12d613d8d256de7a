"""Who does work for readers when: one bounded piece in each pass of the event loop.

A reader that keeps up with its tape takes no turn: its frame goes out at once. One that has much to
catch up with, or reads with a crowd, waits for its turn before each piece of work. So no number of
such readers makes a gap in the loop, nor takes the processor from the engine for long.
"""

import asyncio
import time
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from typing import Final

_SHARE: Final = 0.15  # of one processor's time
_BURST: Final = 0.1  # seconds of work that are done at once after a long rest
_LEAST: Final = 0.005  # and after a short one: to wake for less would cost the engine more


class Turns:
    """Clients take turns, and so do the readers of each: one client's crowd holds up nobody else.

    The time that pieces take is measured as processor time of the loop's thread, from the moment at
    which a turn is given to the next pass of the loop. All pieces together get `share` of the time,
    after `burst` seconds of work.
    """

    def __init__(self, share: float = _SHARE, burst: float = _BURST) -> None:
        self._share = share
        self._burst = burst
        self._credit = burst
        self._counted = time.monotonic()  # when the credit was counted
        self._began: float | None = None  # the turn that is under way
        self._waiting: dict[str, deque[asyncio.Future[None]]] = {}  # by client; the next is first
        self._timer: asyncio.TimerHandle | None = None

    async def take(self, client: str) -> None:
        """Wait for a turn. It is over with the next pass of the loop: nothing has to end it."""
        if self._began is None and not self._waiting and self._count_credit() > 0:
            self._begin()
            return
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.setdefault(client, deque()).append(turn)
        if self._began is None:
            self._give_next()
        await turn

    def _begin(self) -> None:
        self._began = time.thread_time()
        asyncio.get_running_loop().call_soon(self._end)

    def _end(self) -> None:
        if self._began is not None:
            self._credit -= time.thread_time() - self._began
        self._began = None
        self._give_next()

    def _give_next(self) -> None:
        """To one that still waits, now or when there is credit again."""
        if not self._waiting or self._timer:
            return
        credit = self._count_credit()
        if credit <= 0:
            loop = asyncio.get_running_loop()
            rest = (min(_LEAST, self._burst) - credit) / self._share
            self._timer = loop.call_later(rest, self._after_rest)
        elif turn := self._next():
            turn.set_result(None)
            self._begin()

    def _next(self) -> "asyncio.Future[None] | None":
        """The first that waits of the first client, who is the last one now."""
        while self._waiting:
            client = next(iter(self._waiting))
            turns = self._waiting.pop(client)
            turn = turns.popleft()
            if turns:
                self._waiting[client] = turns
            if not turn.done():  # else its reader has left
                return turn
        return None

    def _after_rest(self) -> None:
        self._timer = None
        self._give_next()

    def _count_credit(self) -> float:
        now = time.monotonic()
        gained = (now - self._counted) * self._share
        self._credit = min(self._credit + gained, self._burst)
        self._counted = now
        return self._credit


async def paced(
    pieces: Iterator[bytes], turn: Callable[[], Awaitable[None]]
) -> AsyncIterator[bytes]:
    """The pieces that hold something; each empty one stands for a turn."""
    for piece in pieces:
        if piece:
            yield piece
        else:
            await turn()
