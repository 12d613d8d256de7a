"""What an option costs: two servers, one with it and one without, asked in turns.

python -m bench.overhead watched [--rounds 7]     scraped each second and traced, 16 streams
python -m bench.overhead redis [--rounds 7]       tapes in Redis and in memory, 64 streams
"""

import asyncio
import contextlib
import http.server
import itertools
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator
from enum import StrEnum
from multiprocessing import Pipe, get_context
from multiprocessing.connection import Connection
from pathlib import Path
from statistics import median
from typing import Annotated

import typer
from rich.console import Console

from app.cluster.local_redis import own_redis
from bench.generator import run
from bench.load import Load
from bench.server import Flags, compile_kernels, serving
from bench.stream import Target


class Option(StrEnum):
    watched = "watched"
    redis = "redis"


STREAMS = {Option.watched: 16, Option.redis: 64}


class Collector(http.server.BaseHTTPRequestHandler):
    """An OTLP collector that takes all and keeps nothing."""

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        self.send_response(200)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, format: str, *args: object) -> None:
        """It has nothing to say."""


def collect(told: Connection) -> None:
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Collector) as server:
        told.send(server.server_address[1])
        server.serve_forever()


def scrape(told: Connection, url: str) -> None:
    """/metrics, once a second."""
    for number in itertools.count():
        with urllib.request.urlopen(f"{url}/metrics") as answer:
            size = len(answer.read())
        if number == 0:
            told.send(size)
        time.sleep(1)


@contextlib.contextmanager
def beside(work: Callable[..., None], *args: object) -> Iterator[int]:
    """In a process of its own, for the load generator has tokens to take in time. Yields the first
    that it tells: to start it takes half a second, in which nothing is measured.
    """
    ours, theirs = Pipe()
    process = get_context("spawn").Process(target=work, args=(theirs, *args), daemon=True)
    process.start()
    try:
        yield ours.recv()
    finally:
        process.kill()
        process.join()


@contextlib.contextmanager
def flags_for(option: Option, folder: Path) -> Iterator[Flags]:
    if option == Option.watched:
        with beside(collect) as port:
            yield {"otlp_endpoint": f"http://127.0.0.1:{port}"}
    else:
        with own_redis(folder) as url:
            yield {"tapes": url}


def main(
    option: Option,
    rounds: Annotated[int, typer.Option(min=1)] = 7,
    new_tokens: Annotated[int, typer.Option(min=1)] = 128,
) -> None:
    """Print the throughput with the option and without, in pairs, and their ratio."""
    say = Console().print
    compile_kernels()
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        flags = stack.enter_context(flags_for(option, folder))
        plain = stack.enter_context(serving({}, folder / "plain.log"))
        other = stack.enter_context(serving(flags, folder / "other.log"))

        def rate(target: Target, seed: str, *, scraped: bool = False) -> float:
            count = STREAMS[option]
            load = Load(2 * count, count, new_tokens=new_tokens, seed=seed)
            with beside(scrape, target.url) if scraped else contextlib.nullcontext():
                return asyncio.run(run(target, load)).figures.tokens_per_second

        pairs: list[dict[str, float]] = []
        for number in range(-1, rounds):  # the first warms both up
            pair = {"plain": plain, "other": other}
            order = ("plain", "other") if number % 2 else ("other", "plain")
            rates = {
                name: rate(
                    pair[name],
                    f"{number} {name}",
                    scraped=name == "other" and option == Option.watched,
                )
                for name in order
            }
            if number >= 0:
                pairs.append(rates)
                say("{other:.0f} / {plain:.0f} tokens/s".format_map(rates))
        ratio = median(rates["other"] / rates["plain"] for rates in pairs)
        best = {name: max(rates[name] for rates in pairs) for name in ("plain", "other")}
        say(f"{option}, {STREAMS[option]} streams: {ratio:.3f} is the median of the pairs,")
        say(f"{best['other'] / best['plain']:.3f} the ratio of the best: others only take away")


if __name__ == "__main__":
    typer.run(main)
