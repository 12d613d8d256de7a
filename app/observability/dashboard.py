"""What the operations page shows: once a second how the server does, and a row for each tape.

One task samples, however many watch. Nothing is done for a token: metrics, engine and tapes have
counted already what is looked at here. DashPercentiles are exact, of the latencies that tapes keep.
"""

import asyncio
import contextlib
import logging
import math
import time
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable
from heapq import nsmallest
from itertools import chain

import numpy as np
import numpy.typing as npt
import orjson

from app.observability.dashboard_types import DashPercentiles, DashRow, DashSample
from app.observability.metrics import Metrics
from app.processes.engine_client import EngineClient
from app.sse import block
from app.tapes.observer import Observer
from app.tapes.registry import Registry
from app.tapes.tape import Status, Tape

logger = logging.getLogger("tickertape.dash")

INTERVAL = 1.0  # seconds between two samples
WINDOW = 10  # samples that percentiles and hits are of
KEPT = 600  # samples: ten minutes
MAX_ROWS = 200
ROW_SECONDS = 10.0  # that an ended tape still has a row
_MAX_ENDED = 1000  # rows of ended tapes that are kept, whosever they are

_RANK: dict[Status, int] = {"running": 0, "recovering": 1, "queued": 2, "paused": 3, "done": 4}

Values = npt.NDArray[np.float32]


def percentiles(values: Values) -> DashPercentiles | None:
    """The smallest values that 50, 95 and 99 % of all do not exceed, to three decimals."""
    if not values.size:
        return None
    places = [math.ceil(values.size * percent / 100) - 1 for percent in (50, 95, 99)]
    parted = np.partition(values, places)  # not sorted: of a GPU there are 100,000
    return DashPercentiles(*(round(float(parted[place]), 3) for place in places))


def row_of(tape: Tape, readers: int) -> DashRow:
    usage, timings = tape.usage, tape.timings
    return DashRow(
        tape=tape.id,
        status=tape.status,
        choices=len(tape.choices),
        prompt_tokens=usage.prompt_tokens,
        completion_tokens=usage.completion_tokens,
        tokens_per_second=_rounded(timings.tokens_per_second),
        ttft_ms=_rounded(timings.ttft_ms),
        readers=readers,
        age_s=round(timings.total_ms / 1000, 3),
        owner=tape.owner or None,
        finish_reason=tape.end.finish_reason if tape.end else None,
    )


def _rounded(number: float | None) -> float | None:
    return None if number is None else round(number, 3)


class Latencies:
    """What tapes have measured since it was last gathered, and of all the last WINDOW times."""

    def __init__(self) -> None:
        self._counted: dict[str, list[int]] = {}  # by tape, how many of each choice
        self._awaited: set[str] = set()  # tapes without a first token
        self._new_first: list[float] = []
        self._new_between: list[Values] = []
        self._first: deque[Values] = deque(maxlen=WINDOW)
        self._between: deque[Values] = deque(maxlen=WINDOW)

    def began(self, tape: Tape) -> None:
        """What another process has brought forth does not count."""
        self._counted[tape.id] = [len(choice.latencies) for choice in tape.choices]
        if not tape.num_tokens:
            self._awaited.add(tape.id)

    def look(self, tape: Tape) -> None:
        counted = self._counted[tape.id]
        for index, choice in enumerate(tape.choices):
            if new := choice.latencies[counted[index] :]:
                self._new_between.append(np.asarray(new, np.float32))
                counted[index] += len(new)
        if tape.id in self._awaited and tape.num_tokens:
            self._awaited.discard(tape.id)
            self._new_first.append(tape.timings.ttft_ms or 0.0)

    def forget(self, tape_id: str) -> None:
        del self._counted[tape_id]
        self._awaited.discard(tape_id)

    def forget_all_but(self, tape_ids: set[str]) -> None:
        for tape_id in self._counted.keys() - tape_ids:
            self.forget(tape_id)

    def gathered(self) -> tuple[DashPercentiles | None, DashPercentiles | None]:
        """To the first token and between two tokens, in milliseconds."""
        self._first.append(np.asarray(self._new_first, np.float32))
        self._between.append(_joined(self._new_between) * np.float32(1000))
        self._new_first, self._new_between = [], []
        return percentiles(_joined(self._first)), percentiles(_joined(self._between))


def _joined(parts: list[Values] | deque[Values]) -> Values:
    return np.concatenate(parts) if parts else np.empty(0, np.float32)


class Dash(Observer):
    """Samples, and hands each sample to all who watch; nobody who watches can hold it up."""

    def __init__(
        self, metrics: Metrics, link: EngineClient, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._clock = clock
        self._metrics = metrics
        self._link = link
        self._registry: Registry | None = None
        self._latencies = Latencies()
        self._ended: deque[tuple[float, DashRow]] = deque(maxlen=_MAX_ENDED)
        self._tokens = (clock(), 0)  # when there were so many
        self._lookups = deque([(0, 0)], maxlen=WINDOW + 1)  # in the prefix cache, and hits
        self._samples: deque[orjson.Fragment] = deque(maxlen=KEPT)
        self._number = 0  # of the newest
        self._events: dict[str | None, bytes] = {}  # the newest, by whose rows are in it
        self._histories: dict[int, bytes] = {}  # up to the newest, by how many samples
        self._changed = asyncio.Event()
        self._closed = False
        self._task: asyncio.Task[None] | None = None

    # ---- tapes

    def began(self, tape: Tape) -> None:
        self._latencies.began(tape)

    def ended(self, tape: Tape, *, attended: bool) -> None:
        self._latencies.look(tape)
        self._latencies.forget(tape.id)
        # Of the tape itself nothing is kept: it may be large.
        self._ended.append((self._clock(), row_of(tape, 0)))

    # ---- sampling

    def look_at(self, registry: Registry) -> None:
        """Its tapes have rows. It must have this among its observers."""
        self._registry = registry

    def start(self) -> None:
        """Sample until stopped."""
        self._task = asyncio.create_task(self._run())

    async def _run(self) -> None:
        clock = asyncio.get_running_loop().time
        due = clock()
        while True:
            due = max(due + INTERVAL, clock())
            await asyncio.sleep(due - clock())
            try:
                self.sample()
            except Exception:
                logger.exception("there is no sample for the operations page")

    def sample(self) -> None:
        """Take one, and wake all who watch."""
        assert self._registry, "it has been told where to look"
        running = {tape.id for tape, _ in self._registry.running}
        self._latencies.forget_all_but(running)  # another process goes on with the others
        for tape, _ in self._registry.running:
            self._latencies.look(tape)
        self._samples.append(orjson.Fragment(orjson.dumps(self._sampled(self._registry))))
        self._number += 1
        while self._ended and self._ended[0][0] < self._clock() - ROW_SECONDS:
            self._ended.popleft()
        self._events.clear()
        self._histories.clear()
        self._wake()

    def _sampled(self, registry: Registry) -> DashSample:
        gauges, info = self._link.gauges, self._link.info
        ttft, itl = self._latencies.gathered()
        return DashSample(
            at=round(time.time(), 3),
            engine=self._link.state,
            tokens_per_second=round(self._rate(), 1),
            running=gauges.running,
            waiting=gauges.waiting,
            paused=gauges.paused,
            kv_blocks_used=gauges.kv_blocks_used,
            kv_blocks_total=info.kv_blocks_total if info else 0,
            prefix_hit_share=_rounded(self._hit_share()),
            ttft_ms=ttft,
            itl_ms=itl,
            readers=registry.num_readers,
        )

    def _rate(self) -> float:
        now, tokens = self._clock(), self._metrics.generation_tokens
        before, fewer = self._tokens
        self._tokens = now, tokens
        return (tokens - fewer) / (now - before) if now > before else 0.0

    def _hit_share(self) -> float | None:
        totals = self._link.totals
        self._lookups.append((totals.prefix_queries, totals.prefix_hits))
        (queries, hits), (all_queries, all_hits) = self._lookups[0], self._lookups[-1]
        return (all_hits - hits) / (all_queries - queries) if all_queries > queries else None

    # ---- watching

    async def watch(
        self, owner: str | None, turn: Callable[[], Awaitable[None]], count: int | None = None
    ) -> AsyncIterator[bytes]:
        """Events for one who may see this owner's tapes: what was, then each sample as it comes.

        None may see nobody's. It waits for a `turn` before each event.

        Who is slow gets what was missed as one more history. It ends after `count` samples, or
        when the server does.
        """
        told = 0
        while count is None or count > 0:
            while self._number == told and not self._closed:
                await self._changed.wait()
            await turn()
            if self._closed:
                break
            missed = min(self._number - told, len(self._samples)) - 1
            history = self._history(missed) if missed or not told else b""
            told, newest = self._number, self._newest(owner)
            yield history + newest
            count = None if count is None else count - 1
        yield _event("end", {"reason": "shutdown" if self._closed else "samples"})

    def _history(self, count: int) -> bytes:
        """So many samples before the newest: made once for all who have missed as many."""
        if count not in self._histories:
            before = list(self._samples)[-1 - count : -1]
            self._histories[count] = _event("history", {"samples": before})
        return self._histories[count]

    def _newest(self, owner: str | None) -> bytes:
        """Made once for all who may see the same."""
        if owner not in self._events:
            rows, left_out = self._rows(owner)
            data = {"sample": self._samples[-1], "tapes": rows, "tapes_left_out": left_out}
            self._events[owner] = _event("sample", data)
        return self._events[owner]

    def _rows(self, owner: str | None) -> tuple[list[DashRow], int]:
        """The owner's tapes, those that run first, and how many there are beside these."""
        assert self._registry, "it has been told where to look"
        running = [one for one in self._registry.running if one[0].owner == owner]
        shown = nsmallest(MAX_ROWS, running, key=lambda one: _RANK[one[0].status])
        ended = [row for _, row in reversed(self._ended) if (row.owner or "") == owner]
        rows = [row_of(tape, readers) for tape, readers in shown]
        rows = list(chain(rows, ended[: MAX_ROWS - len(rows)]))
        return rows, len(running) + len(ended) - len(rows)

    def _wake(self) -> None:
        self._changed.set()
        self._changed.clear()

    # ---- the end

    def close(self) -> None:
        """End the stream of everybody who watches."""
        self._closed = True
        self._wake()

    async def stop(self) -> None:
        self.close()
        if self._task:
            self._task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._task


def _event(name: str, data: object) -> bytes:
    return block(orjson.dumps(data), event=name)
