"""Many requests of one client at once: between two of them everybody else is served."""

import os
import signal
import socket

import httpx
import pytest

from tests.adversarial.wire import ATTACKER, Request, connect, opened
from tests.server import RunningServer

CROWD = 300
CHEAP = ("/metrics", "/openapi.json", "/health", "/v1/models", "/v1/tapes/unknown", "/nothing")


@pytest.fixture
def server(tiny_server: RunningServer) -> RunningServer:
    return tiny_server


def is_answered(connection: socket.socket) -> bool:
    connection.setblocking(False)
    try:
        return bool(connection.recv(1, socket.MSG_PEEK))
    except BlockingIOError:
        return False


@pytest.mark.parametrize("path", CHEAP)
def test_a_crowd_of_cheap_requests_does_not_hold_up_another_client(
    server: RunningServer, path: str
) -> None:
    """All are there before the server reads the first of them, and the other client's come last."""
    request = Request("GET", path).written()
    with opened(server.port, [b""] * CROWD) as crowd, connect(server.port) as known:
        other = socket.create_connection(("127.0.0.1", server.port))
        for connection in (*crowd, known):
            connection.settimeout(30)
        known.sendall(Request("GET", "/health").written())  # the server knows all connections now
        assert known.recv(1)
        os.kill(server.process.pid, signal.SIGSTOP)
        try:
            for connection in crowd:
                connection.sendall(request)
            other.sendall(Request("GET", "/health").written())
        finally:
            os.kill(server.process.pid, signal.SIGCONT)
        with other:
            assert other.recv(12).startswith(b"HTTP/1.1 200")
        answered = sum(map(is_answered, crowd))
        assert answered < CROWD // 2
        for connection in crowd:
            connection.setblocking(True)
            connection.settimeout(60)
            assert connection.recv(12).startswith(b"HTTP/1.1 "), "each of them has its turn"


def test_who_leaves_while_waiting_for_a_turn_holds_up_nobody(server: RunningServer) -> None:
    for _ in range(3):
        with opened(server.port, [Request("GET", "/metrics").written()] * CROWD):
            pass
    transport = httpx.HTTPTransport(local_address=ATTACKER)
    with httpx.Client(base_url=server.url, transport=transport) as http:
        assert http.get("/health").status_code == 200
