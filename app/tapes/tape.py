"""The log: what one generation has brought forth so far. Knows no connection and no wire format."""

import asyncio
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Literal

import msgspec

from model.messages import Finished, FinishReason, Logprob, Started, Token


class Entry(msgspec.Struct, frozen=True, gc=False):
    """One step of one sequence."""

    text: str
    token_id: int
    logprob: Logprob | None = None

    @property
    def size(self) -> int:
        """About how many bytes of memory it takes."""
        alternatives = 1 + len(self.logprob.top) if self.logprob else 0
        return 200 + len(self.text) + 300 * alternatives


@dataclass(frozen=True, slots=True)
class Usage:
    prompt_tokens: int
    completion_tokens: int
    cached_tokens: int


@dataclass(frozen=True, slots=True)
class Timings:
    """In milliseconds since the tape began; None where it did not come to that."""

    queue_ms: float | None
    ttft_ms: float | None
    total_ms: float
    tokens_per_second: float | None


@dataclass(frozen=True, slots=True)
class End:
    """The last entry of every tape."""

    finish_reason: FinishReason
    usage: Usage
    timings: Timings
    error: str | None = None


@dataclass(slots=True, eq=False)
class Tape:
    """Entries 1, 2, 3 ... without gaps; the last one is an End, whatever happened.

    Readers wait for what comes next; appending wakes them all and never waits for any.
    `size` is about how many bytes of memory its entries take.
    """

    id: str
    prompt_tokens: int
    began: float = field(default_factory=time.monotonic)
    entries: list[Entry] = field(default_factory=list)
    end: End | None = None
    ended_at: float | None = None
    queue_ms: float | None = None
    cached_tokens: int = 0
    paused: bool = False
    size: int = 0
    _first: float | None = None
    _last: float | None = None
    _changed: asyncio.Event = field(default_factory=asyncio.Event)

    @property
    def last(self) -> int:
        """The number of the newest entry; 0 when there is none."""
        return len(self.entries) + (self.end is not None)

    @property
    def status(self) -> Literal["queued", "running", "paused", "done"]:
        if self.end:
            return "done"
        if self.paused:
            return "paused"
        return "queued" if self.queue_ms is None else "running"

    @property
    def text(self) -> str:
        return "".join(entry.text for entry in self.entries)

    @property
    def usage(self) -> Usage:
        return Usage(self.prompt_tokens, len(self.entries), self.cached_tokens)

    @property
    def timings(self) -> Timings:
        """As of now, or as of its end."""
        if self.end:
            return self.end.timings
        return Timings(
            queue_ms=self.queue_ms,
            ttft_ms=None if self._first is None else (self._first - self.began) * 1000,
            total_ms=(time.monotonic() - self.began) * 1000,
            tokens_per_second=self._decode_rate(),
        )

    def _decode_rate(self) -> float | None:
        """Tokens after the first, over the time that they took."""
        if self._first is None or self._last is None or self._last == self._first:
            return None
        return (len(self.entries) - 1) / (self._last - self._first)

    def append(self, entry: Entry) -> None:
        """Raises ValueError on a tape that has ended."""
        if self.end:
            raise ValueError(f"tape {self.id} has ended; nothing can be appended")
        self._last = time.monotonic()
        if self._first is None:
            self._first = self._last
        self.entries.append(entry)
        self.size += entry.size
        self._wake()

    def record(self, event: Started | Token | Finished) -> None:
        """Write down one event of the engine."""
        match event:
            case Token():
                self.append(Entry(event.text, event.token_id, event.logprob))
            case Started():
                self.queue_ms = event.queue_ms
                self.cached_tokens = event.cached_tokens
            case Finished():
                self.finish(event.reason, event.error)

    def finish(self, reason: FinishReason, error: str | None = None) -> None:
        """Write the terminal entry; on a tape that has one already, nothing happens."""
        if self.end is None:
            self.end = End(reason, self.usage, self.timings, error)
            self.ended_at = time.monotonic()
            self._wake()

    def _wake(self) -> None:
        """Whoever waits goes on; who comes now waits for the next change."""
        self._changed.set()
        self._changed.clear()

    async def read(self, after: int = 0) -> AsyncIterator[list[Entry | End]]:
        """Batches of entries with numbers above `after`, as they come, until the terminal one.

        A reader that is behind gets all it has missed in one batch.
        """
        while True:
            batch: list[Entry | End] = [*self.entries[after:]]
            if self.end and after < self.last:
                batch.append(self.end)
            if batch:
                after += len(batch)
                yield batch
            elif self.end:
                return
            else:
                await self._changed.wait()

    async def ended(self) -> End:
        """Wait for the terminal entry."""
        while self.end is None:
            await self._changed.wait()
        return self.end
