"""From answers as their readers saw them to the figures of a run. Pure functions."""

from collections.abc import Sequence
from itertools import pairwise
from statistics import median

import msgspec
import numpy as np

from tickertape import TickertapeError


class BenchError(TickertapeError):
    """The measurement cannot be taken; the message is one line for a person."""


class Answer(msgspec.Struct):
    """One answer: when it was asked for, and when how many tokens came. Seconds on one clock."""

    sent: float
    arrivals: list[tuple[float, int]] = []
    prompt_tokens: int = 0
    cached_tokens: int = 0
    completion_tokens: int = 0

    @property
    def ttft(self) -> float:
        """Time to first token."""
        return self.arrivals[0][0] - self.sent

    @property
    def gaps(self) -> list[float]:
        """Inter-token latencies: from one frame with tokens to the next."""
        return [later - earlier for (earlier, _), (later, _) in pairwise(self.arrivals)]

    @property
    def tpot(self) -> float:
        """Time per output token after the first; unlike a gap it knows of merged frames."""
        (first, merged), (last, _) = self.arrivals[0], self.arrivals[-1]
        return (last - first) / max(1, self.completion_tokens - merged)


class Percentiles(msgspec.Struct, frozen=True):
    p50: float
    p90: float
    p99: float


class Figures(msgspec.Struct, frozen=True):
    """A run in numbers. Latencies in milliseconds; `prompt_tokens` and `new_tokens` per answer."""

    tokens_per_second: float
    seconds: float
    answers: int
    prompt_tokens: float
    new_tokens: float
    ttft_ms: Percentiles
    itl_ms: Percentiles
    tpot_ms: Percentiles


def percentiles(seconds: Sequence[float]) -> Percentiles:
    """p50, p90 and p99 in milliseconds, interpolated linearly; NaN where there is nothing."""
    if not seconds:
        return Percentiles(*[float("nan")] * 3)
    return Percentiles(*(float(p) for p in np.percentile(np.asarray(seconds) * 1000, [50, 90, 99])))


def figures(answers: Sequence[Answer]) -> Figures:
    """Throughput counts from the first request sent to the last token seen."""
    seconds = max(a.arrivals[-1][0] for a in answers) - min(a.sent for a in answers)
    tokens = sum(a.completion_tokens for a in answers)
    return Figures(
        tokens_per_second=tokens / seconds,
        seconds=seconds,
        answers=len(answers),
        prompt_tokens=sum(a.prompt_tokens for a in answers) / len(answers),
        new_tokens=tokens / len(answers),
        ttft_ms=percentiles([a.ttft for a in answers]),
        itl_ms=percentiles([gap for a in answers for gap in a.gaps]),
        tpot_ms=percentiles([a.tpot for a in answers]),
    )


def middle(runs: Sequence[Figures]) -> Figures:
    """The median of each figure over repeated runs."""
    return Figures(
        *(median(getattr(run, name) for run in runs) for name in Figures.__struct_fields__[:5]),
        *(_middle([getattr(run, name) for run in runs]) for name in Figures.__struct_fields__[5:]),
    )


def _middle(rows: Sequence[Percentiles]) -> Percentiles:
    columns = zip(*(msgspec.structs.astuple(row) for row in rows), strict=True)
    return Percentiles(*(median(column) for column in columns))


def ratio(ours: Sequence[Figures], theirs: Sequence[Figures]) -> float:
    """Throughput against throughput: the median over rounds, each beside its neighbour in time."""
    return median(
        a.tokens_per_second / b.tokens_per_second for a, b in zip(ours, theirs, strict=True)
    )
