"""OpenTelemetry: a span for each generation and the GenAI metrics of a server, sent by OTLP.

The conventions are those of https://github.com/open-telemetry/semantic-conventions-genai. A span is
made whole when its tape has ended: on the way of a token nothing is done. Prompts and answers are
in none. The SDK comes with the extra `tracing`, and is imported only where it is asked for.
"""

import asyncio
import contextlib
import os
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

from opentelemetry import context, propagate, trace
from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from app.settings import SettingsError
from app.tapes.generation_request import GenerationRequest
from app.tapes.observer import Observer
from app.tapes.tape import End, Tape
from model.protocol.messages import Conversation
from model.protocol.sampling_params import SamplingParams

if TYPE_CHECKING:
    from opentelemetry.sdk.metrics import MeterProvider
    from opentelemetry.sdk.trace import TracerProvider

_PROVIDER = "tickertape"

# The convention's, in seconds.
_TTFT = (0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0)
_TPOT = (0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0, 2.5)
_DURATION = tuple(0.01 * 2**power for power in range(14))

# How long the end of the server may wait for a collector that does not answer.
_FLUSH_SECONDS = 2.0

_Attributes = dict[str, Any]


@dataclass(frozen=True, slots=True)
class _Asked:
    """What is known of a generation at its start."""

    parent: context.Context
    began_ns: int  # since 1970
    operation: str
    attributes: _Attributes


class TraceContext:
    """ASGI middleware that takes over the caller's W3C trace context. Wraps neither end."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or trace.get_current_span().get_span_context().is_valid:
            await self._app(scope, receive, send)  # instrumented from outside: that span it is
            return
        token = context.attach(propagate.extract(Headers(scope=scope)))
        try:
            await self._app(scope, receive, send)
        finally:
            context.detach(token)


class Tracing(Observer):
    """Sends to the collector at `endpoint`; the SDK's OTEL_* variables say how.

    Raises SettingsError without the SDK.
    """

    def __init__(self, endpoint: str, model_name: str) -> None:
        self._model_name = model_name
        self._traces, self._meters = _providers(endpoint.rstrip("/"))
        self._asked: dict[str, _Asked] = {}  # by tape
        self._tracer = self._traces.get_tracer(_PROVIDER, version("tickertape"))
        meter = self._meters.get_meter(_PROVIDER, version("tickertape"))
        self._ttft = meter.create_histogram(
            "gen_ai.server.time_to_first_token",
            unit="s",
            description="Time to generate the first token for successful responses.",
            explicit_bucket_boundaries_advisory=_TTFT,
        )
        self._tpot = meter.create_histogram(
            "gen_ai.server.time_per_output_token",
            unit="s",
            description="Time per output token generated after the first one.",
            explicit_bucket_boundaries_advisory=_TPOT,
        )
        self._duration = meter.create_histogram(
            "gen_ai.server.request.duration",
            unit="s",
            description="Time from a generation's start to its end.",
            explicit_bucket_boundaries_advisory=_DURATION,
        )

    def asked(
        self, tape: Tape, request: GenerationRequest, params: SamplingParams, *, streamed: bool
    ) -> None:
        """A tape has begun for this request, in the trace that is current."""
        operation = "chat" if isinstance(request.prompts[0], Conversation) else "text_completion"
        self._note(tape, operation, _wishes(request, params) | {"gen_ai.request.stream": streamed})

    def forked(self, tape: Tape, params: SamplingParams) -> None:
        """A tape has begun with the entries of another one, in the trace that is current."""
        wishes = {"gen_ai.request.max_tokens": params.max_tokens} | _draw(params)
        self._note(tape, "text_completion", wishes | {"gen_ai.request.stream": True})

    def _note(self, tape: Tape, operation: str, wishes: _Attributes) -> None:
        attributes = {
            "gen_ai.operation.name": operation,
            "gen_ai.provider.name": _PROVIDER,
            "gen_ai.request.model": self._model_name,
        }
        self._asked[tape.id] = _Asked(
            context.get_current(), time.time_ns(), operation, attributes | wishes
        )

    def ended(self, tape: Tape, *, attended: bool) -> None:
        asked, end = self._asked.pop(tape.id, None), tape.end
        if asked is None or end is None:
            return
        failure = {"error.type": end.finish_reason} if end.finish_reason == "error" else {}
        self._send_span(asked, tape, end, failure)
        self._measure(asked, tape, end, failure)

    def _send_span(self, asked: _Asked, tape: Tape, end: End, failure: _Attributes) -> None:
        span = self._tracer.start_span(
            f"{asked.operation} {self._model_name}",
            asked.parent,
            trace.SpanKind.INTERNAL,
            asked.attributes | _outcome(tape, end) | failure,
            start_time=asked.began_ns,
        )
        if failure:
            span.set_status(trace.StatusCode.ERROR, end.error)
        span.end(asked.began_ns + int(end.timings.total_ms * 1e6))

    def _measure(self, asked: _Asked, tape: Tape, end: End, failure: _Attributes) -> None:
        labels = {
            "gen_ai.operation.name": asked.operation,
            "gen_ai.provider.name": _PROVIDER,
            "gen_ai.request.model": self._model_name,
            "gen_ai.response.model": self._model_name,
        }
        self._duration.record(end.timings.total_ms / 1000, labels | failure, asked.parent)
        if failure:
            return
        if end.timings.ttft_ms is not None:
            self._ttft.record(end.timings.ttft_ms / 1000, labels, asked.parent)
        if end.timings.tokens_per_second:
            self._tpot.record(1 / end.timings.tokens_per_second, labels, asked.parent)

    async def close(self) -> None:
        """Send what is left, if the collector takes it in time."""
        done = asyncio.Event()
        loop = asyncio.get_running_loop()

        def shut_down() -> None:
            self._traces.shutdown()
            self._meters.shutdown()
            with contextlib.suppress(RuntimeError):  # the loop is closed: it took too long
                loop.call_soon_threadsafe(done.set)

        # No executor's: the interpreter would wait for it at its end.
        threading.Thread(target=shut_down, daemon=True).start()
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(done.wait(), _FLUSH_SECONDS)


def _wishes(request: GenerationRequest, params: SamplingParams) -> _Attributes:
    """The parameters of a request; a length or a seed that it did not choose is left out."""
    wishes = {
        "gen_ai.request.max_tokens": request.max_tokens,
        "gen_ai.request.frequency_penalty": request.params.frequency_penalty or None,
        "gen_ai.request.presence_penalty": request.params.presence_penalty or None,
        "gen_ai.request.seed": params.seed if "seed" in request.given else None,
        "gen_ai.request.choice.count": request.n if request.n > 1 else None,
    }
    return _draw(params) | {name: value for name, value in wishes.items() if value is not None}


def _draw(params: SamplingParams) -> _Attributes:
    top_k = {"gen_ai.request.top_k": params.top_k} if params.top_k else {}
    return top_k | {
        "gen_ai.request.temperature": params.temperature,
        "gen_ai.request.top_p": params.top_p,
    }


def _outcome(tape: Tape, end: End) -> _Attributes:
    usage, ttft_ms = end.usage, end.timings.ttft_ms
    outcome: dict[str, str | int | Sequence[str]] = {
        "gen_ai.response.id": tape.id,
        "gen_ai.response.finish_reasons": end.reasons,
        "gen_ai.usage.input_tokens": usage.prompt_tokens,
        "gen_ai.usage.output_tokens": usage.completion_tokens,
        "gen_ai.usage.cache_read.input_tokens": usage.cached_tokens,
    }
    first = {} if ttft_ms is None else {"gen_ai.response.time_to_first_chunk": ttft_ms / 1000}
    return outcome | first


def _providers(endpoint: str) -> "tuple[TracerProvider, MeterProvider]":
    """Our own: of the global ones there is one for a process, and tests make many apps."""
    try:
        from opentelemetry.exporter.otlp.proto.http.metric_exporter import OTLPMetricExporter
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.metrics import MeterProvider
        from opentelemetry.sdk.metrics.export import PeriodicExportingMetricReader
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
    except ImportError:
        raise SettingsError(
            "--otlp-endpoint (or TICKERTAPE_OTLP_ENDPOINT) needs OpenTelemetry's SDK; install it "
            "with pip install 'tickertape[tracing]', or leave the option out"
        ) from None
    name = os.environ.get("OTEL_SERVICE_NAME", "tickertape")
    resource = Resource.create({"service.name": name, "service.version": version("tickertape")})
    traces = TracerProvider(resource=resource, shutdown_on_exit=False)
    traces.add_span_processor(BatchSpanProcessor(OTLPSpanExporter(f"{endpoint}/v1/traces")))
    reader = PeriodicExportingMetricReader(OTLPMetricExporter(f"{endpoint}/v1/metrics"))
    return traces, MeterProvider([reader], resource, shutdown_on_exit=False)
