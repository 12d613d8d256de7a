"""The log: what one generation has brought forth so far. Knows no connection and no wire format."""

import asyncio
import time
from array import array
from bisect import bisect_right
from collections.abc import (
    AsyncIterator,
    Awaitable,
    Callable,
    Iterable,
    Iterator,
    Mapping,
    Sequence,
)
from dataclasses import dataclass, field
from typing import Any, Final, Literal

import msgspec
import numpy as np

from app.tapes.heads import Heads, Mark
from app.tapes.recipe import Recipe
from app.tapes.sizes import size_of
from model.protocol.messages import (
    Finished,
    FinishReason,
    Logprob,
    Prefilling,
    Queued,
    Started,
    Token,
)

Status = Literal["queued", "running", "paused", "recovering", "done"]

_UNBOUNDED = 1 << 62
_EMPTY = 1000  # bytes that a tape without entries takes
_CHOICE: Final = 500  # bytes that a choice takes beside its tokens
_MARK: Final = 160  # bytes of what happened once
_TOKEN: Final = 8  # bytes of a token's id and latency: they stay when its entry goes

# Of a page: what a reader that is behind gets at once, and what is done in one piece of work.
PAGE_BYTES: Final = 64 * 1024  # of memory; as JSON they are about half
PAGE_ENTRIES: Final = 128

EMPTY: Final = (
    "the model ended its answer without any text; ask in messages rather than by a prompt, say it "
    "in other words, take another seed, or set min_tokens"
)

FEW: Final = 4  # readers of one tape, or entries that one lacks, for which nobody takes turns

_MAX_LATENCIES: Final = 100_000  # that a percentile is computed of


class Entry(msgspec.Struct, frozen=True, gc=False):
    """One step of one sequence; `index` is its place among the tape's choices.

    `at` is when it was made, in monotonic seconds.
    """

    text: str
    token_id: int
    logprob: Logprob | None = None
    index: int = 0
    at: float = msgspec.field(default_factory=time.monotonic)

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
    """The last entry of every tape. `reasons` are those of its choices, `finish_reason` of all.

    `note` is for a person who wonders about the answer.
    """

    finish_reason: FinishReason
    usage: Usage
    timings: Timings
    error: str | None = None
    reasons: tuple[FinishReason, ...] = ()
    note: str | None = None


@dataclass(frozen=True, slots=True)
class Gap:
    """Entries `first` to `last` are kept no longer; both are counted from 1."""

    first: int
    last: int


@dataclass(frozen=True, slots=True)
class Recovering:
    """The engine has died; the generation goes on when another is there."""


Progress = Queued | Prefilling | Recovering
Batch = list[Entry | End]
Item = list[Entry] | End | Gap | Progress  # of what a reader gets
Turn = Callable[[], Awaitable[None]]


@dataclass(frozen=True, slots=True)
class IdempotencyClaim:
    """The Idempotency-Key that a tape was asked for with, and a digest of what was asked."""

    key: str
    digest: bytes


@dataclass(slots=True, eq=False)
class Choice:
    """One of the sequences that a tape is made of; most tapes have one.

    `prompt_tokens` is 0 where another choice has the same prompt: it is counted once. Token ids are
    kept all: they are what another engine needs to go on. The prompt holds the first
    `num_in_prompt` of them already, where it is that of a later turn. `latency` is the time in
    seconds from the token before to the newest, None for the first one and after a pause;
    `latencies` are all.
    """

    prompt_tokens: int
    num_in_prompt: int = 0
    output_ids: "array[int]" = field(default_factory=lambda: array("i"))
    cached_tokens: int = 0
    started: bool = False
    finish_reason: FinishReason | None = None
    error: str | None = None
    latency: float | None = None
    latencies: "array[float]" = field(default_factory=lambda: array("f"))
    _last: float | None = None

    @property
    def ids_to_go_on(self) -> list[int]:
        """What an engine needs beside the prompt."""
        return self.output_ids[self.num_in_prompt :].tolist()

    def append(self, entry: Entry) -> None:
        self.output_ids.append(entry.token_id)
        if self._last is None:
            self.latency = None
        else:
            self.latency = entry.at - self._last
            self.latencies.append(self.latency)
        self._last = entry.at

    def pause(self) -> None:
        """The time until the next token is its reader's, not the engine's."""
        self._last = None


def pages(entries: Sequence[Entry]) -> Iterator[Sequence[Entry]]:
    """The entries in pieces, each with work for a millisecond or so."""
    first = share = 0
    for place, entry in enumerate(entries, start=1):
        share += _share_of_page(entry.size)
        if share >= PAGE_BYTES:
            yield entries[first:place]
            first, share = place, 0
    if first < len(entries):
        yield entries[first:]


def _share_of_page(size: int) -> int:
    """A page is full with PAGE_ENTRIES, or with fewer that are large."""
    return max(size, PAGE_BYTES // PAGE_ENTRIES)


@dataclass(frozen=True, slots=True)
class Beginning:
    """What a tape takes over from another one: its first entries, `size` bytes of them.

    `counts` has for each choice how many are its own, `reasons` the ends of those that are over.
    """

    entries: Sequence[Entry]
    size: int
    counts: Mapping[int, int]
    reasons: Mapping[int, FinishReason]


@dataclass(slots=True, eq=False)
class Tape:
    """Entries 1, 2, 3 ... without gaps; the last one is an End, whatever happened.

    Readers wait for what comes next; appending wakes them all and never waits for any.
    """

    id: str
    choices: Sequence[Choice]
    cap: int = _UNBOUNDED  # bytes of entries; beyond it the oldest are dropped
    owner: str = ""  # the API key that it was made with, as app/guard/api_keys.py names it
    client: str = ""  # whose share of the server it counts towards
    claim: IdempotencyClaim | None = None
    response_context: Mapping[str, Any] | None = None  # what its dialect needs to describe it later
    recipe: Recipe | None = None  # kept for as long as the tape, so that it can be forked
    parent: str = ""  # of a fork: the tape whose first `forked_at` entries it has copied
    forked_at: int = 0
    requires_ack: bool = False  # whether the store confirms each entry before readers are shown it
    last: int = 0  # the number of the newest entry that readers may be shown
    created: float = field(default_factory=time.time)  # seconds since 1970, only to be shown
    began: float = field(default_factory=time.monotonic)
    entries: list[Entry] = field(default_factory=list)  # those after the first `num_dropped`
    num_dropped: int = 0
    progress: Progress | None = None  # what there is to say before the next entry
    end: End | None = None
    ended_at: float | None = None  # monotonic seconds
    queue_ms: float | None = None
    paused: bool = False
    readers: int = 0  # in this process
    heads: Heads = field(default_factory=Heads)
    resumes: int = 0  # readers that went on after an entry
    plan_size: int = 0  # about how many bytes are kept to compute it, until it ends
    entries_size: int = _EMPTY
    _fixed_size: int = 0
    _page_ends: "array[int]" = field(default_factory=lambda: array("q"))  # their last entries
    _page_size: int = 0  # of the page that is not full yet
    _first: float | None = None  # when its first token came, in monotonic seconds
    _last: float | None = None
    _changed: asyncio.Event = field(default_factory=asyncio.Event)

    def __post_init__(self) -> None:
        self._fixed_size = size_of(self.response_context) + _CHOICE * len(self.choices)
        if self.recipe:
            self._fixed_size += self.recipe.size
        if self.claim:
            self._fixed_size += size_of(self.claim.key) + size_of(self.claim.digest)

    @property
    def size(self) -> int:
        """About how many bytes of memory are kept for it, all in all."""
        kept = _TOKEN * self.num_tokens + _MARK * len(self.heads.marks)
        return self.entries_size + self._fixed_size + self.plan_size + kept

    @property
    def written(self) -> int:
        """The number of the newest entry, shown or not; 0 when there is none."""
        return self.num_dropped + len(self.entries) + (self.end is not None)

    @property
    def status(self) -> Status:
        if self.end:
            return "done"
        if self.paused:
            return "paused"
        if isinstance(self.progress, Recovering):
            return "recovering"
        return "queued" if self.queue_ms is None else "running"

    def shown(self) -> list[Entry]:
        """The entries that are kept and may be shown."""
        return self.entries[: self.last - self.num_dropped]

    @property
    def num_tokens(self) -> int:
        """How many have been generated."""
        return self.num_dropped + len(self.entries)

    @property
    def usage(self) -> Usage:
        return Usage(
            sum(choice.prompt_tokens for choice in self.choices),
            self.num_tokens,
            sum(min(choice.cached_tokens, choice.prompt_tokens) for choice in self.choices),
        )

    @property
    def last_token_age(self) -> float | None:
        """Seconds since the newest token; None before the first."""
        return None if self._last is None else time.monotonic() - self._last

    @property
    def ttft_ms(self) -> float | None:
        """From its beginning to its first token, in milliseconds; None before that."""
        return None if self._first is None else (self._first - self.began) * 1000

    @property
    def timings(self) -> Timings:
        """As of now, or as of its end."""
        if self.end:
            return self.end.timings
        return Timings(
            queue_ms=self.queue_ms,
            ttft_ms=self.ttft_ms,
            total_ms=(time.monotonic() - self.began) * 1000,
            tokens_per_second=self._decode_rate(),
        )

    @property
    def decode_seconds(self) -> float | None:
        """From the first token to the newest; None where there is none."""
        return None if self._first is None or self._last is None else self._last - self._first

    @property
    def itl_p99_ms(self) -> float | None:
        """The latency between two tokens that 99 % of them stay below, or None before any.

        Where there are very many, it is that of every second, third ... of them.
        """
        step = 1 + sum(len(choice.latencies) for choice in self.choices) // _MAX_LATENCIES
        latencies = np.concatenate([np.asarray(c.latencies)[::step] for c in self.choices])
        if not latencies.size:
            return None
        place = latencies.size * 99 // 100
        return float(np.partition(latencies, place)[place]) * 1000

    def _decode_rate(self) -> float | None:
        """Tokens after the first, over the time that they took."""
        seconds = self.decode_seconds
        return (self.num_tokens - self.forked_at - 1) / seconds if seconds else None

    def append(self, entry: Entry) -> None:
        """Raises ValueError on a tape that has ended."""
        if self.end:
            raise ValueError(f"tape {self.id} has ended; nothing can be appended")
        self._last = entry.at
        if self._first is None:
            self._first = self._last
        self.choices[entry.index].append(entry)
        self.progress = None
        self._add(entry)
        self._show()
        if self.entries_size > self.cap:
            self._drop_oldest()

    def _add(self, entry: Entry) -> None:
        self.entries.append(entry)
        size = entry.size
        self.entries_size += size
        self._page_size += _share_of_page(size)
        if self._page_size >= PAGE_BYTES:
            self._page_ends.append(self.written)
            self._page_size = 0

    def begin_as(self, other: "Tape", beginning: "Beginning") -> None:
        """Take over entries of another tape, which took this one no time."""
        count = len(beginning.entries)
        self.entries = [*beginning.entries]
        self.entries_size += beginning.size
        for index, choice in enumerate(self.choices):
            tokens = beginning.counts[index]
            choice.output_ids = other.choices[index].output_ids[:tokens]
            choice.finish_reason = beginning.reasons.get(index)
        self._page_ends = other._page_ends[: bisect_right(other._page_ends, count)]
        self._show()

    def extend(self, items: Iterable[Entry | End]) -> None:
        """Copy what somebody else has written."""
        for item in items:
            if isinstance(item, Entry):
                self.append(item)
            else:
                self.end, self.ended_at = item, time.monotonic()
                self._show()

    def mirror(self, numbered: Iterable[tuple[int, Entry | End]]) -> None:
        """Copy what another process writes, by its numbers.

        What is here already is passed over. Entries that are missing are a gap for the readers, as
        if they had been dropped: no later entry takes their numbers.
        """
        for number, item in numbered:
            if number <= self.written:
                continue
            if number > self.written + 1:
                self.entries_size -= sum(entry.size for entry in self.entries)
                self.entries.clear()
                self.num_dropped = self.last = number - 1
            self.extend([item])

    def _drop_oldest(self) -> None:
        """An eighth of the room at once: each time, the entries that are left are moved."""
        count, room = 0, self.cap - self.cap // 8
        shown = min(len(self.entries), self.last - self.num_dropped)
        while self.entries_size > room and count < shown:
            self.entries_size -= self.entries[count].size
            count += 1
        del self.entries[:count]
        self.num_dropped += count

    def announce(self, progress: Progress) -> None:
        """Tell readers what is going on before the next entry; what they know is not repeated."""
        if progress != self.progress and not self.end:
            if isinstance(progress, Recovering):
                self.mark(Mark("engine", self.written))
            self.progress = progress
            self._wake()

    def mark(self, mark: Mark) -> None:
        """Note what happens; nothing after the end, when its size has been counted."""
        if not self.end:
            self.heads.marks.append(mark)

    def record(
        self, event: Started | Queued | Prefilling | Token | Finished, index: int = 0
    ) -> None:
        """Write down one event of the engine about one choice."""
        match event:
            case Token():
                self.append(Entry(event.text, event.token_id, event.logprob, index))
            case Queued() | Prefilling():
                self.announce(event)
            case Started():
                self._start(event, self.choices[index])
            case Finished():
                self._finish_choice(event, self.choices[index])

    def _start(self, event: Started, choice: Choice) -> None:
        if not choice.started:  # not by an engine that goes on for another
            choice.started = True
            choice.cached_tokens = event.cached_tokens
        if self.queue_ms is None:
            self.queue_ms = event.queue_ms

    def _finish_choice(self, event: Finished, choice: Choice) -> None:
        """The last choice to finish ends the tape; an error of any is the tape's."""
        choice.finish_reason, choice.error = event.reason, event.error
        reasons = [choice.finish_reason for choice in self.choices]
        if None not in reasons:
            failed = next((c for c in self.choices if c.finish_reason == "error"), choice)
            self.finish(failed.finish_reason or event.reason, failed.error)

    def finish(self, reason: FinishReason, error: str | None = None) -> None:
        """Write the terminal entry; on a tape that has one already, nothing happens."""
        if self.end is None:
            reasons = tuple(choice.finish_reason or reason for choice in self.choices)
            note = EMPTY if reason == "stop" and self._is_empty else None
            self.end = End(reason, self.usage, self.timings, error, reasons, note)
            self.ended_at = time.monotonic()
            self._show()

    @property
    def _is_empty(self) -> bool:
        """Whether the model has said nothing that can be read."""
        return not self.num_dropped and not any(entry.text.strip() for entry in self.entries)

    def _show(self) -> None:
        if not self.requires_ack:
            self.publish(self.written)

    def publish(self, last: int) -> None:
        """Let readers have entries up to this number."""
        self.last = last
        self._wake()

    def drop_unpublished(self) -> None:
        """Forget what nobody was shown: somebody else writes this tape now."""
        unseen = self.entries[max(self.last - self.num_dropped, 0) :]
        del self.entries[len(self.entries) - len(unseen) :]
        self.entries_size -= sum(entry.size for entry in unseen)
        while self._page_ends and self._page_ends[-1] > self.last:
            self._page_ends.pop()
        self._page_size = 0  # a longer page is none the worse
        if self.last < self.written:
            self.end = self.ended_at = None
        self.requires_ack = False

    @property
    def has_ended(self) -> bool:
        """Whether the terminal entry may be shown."""
        return self.end is not None and self.last == self.written

    def _wake(self) -> None:
        """Whoever waits goes on; who comes now waits for the next change."""
        self._changed.set()
        self._changed.clear()

    async def read(self, after: int = 0, turn: Turn | None = None) -> AsyncIterator[Item]:
        """Entries with numbers above `after`, as they come, and after them the terminal one.

        A reader that is behind gets what it has missed page by page, after a Gap for what is kept
        no longer; with `turn`, it waits for one before each page, and so does everybody in a crowd.
        Pages end at the same entries for all readers. Progress comes between, when there is no
        entry to give.
        """
        told: Progress | None = None
        while True:
            behind = self.last - after
            if turn and (behind > FEW or (behind and self.readers > FEW)):
                await turn()
            if after < self.num_dropped:
                gap = Gap(after + 1, self.num_dropped)
                after = gap.last
                yield gap
                continue  # meanwhile more may have gone
            if page := self._page(after):
                after += len(page)
                yield page
            elif self.end and self.has_ended:
                if after < self.last:
                    yield self.end
                return
            elif self.progress is not told:
                told = self.progress
                if told:
                    yield told
            else:
                await self._changed.wait()

    def _page(self, after: int) -> list[Entry]:
        """What may be shown after this entry, to the end of the page at most."""
        last = self.last
        if last - after > 1:
            full = bisect_right(self._page_ends, after)
            if full < len(self._page_ends):
                last = min(last, self._page_ends[full])
        return self.entries[after - self.num_dropped : last - self.num_dropped]

    async def ended(self) -> End:
        """Wait for the terminal entry."""
        while self.end is None or not self.has_ended:
            await self._changed.wait()
        return self.end
