"""What /metrics tells: vLLM's metrics under our prefix, and those that only tapes have.

Everything is counted by plain numbers on the event loop's own thread, and written out when
somebody asks: prometheus-client's own counters lock, and cost five times as much a token. What
others know already (the engine's gauges, how many tapes there are) is read at that moment.
docs/metrics.md says what each metric means.
"""

import time
from bisect import bisect_left
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import get_args

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.metrics_core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    Metric,
)
from prometheus_client.registry import Collector
from prometheus_client.utils import floatToGoString

from app.processes.engine_client import EngineClient
from app.tapes.coalescing import runs
from app.tapes.engine_recovery import EngineRecovery
from app.tapes.observer import Observer
from app.tapes.registry import Registry
from app.tapes.tape import Choice, End, Entry, Tape
from model.protocol.messages import FinishReason

PREFIX = "tickertape:"

# vLLM's, so that its dashboards fit. In seconds, and in tokens.
_TTFT = [0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0]
_TTFT += [20.0, 40.0, 80.0, 160.0, 640.0, 2560.0]
_ITL = [0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0]
_ITL += [20.0, 40.0, 80.0]
_REQUEST = [0.3, 0.5, 0.8, 1.0, 1.5, 2.0, 2.5, 5.0, 10.0, 15.0, 20.0, 30.0, 40.0, 50.0, 60.0]
_REQUEST += [120.0, 240.0, 480.0, 960.0, 1920.0, 7680.0]
_ITERATION = [float(2**power) for power in (0, *range(3, 15))]
# Ours, in seconds: a frame should be on its way within a millisecond.
_EMIT = [0.00005, 0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25]
_EMIT += [0.5, 1.0, 2.5, 5.0, 10.0]

_METHODS = {"GET", "POST", "DELETE", "HEAD", "OPTIONS", "PUT", "PATCH"}


class Histogram:
    """How many values lie in each bucket, and their sum."""

    def __init__(self, bounds: Sequence[float]) -> None:
        self._bounds = bounds
        self._counts = [0] * (len(bounds) + 1)
        self._sum = 0.0

    def observe(self, value: float) -> None:
        self._counts[bisect_left(self._bounds, value)] += 1
        self._sum += value

    def cumulated(self) -> tuple[list[tuple[str, float]], float]:
        """(upper bound, values up to it) for each bucket, and the sum, as Prometheus has them."""
        bounds = [*map(floatToGoString, self._bounds), "+Inf"]
        return list(zip(bounds, accumulate(self._counts), strict=True)), self._sum


@dataclass(frozen=True, slots=True)
class _Sources:
    """Who is asked at each scrape."""

    link: EngineClient
    recovery: EngineRecovery
    registry: Registry


class Metrics(Observer, Collector):
    """Counts what happens to tapes, frames and requests; a registry of its own writes it out."""

    def __init__(self, model_name: str, max_model_len: int) -> None:
        self._model_name = model_name
        self._sources: _Sources | None = None
        self.registry = CollectorRegistry()
        self.registry.register(self)
        self._prompt_tokens = 0
        self._generation_tokens = 0
        self._ended = dict.fromkeys(get_args(FinishReason), 0)
        self._coalesced_frames = 0
        self._resumes = 0
        self._replayed_entries = 0
        self._slow_readers_cut = 0
        self._requests: Counter[tuple[str, str, str]] = Counter()  # by method, route, status
        self._ttft = Histogram(_TTFT)
        self._itl = Histogram(_ITL)
        self._e2e = Histogram(_REQUEST)
        self._queue = Histogram(_REQUEST)
        self._prefill = Histogram(_REQUEST)
        self._decode = Histogram(_REQUEST)
        self._emit = Histogram(_EMIT)
        self._iteration = Histogram(_ITERATION)
        self._prompt_lengths = Histogram(_one_two_five(max_model_len))
        self._generation_lengths = Histogram(_one_two_five(max_model_len))

    def watch(self, link: EngineClient, recovery: EngineRecovery, registry: Registry) -> None:
        """From now on tell of these, too."""
        self._sources = _Sources(link, recovery, registry)
        link.on_iteration = self._iteration.observe

    def text(self) -> bytes:
        """All metrics in Prometheus's text format."""
        return generate_latest(self.registry)

    @property
    def generation_tokens(self) -> int:
        """How many tokens there have been."""
        return self._generation_tokens

    # ---- tapes

    def began(self, tape: Tape) -> None:
        self._prompt_tokens += tape.usage.prompt_tokens

    def token(self, tape: Tape, choice: Choice) -> None:
        self._generation_tokens += 1
        if choice.latency is not None:
            self._itl.observe(choice.latency)
        elif tape.num_tokens == 1:
            self._ttft.observe(time.monotonic() - tape.began)

    def ended(self, tape: Tape, *, attended: bool) -> None:
        end = tape.end
        assert end, "it has ended"
        self._ended[end.finish_reason] += 1
        timings = end.timings
        self._e2e.observe(timings.total_ms / 1000)
        if timings.queue_ms is not None:
            self._queue.observe(timings.queue_ms / 1000)
            if timings.ttft_ms is not None:
                self._prefill.observe(max(timings.ttft_ms - timings.queue_ms, 0.0) / 1000)
        if tape.decode_seconds is not None:
            self._decode.observe(tape.decode_seconds)
        self._prompt_lengths.observe(end.usage.prompt_tokens)
        self._generation_lengths.observe(end.usage.completion_tokens)

    # ---- readers

    def resumed(self) -> None:
        """A reader goes on after an entry that it has."""
        self._resumes += 1

    def handed_over(self, last: int, batch: Sequence[Entry | End], known: int) -> None:
        """A batch up to entry `last` went to the socket; the first `known` entries of its tape were
        there before its reader."""
        first = last - len(batch)  # the number of the entry before it
        if first < known:
            self._replayed_entries += min(known, last) - first
        else:
            oldest = batch[0]
            if isinstance(oldest, Entry):
                self._emit.observe(time.monotonic() - oldest.at)
        if len(batch) > 1:
            entries = [entry for entry in batch if isinstance(entry, Entry)]
            self._coalesced_frames += sum(bool(run[1:]) for _, run in runs(last, entries))

    def cut(self) -> None:
        """A reader took nothing, and its connection was closed."""
        self._slow_readers_cut += 1

    # ---- requests

    def answered(self, method: str, route: str, status: int) -> None:
        """A request has ended; `route` is a template, of which there are not many."""
        self._requests[method if method in _METHODS else "other", route, str(status)] += 1

    # ---- writing it out

    def collect(self) -> Iterator[Metric]:
        if self._sources:
            yield from self._of_sources(self._sources)
        yield self._counter(
            "prompt_tokens", "Tokens of prompts, each counted once.", self._prompt_tokens
        )
        yield self._counter("generation_tokens", "Tokens generated.", self._generation_tokens)
        yield self._labelled(
            "request_success", "Tapes that have ended.", "finished_reason", self._ended
        )
        yield self._counter(
            "coalesced_frames",
            "Frames that held several tokens of one choice, for a reader that was behind.",
            self._coalesced_frames,
        )
        yield self._counter(
            "resumes", "Readers that went on after an entry they named.", self._resumes
        )
        yield self._counter(
            "replayed_entries",
            "Entries sent that were on their tape before their reader came.",
            self._replayed_entries,
        )
        yield self._counter(
            "slow_readers_cut",
            "Readers that took nothing for --send-timeout.",
            self._slow_readers_cut,
        )
        yield self._http_requests()
        yield from self._histograms()

    def _of_sources(self, sources: _Sources) -> Iterator[Metric]:
        link, registry = sources.link, sources.registry
        gauges, totals = link.gauges, link.totals
        yield self._gauge(
            "num_requests_running", "Sequences that the engine computes.", gauges.running
        )
        yield self._gauge("num_requests_waiting", "Sequences that wait for a seat.", gauges.waiting)
        yield self._gauge("num_requests_paused", "Sequences that wait for a reader.", gauges.paused)
        blocks = link.info.kv_blocks_total if link.info else 0
        yield self._gauge(
            "kv_cache_usage_perc",
            "Share of KV blocks in use; 1 is all.",
            gauges.kv_blocks_used / blocks if blocks else 0.0,
        )
        yield self._gauge(
            "num_tapes", "Tapes kept, running or ended.", len(registry.store.retention)
        )
        yield self._gauge(
            "readers_attached", "Connections that follow a tape.", registry.num_readers
        )
        yield self._gauge("engine_up", "Whether the engine takes work.", link.is_up)
        yield self._counter(
            "prefix_cache_queries", "Tokens looked up in the prefix cache.", totals.prefix_queries
        )
        yield self._counter(
            "prefix_cache_hits", "Tokens found in the prefix cache.", totals.prefix_hits
        )
        yield self._counter(
            "num_preemptions",
            "Times that a running sequence gave up its KV blocks for another.",
            totals.preemptions,
        )
        yield self._labelled(
            "expired_tapes",
            "Paused tapes whose grace has passed or whose room was needed, and ended ones that are "
            "kept no longer.",
            "reason",
            {
                "grace": registry.num_abandoned,
                "displaced": registry.num_displaced,
                "dropped": registry.store.retention.num_expired,
            },
        )
        yield self._counter(
            "recoveries",
            "Sequences that went on in another engine after theirs had died.",
            sources.recovery.num_continued,
        )
        yield self._counter("engine_restarts", "Engines started after the first.", link.restarts)

    def _histograms(self) -> Iterator[Metric]:
        for name, help_text, histogram in (
            ("time_to_first_token_seconds", "From a tape's start to its first token.", self._ttft),
            ("inter_token_latency_seconds", "Between two tokens of a sequence.", self._itl),
            ("e2e_request_latency_seconds", "From a tape's start to its end.", self._e2e),
            ("request_queue_time_seconds", "From a tape's start to its first step.", self._queue),
            (
                "request_prefill_time_seconds",
                "From a tape's first step to its first token.",
                self._prefill,
            ),
            (
                "request_decode_time_seconds",
                "From a tape's first token to its last.",
                self._decode,
            ),
            (
                "emit_to_socket_seconds",
                "From a token on its tape to its frame on the socket.",
                self._emit,
            ),
            ("iteration_tokens_total", "Tokens computed in one step.", self._iteration),
            ("request_prompt_tokens", "Prompt tokens of a tape.", self._prompt_lengths),
            ("request_generation_tokens", "Tokens generated on a tape.", self._generation_lengths),
        ):
            family = HistogramMetricFamily(PREFIX + name, help_text, labels=["model_name"])
            family.add_metric([self._model_name], *histogram.cumulated())
            yield family

    def _gauge(self, name: str, help_text: str, value: float) -> Metric:
        family = GaugeMetricFamily(PREFIX + name, help_text, labels=["model_name"])
        family.add_metric([self._model_name], value)
        return family

    def _counter(self, name: str, help_text: str, value: float) -> Metric:
        family = CounterMetricFamily(PREFIX + name, help_text, labels=["model_name"])
        family.add_metric([self._model_name], value)
        return family

    def _labelled(self, name: str, help_text: str, label: str, values: dict[str, int]) -> Metric:
        family = CounterMetricFamily(PREFIX + name, help_text, labels=["model_name", label])
        for value, count in values.items():
            family.add_metric([self._model_name, value], count)
        return family

    def _http_requests(self) -> Metric:
        labels = ["model_name", "method", "route", "status"]
        family = CounterMetricFamily(PREFIX + "http_requests", "HTTP requests.", labels=labels)
        for values, count in self._requests.items():
            family.add_metric([self._model_name, *values], count)
        return family


def _one_two_five(largest: int) -> list[float]:
    """1, 2, 5, 10, 20, 50 ... up to `largest`."""
    bounds = (digit * 10**power for power in range(len(str(largest))) for digit in (1, 2, 5))
    return [float(bound) for bound in bounds if bound <= largest]
