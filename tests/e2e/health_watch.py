"""`python -m tests.e2e.health_watch PORT PID` asks for /health over and over until its input ends.

Then it prints how often, and how many milliseconds the slowest answer took: of the server, PID, and
as it was seen. What a busy machine made either of us wait for a core is not the server's. A process
of its own, so that it waits for nobody else.
"""

import http.client
import os
import select
import sys
import time
from pathlib import Path

EVERY_SECONDS = 0.02


def waited(pid: int) -> float:
    """Seconds for which the main thread was ready to run, and no core was free."""
    return int(Path(f"/proc/{pid}/schedstat").read_text().split()[1]) / 1e9


def watch(port: int, pid: int) -> tuple[int, float, float]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    asked, slowest, seen = 0, 0.0, 0.0
    while not select.select([sys.stdin], [], [], EVERY_SECONDS)[0]:
        for_a_core = waited(pid) + waited(os.getpid())
        began = time.perf_counter()
        connection.request("GET", "/health")
        response = connection.getresponse()
        response.read()
        assert response.status == 200
        took = time.perf_counter() - began
        for_a_core = waited(pid) + waited(os.getpid()) - for_a_core
        asked, slowest, seen = asked + 1, max(slowest, took - for_a_core), max(seen, took)
    return asked, slowest, seen


if __name__ == "__main__":
    asked, slowest, seen = watch(int(sys.argv[1]), int(sys.argv[2]))
    print(asked, slowest * 1000, seen * 1000)
