"""What clients share, so that none can take it all: places in a queue, bytes of memory.

No client has a fixed part. A client may have as much as is still free: one alone gets half, two get
a third each, and there is always room for one more (dynamic thresholds: Choudhury and Hahne,
IEEE/ACM Transactions on Networking 6(2), 1998).
"""

import asyncio
from collections import Counter
from typing import Generic, TypeVar

Item = TypeVar("Item")


class Shares:
    """`capacity` of something, and what each client has of it."""

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self._taken: Counter[str] = Counter()
        self._total = 0

    @property
    def taken(self) -> int:
        """By all clients together."""
        return self._total

    def take(self, client: str, amount: int) -> bool:
        """Whether the client got so much more; it has to give it back."""
        free = self.capacity - self._total
        if self._taken[client] + amount > free:
            return False
        self._taken[client] += amount
        self._total += amount
        return True

    def give_back(self, client: str, amount: int) -> None:
        self._total -= amount
        self._taken[client] -= amount
        if not self._taken[client]:  # addresses come without end
            del self._taken[client]


class FairQueue(Generic[Item]):
    """First come, first served for each client; clients take turns. Bounded by `Shares`."""

    def __init__(self, capacity: int) -> None:
        self._places = Shares(capacity)
        self._turns: dict[str, dict[Item, None]] = {}  # the next client first
        self._has_items = asyncio.Event()

    def __len__(self) -> int:
        return self._places.taken

    def put(self, client: str, item: Item) -> bool:
        """Whether there was a place for it."""
        if not self._places.take(client, 1):
            return False
        self._turns.setdefault(client, {})[item] = None
        self._has_items.set()
        return True

    async def get(self) -> Item:
        """Wait for the next one, and take it out."""
        await self._has_items.wait()
        client, items = next(iter(self._turns.items()))
        item = next(iter(items))
        self.discard(client, item)
        if items:  # the others go first now
            self._turns[client] = self._turns.pop(client)
        return item

    def discard(self, client: str, item: Item) -> None:
        """Take it out, if it still waits."""
        items = self._turns.get(client, {})
        if item not in items:
            return
        del items[item]
        self._places.give_back(client, 1)
        if not items:
            del self._turns[client]
        if not self._turns:
            self._has_items.clear()
