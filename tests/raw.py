"""Requests over plain sockets, for clients that no library would be."""

import json
import socket
from typing import Any


def post_generate(body: dict[str, Any]) -> bytes:
    content = json.dumps(body).encode()
    head = "POST /generate HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    return f"{head}Content-Length: {len(content)}\r\n\r\n".encode() + content


def never_reading(port: int, request: bytes) -> socket.socket:
    """A client that asks, has room for little, and takes nothing."""
    client = socket.socket()
    client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    client.connect(("127.0.0.1", port))
    client.sendall(request)
    return client
