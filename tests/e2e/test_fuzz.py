"""Thousands of requests gone wrong: each is answered, at once, and none does any harm."""

import json
import socket
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings

from tests.e2e.requests_gone_wrong import Request, requests
from tests.server import RunningServer, running
from tests.speed import Promised, patience
from tests.tiny import TOOLS_TEMPLATE, tiny_llama

ROOT = Path(__file__).parents[2]
ANSWERED_WITHIN = patience(5)
REFUSALS = {400, 404, 409, 413, 415, 422, 429, 431}
IDLE = {"engine": "ready", "running": 0, "waiting": 0, "paused": 0, "kv_blocks_used": 0}


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    """Its context bounds what a request may cost that has lost its length."""
    path = tiny_llama(tmp_path_factory.mktemp("tiny"), TOOLS_TEMPLATE)
    flags = ("--model", str(path), "--max-model-len", "96", "--log-level", "warning")
    with running(path / "log", *flags) as server:
        yield server
        assert server.stop() == 0, server.log.read_text()


@contextmanager
def watched_health(server: RunningServer, report: list[float]) -> Iterator[None]:
    """Puts into the report what health_watch.py says of the time in which the block runs."""
    command = [sys.executable, "-m", "tests.e2e.health_watch", str(server.port)]
    watch = subprocess.Popen(
        command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    try:
        yield
    finally:
        said, _ = watch.communicate("", timeout=patience(30))
    report += map(float, said.split())


def ask(port: int, request: Request) -> tuple[int, bytes]:
    """Status and body. Raises TimeoutError where the answer does not end soon enough."""
    deadline = time.monotonic() + ANSWERED_WITHIN
    with socket.create_connection(("127.0.0.1", port), timeout=ANSWERED_WITHIN) as client:
        client.sendall(request.written())
        answer = bytearray()
        while data := client.recv(1 << 16):
            answer += data
            client.settimeout(max(0.001, deadline - time.monotonic()))
    head, _, body = bytes(answer).partition(b"\r\n\r\n")
    return int(head.split(b" ", 2)[1]), body


def check(status: int, body: bytes) -> None:
    if status < 300:
        assert status != 200 or body.endswith((b"}", b"\n\n", b"0\r\n\r\n")), body[-100:]
        return
    assert status in REFUSALS, (status, body)
    error: dict[str, Any] = json.loads(body)["error"]
    assert error.keys() == {"type", "message", "param", "code"}
    message: str = error["message"]
    assert message
    assert len(message) < 1000
    assert "\n" not in message


@pytest.mark.timeout(3600)
def test_requests_gone_wrong_do_no_harm(
    small: RunningServer,
    pytestconfig: pytest.Config,
    promised: Promised,
) -> None:
    statuses: Counter[tuple[str, int]] = Counter()
    slowest = 0.0

    @settings(
        max_examples=pytestconfig.getoption("fuzz"),
        deadline=None,
        database=None,
        suppress_health_check=list(HealthCheck),
    )
    @given(request=requests())
    def each_is_answered(request: Request) -> None:
        nonlocal slowest
        began = time.monotonic()
        status, body = ask(small.port, request)
        slowest = max(slowest, time.monotonic() - began)
        statuses[request.path, status] += 1
        check(status, body)

    before = small.health()
    assert before.items() >= IDLE.items()
    health: list[float] = []
    with watched_health(small, health):
        each_is_answered()
    print_counts(statuses)
    print(f"slowest answer {slowest:.2f} s")
    print("/health {:.0f} times, slowest {:.0f} ms".format(*health))
    taken = sum(n for (_, status), n in statuses.items() if status < 300)
    assert taken > statuses.total() / 20, "nearly right is sometimes right"
    assert small.process.poll() is None
    after = wait_idle(small)
    assert after["engine_pid"] == before["engine_pid"], "the engine has died"
    slowest_health = health[1] / 1000
    assert slowest_health < patience(1)
    promised("/health, slowest", slowest_health, 0.1)


def wait_idle(server: RunningServer) -> dict[str, Any]:
    deadline = time.monotonic() + patience(10)
    while not (health := server.health()).items() >= IDLE.items():
        assert time.monotonic() < deadline, health
        time.sleep(0.05)
    return health


def print_counts(statuses: Counter[tuple[str, int]]) -> None:
    print(f"\n{statuses.total()} requests")
    for path in sorted({path for path, _ in statuses}):
        of_path = {status: n for (one, status), n in sorted(statuses.items()) if one == path}
        print(f"  {path}: {of_path}")
