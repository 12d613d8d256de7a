"""Debian's Prometheus scrapes a server under load, and has what the clients have counted."""

import asyncio
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.answers import Reading, read_into
from tests.deploy.tools import tool
from tests.server import RunningServer, free_port, running
from tests.speed import patience
from tests.tiny import tiny_llama

REQUESTS = 500
AT_ONCE = 32

CONFIG = """
global: {{scrape_interval: 1s}}
scrape_configs:
  - job_name: tickertape
    static_configs: [{{targets: ["{target}"]}}]
"""


@pytest.fixture
def server(tmp_path: Path) -> Iterator[RunningServer]:
    model = tiny_llama(tmp_path / "model")
    with running(tmp_path / "log", "--model", str(model)) as server:
        yield server


@pytest.fixture
def prometheus(tmp_path: Path, server: RunningServer) -> Iterator[str]:
    config = tmp_path / "prometheus.yml"
    config.write_text(CONFIG.format(target=server.url.removeprefix("http://")))
    address = f"127.0.0.1:{free_port()}"
    with (tmp_path / "prometheus.log").open("wb") as log:
        process = subprocess.Popen(
            [
                tool("prometheus"),
                f"--config.file={config}",
                f"--storage.tsdb.path={tmp_path / 'data'}",
                f"--web.listen-address={address}",
            ],
            stdout=log,
            stderr=log,
        )
    try:
        yield f"http://{address}"
    finally:
        process.terminate()
        process.wait(patience(10))


async def value(http: httpx.AsyncClient, query: str) -> float | None:
    try:
        answer = await http.get("/api/v1/query", params={"query": query})
    except httpx.TransportError:
        return None
    if answer.status_code == 503:  # it is starting
        return None
    result = answer.json().get("data", {}).get("result", [])
    return float(result[0]["value"][1]) if result else None


async def becomes(http: httpx.AsyncClient, query: str, wanted: float) -> None:
    """Once it has scraped that. Raises TimeoutError when it does not."""
    async with asyncio.timeout(patience(20)):
        while (await value(http, query)) != wanted:  # noqa: ASYNC110
            await asyncio.sleep(0.05)


def body(number: int) -> dict[str, Any]:
    return {"prompt": f"{number}, and so on", "max_length": 1 + number % 40, "seed": number}


@pytest.mark.long
async def test_it_has_what_500_clients_count(server: RunningServer, prometheus: str) -> None:
    readings = [Reading() for _ in range(REQUESTS)]
    numbers = iter(range(REQUESTS))

    async def client(http: httpx.AsyncClient) -> None:
        for number in numbers:
            await read_into(readings[number], http, body(number))

    async with (
        httpx.AsyncClient(base_url=server.url, timeout=patience(60)) as http,
        httpx.AsyncClient(base_url=prometheus, timeout=patience(30)) as asking,
    ):
        await becomes(asking, "up", 1)
        await asyncio.gather(*(client(http) for _ in range(AT_ONCE)))
        done = [reading.done for reading in readings if reading.done]
        assert len(done) == REQUESTS
        counted = {
            "tickertape:prompt_tokens_total": sum(d["usage"]["prompt_tokens"] for d in done),
            "tickertape:generation_tokens_total": sum(len(r.token_ids) for r in readings),
            "sum(tickertape:request_success_total)": REQUESTS,
            "tickertape:time_to_first_token_seconds_count": REQUESTS,
            "tickertape:e2e_request_latency_seconds_count": REQUESTS,
            'tickertape:http_requests_total{route="/generate",status="200"}': REQUESTS,
        }
        for reason in ("stop", "length"):
            query = f'tickertape:request_success_total{{finished_reason="{reason}"}}'
            counted[query] = sum(d["finish_reason"] == reason for d in done)
        for query, wanted in counted.items():
            await becomes(asking, query, wanted)
        for query, wanted in counted.items():
            print(f"{query:<75}{wanted:>8}")
            assert await value(asking, query) == wanted
