"""Spans and GenAI metrics, as a collector on this machine receives them by OTLP."""

import asyncio
import subprocess
import sys
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import httpx
import pytest
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import (
    ExportMetricsServiceRequest,
)
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.common.v1.common_pb2 import AnyValue, KeyValue
from opentelemetry.proto.trace.v1.trace_pb2 import Span, Status

from app.settings import Settings
from tests.answers import Reading, typing
from tests.server import RunningServer, running
from tests.speed import patience
from tests.tiny import CHAT_TEMPLATE, tiny_llama

BODY: dict[str, Any] = {"prompt": "my secret", "max_length": 6, "ignore_eos": True}
TRACE, PARENT = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
BUCKETS = {
    "gen_ai.server.time_to_first_token": 16,
    "gen_ai.server.time_per_output_token": 13,
    "gen_ai.server.request.duration": 14,
}


@dataclass
class Collector:
    """What has arrived. The raw bodies are kept to look for what must not be in them."""

    url: str = ""
    spans: dict[str, Span] = field(default_factory=dict)  # by tape
    resource: dict[str, Any] = field(default_factory=dict)
    metrics: dict[str, Any] = field(default_factory=dict)  # the newest data points, by name
    raw: bytes = b""
    headers: list[str | None] = field(default_factory=list)

    def take(self, path: str, body: bytes) -> None:
        self.raw += body
        if path == "/v1/traces":
            for resource in ExportTraceServiceRequest.FromString(body).resource_spans:
                self.resource = attributes(resource.resource.attributes)
                for scope in resource.scope_spans:
                    for span in scope.spans:
                        self.spans[attributes(span.attributes)["gen_ai.response.id"]] = span
        elif path == "/v1/metrics":
            for measured in ExportMetricsServiceRequest.FromString(body).resource_metrics:
                for metrics in measured.scope_metrics:
                    for metric in metrics.metrics:
                        self.metrics[metric.name] = list(metric.histogram.data_points)

    async def span(self, tape: str) -> Span:
        """That of a tape, once it has arrived. Raises TimeoutError."""
        async with asyncio.timeout(patience(10)):
            while tape not in self.spans:  # noqa: ASYNC110
                await asyncio.sleep(0.01)
        return self.spans[tape]


def attributes(pairs: Any) -> dict[str, Any]:
    return {pair.key: plain(pair.value) for pair in pairs if isinstance(pair, KeyValue)}


def plain(value: AnyValue) -> Any:
    kind = value.WhichOneof("value")
    if kind == "array_value":
        return [plain(one) for one in value.array_value.values]
    return getattr(value, kind or "string_value")


@contextmanager
def collecting() -> Iterator[Collector]:
    collector = Collector()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            collector.headers.append(self.headers["X-Collector-Key"])
            collector.take(self.path, body)
            self.send_response(200)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, format: str, *args: Any) -> None:
            """It has nothing to say."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        collector.url = f"http://127.0.0.1:{server.server_address[1]}"
        yield collector
        server.shutdown()


@pytest.fixture(scope="module")
def collector() -> Iterator[Collector]:
    with collecting() as collector:
        yield collector


@pytest.fixture(scope="module")
def traced(
    tmp_path_factory: pytest.TempPathFactory, collector: Collector
) -> Iterator[RunningServer]:
    model = tiny_llama(tmp_path_factory.mktemp("traced") / "tiny", CHAT_TEMPLATE)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OTEL_BSP_SCHEDULE_DELAY", "50")
        patch.setenv("OTEL_EXPORTER_OTLP_HEADERS", "X-Collector-Key=ours")
        flags = ("--model", str(model), "--otlp-endpoint", f"{collector.url}/")
        with running(model / "log", *flags) as server:
            yield server
            assert server.stop() == 0, server.log.read_text()
    # Metrics come each minute, and at the end.
    assert {name: len(points[0].explicit_bounds) for name, points in collector.metrics.items()} == (
        BUCKETS
    )
    operations = {
        attributes(point.attributes)["gen_ai.operation.name"]
        for points in collector.metrics.values()
        for point in points
    }
    assert operations == {"chat", "text_completion"}
    durations = collector.metrics["gen_ai.server.request.duration"]
    assert sum(point.count for point in durations) == len(collector.spans)
    assert set(collector.headers) == {"ours"}, "the SDK's own variables hold"
    assert b"secret" not in collector.raw


@pytest.fixture
async def http(traced: RunningServer) -> AsyncIterator[httpx.AsyncClient]:
    async with httpx.AsyncClient(base_url=traced.url, timeout=patience(60)) as client:
        yield client


async def test_a_span_says_what_was_generated(
    http: httpx.AsyncClient, collector: Collector
) -> None:
    body = BODY | {"temperature": 0.5, "top_k": 7, "seed": 11}
    answer = (await http.post("/generate", json=body)).json()
    span = await collector.span(answer["tape"])
    assert (span.name, span.kind) == ("text_completion tiny", Span.SPAN_KIND_INTERNAL)
    assert span.status.code == Status.STATUS_CODE_UNSET
    told = attributes(span.attributes)
    ttft = told.pop("gen_ai.response.time_to_first_chunk")
    assert ttft * 1000 == pytest.approx(answer["timings"]["ttft_ms"])
    seconds = (span.end_time_unix_nano - span.start_time_unix_nano) / 1e9
    assert seconds * 1000 == pytest.approx(answer["timings"]["total_ms"], abs=0.01)
    assert told == {
        "gen_ai.operation.name": "text_completion",
        "gen_ai.provider.name": "tickertape",
        "gen_ai.request.model": "tiny",
        "gen_ai.request.stream": False,
        "gen_ai.request.max_tokens": 6,
        "gen_ai.request.temperature": 0.5,
        "gen_ai.request.top_p": 1.0,
        "gen_ai.request.top_k": 7,
        "gen_ai.request.seed": 11,
        "gen_ai.response.id": answer["tape"],
        "gen_ai.response.finish_reasons": ["length"],
        "gen_ai.usage.input_tokens": 9,
        "gen_ai.usage.output_tokens": 6,
        "gen_ai.usage.cache_read.input_tokens": 0,
    }
    assert collector.resource["service.name"] == "tickertape"


async def test_a_span_is_in_the_trace_of_who_asked(
    http: httpx.AsyncClient, collector: Collector
) -> None:
    headers = {"traceparent": f"00-{TRACE}-{PARENT}-01"}
    ask = {"messages": [{"role": "user", "content": "my secret"}], "n": 2, "max_tokens": 3}
    answer = await http.post("/v1/chat/completions", json=ask, headers=headers)
    span = await collector.span(answer.headers["X-Tape"])
    assert (span.trace_id.hex(), span.parent_span_id.hex()) == (TRACE, PARENT)
    assert span.name == "chat tiny"
    told = attributes(span.attributes)
    assert told["gen_ai.request.choice.count"] == len(told["gen_ai.response.finish_reasons"]) == 2
    for wrong in ("", "00-0-0-01", f"ff-{TRACE}-{PARENT}-01", "\x85" * 55):
        raw = {b"traceparent": wrong.encode("latin-1")}
        own = await http.post("/generate", json=BODY, headers=raw)
        span = await collector.span(own.headers["X-Tape"])
        assert span.parent_span_id == b""
        assert span.trace_id.hex() != TRACE


async def test_a_span_of_a_stream_ends_with_its_tape(
    http: httpx.AsyncClient, collector: Collector
) -> None:
    """Not with the connection, and a resume begins no other one. The query is not in it."""
    reading = Reading()
    async with http.stream("GET", "/generate", params=BODY | {"max_length": 20}) as answer:
        await reading.read(answer, until=2)
    async with http.stream(
        "GET", f"/v1/tapes/{reading.tape}", headers={"Last-Event-ID": reading.event_id}
    ) as answer:
        await reading.read(answer)
    told = attributes((await collector.span(reading.tape)).attributes)
    assert told["gen_ai.usage.output_tokens"] == 20
    assert told["gen_ai.request.stream"] is True
    async with typing(http, BODY | {"max_length": 400, "on_disconnect": "abort"}) as (left, _):
        pass
    told = attributes((await collector.span(left.tape)).attributes)
    assert told["gen_ai.response.finish_reasons"] == ["cancelled"]


async def test_a_fork_has_a_span_of_its_own(http: httpx.AsyncClient, collector: Collector) -> None:
    parent = (await http.post("/generate", json=BODY)).json()["tape"]
    headers = {"traceparent": f"00-{TRACE}-{PARENT}-01"}
    ask = {"after": 2, "temperature": 0.5, "seed": 3}
    fork = await http.post(f"/v1/tapes/{parent}/fork", json=ask, headers=headers)
    span = await collector.span(fork.json()["tape"])
    assert (span.trace_id.hex(), span.parent_span_id.hex()) == (TRACE, PARENT)
    told = attributes(span.attributes)
    assert told["gen_ai.request.temperature"] == 0.5
    assert told["gen_ai.usage.output_tokens"] == 6


def test_a_collector_that_is_not_there_costs_nothing(tiny_model: Path, tmp_path: Path) -> None:
    """Neither an answer, nor an end in time."""
    flags = ("--model", str(tiny_model), "--otlp-endpoint", "http://127.0.0.1:9")
    with running(tmp_path / "log", *flags) as server:
        answer = httpx.post(f"{server.url}/generate", json=BODY, timeout=patience(60))
        assert answer.status_code == 200
        assert server.stop() == 0
    assert all(line.startswith("{") for line in server.log.read_text().splitlines())


def test_without_the_extra_the_start_says_so(tiny_model: Path) -> None:
    code = (
        "import sys; sys.modules['opentelemetry.sdk.trace'] = None; "
        f"sys.argv = ['tickertape', 'serve', '--model', {str(tiny_model)!r}, "
        "'--otlp-endpoint', 'http://127.0.0.1:9']; from app.cli import main; main()"
    )
    ended = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False
    )
    assert ended.returncode == 2
    assert ended.stderr.startswith(
        "tickertape: --otlp-endpoint (or TICKERTAPE_OTLP_ENDPOINT) needs"
    )
    assert "tickertape[tracing]" in ended.stderr
    assert ended.stderr.count("\n") == 1


def test_an_endpoint_that_is_none_is_told_at_the_start() -> None:
    for wrong in ("127.0.0.1:4318", "grpc://x", "http://"):
        with pytest.raises(ValueError, match="otlp_endpoint"):
            Settings(otlp_endpoint=wrong)
    assert Settings(otlp_endpoint="").otlp_endpoint is None
