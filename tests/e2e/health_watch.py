"""`python -m tests.e2e.health_watch PORT` asks for /health over and over until its input ends.

Then it prints how often, and how many milliseconds the slowest answer took. A process of its own,
so that it waits for nobody else.
"""

import http.client
import select
import sys
import time

from tests.speed import patience

EVERY_SECONDS = 0.02


def watch(port: int) -> tuple[int, float]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=patience(30))
    asked, slowest = 0, 0.0
    while not select.select([sys.stdin], [], [], EVERY_SECONDS)[0]:
        began = time.perf_counter()
        connection.request("GET", "/health")
        response = connection.getresponse()
        response.read()
        assert response.status == 200
        asked, slowest = asked + 1, max(slowest, time.perf_counter() - began)
    return asked, slowest


if __name__ == "__main__":
    asked, slowest = watch(int(sys.argv[1]))
    print(asked, slowest * 1000)
