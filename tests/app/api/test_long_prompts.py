"""A megabyte of text holds up nobody: /health answers, and streams keep their pace."""

import asyncio
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import orjson
import pytest

from tests.server import RunningServer
from tests.speed import Promised, patience

pytestmark = pytest.mark.alone

MEGABYTE = 1 << 20
STREAM = {
    "prompt": "Once",
    "max_length": 200,
    "temperature": 0,
    "ignore_eos": True,
    "on_disconnect": "abort",
    "stream": True,
}

TEXTS = {
    "prose": "The quick brown fox jumps over the lazy dog. " * (MEGABYTE // 45),
    "one word": "a" * MEGABYTE,
    "blanks": " " * MEGABYTE,
    "no words": "☃" * (MEGABYTE // 3),
}


def requests(text: str) -> list[tuple[str, dict[str, Any]]]:
    messages = [{"role": "user", "content": text}]
    return [
        ("/generate", {"prompt": text}),
        ("/v1/completions", {"prompt": text}),
        ("/v1/chat/completions", {"messages": messages}),
        ("/v1/responses", {"input": text}),
        ("/tokenize", {"prompt": text}),
        ("/tokenize", {"messages": messages}),
    ]


class Watch:
    """How long /health takes and how far apart a stream's tokens are, while something goes on.

    One stream follows the other: a long one would be slower in the end whatever else goes on.
    """

    def __init__(self, http: httpx.AsyncClient) -> None:
        self._http = http
        self.health: list[float] = []
        self.gaps: list[float] = []

    async def while_(self, work: asyncio.Task[Any]) -> None:
        """Until the work is done."""
        asking = asyncio.create_task(self._ask(work))
        while not work.done():
            await self._read(work)
        await asking
        await work

    async def _read(self, work: asyncio.Task[Any]) -> None:
        before: float | None = None
        async with self._http.stream("POST", "/generate", json=STREAM) as stream:
            async for line in stream.aiter_lines():
                if line.startswith("data: "):
                    now = time.perf_counter()
                    if before is not None:
                        self.gaps.append(now - before)
                    before = now
                    if work.done():
                        return

    async def _ask(self, work: asyncio.Task[Any]) -> None:
        while not work.done():
            began = time.perf_counter()
            assert (await self._http.get("/health")).status_code == 200
            self.health.append(time.perf_counter() - began)
            await asyncio.sleep(0.05)  # to ask all the time would hold up the stream by itself

    @property
    def itl_p99(self) -> float:
        return sorted(self.gaps)[int(len(self.gaps) * 0.99)]


@dataclass(frozen=True)
class Measured:
    health: float  # the slowest answer, over the slowest before
    slowest: float  # of those answers, in seconds
    pace: float  # ITL p99 beside the megabyte, over that before


@pytest.fixture(
    scope="module",
    params=["prose"]
    + [pytest.param(name, marks=pytest.mark.long) for name in ("one word", "blanks", "no words")],
)
async def measured(
    server: RunningServer, tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest
) -> Measured:
    """The pace before is that of equal streams, with /health asked as often.

    The best of three rounds, as what else goes on on the machine only adds.
    """
    folder, name = tmp_path_factory.mktemp("megabyte"), request.param
    rounds: list[Measured] = []
    async with httpx.AsyncClient(base_url=server.url, timeout=patience(60)) as http:
        while len(rounds) < 3 and not (rounds and rounds[-1].pace < 2 and rounds[-1].health < 5):
            usual, busy = Watch(http), Watch(http)
            await usual.while_(asyncio.create_task(asyncio.sleep(3)))
            await busy.while_(asyncio.create_task(ask_all(server.url, TEXTS[name], folder)))
            slowest = max(busy.health)
            pace = busy.itl_p99 / usual.itl_p99
            rounds.append(Measured(slowest / max(usual.health), slowest, pace))
            print(f"{name}: {rounds[-1]}")
    return Measured(
        min(r.health for r in rounds), max(r.slowest for r in rounds), min(r.pace for r in rounds)
    )


async def test_health_answers_while_a_megabyte_is_tokenized(
    measured: Measured, promised: Promised
) -> None:
    assert measured.health < 5
    promised("/health", measured.slowest, 0.1)


async def test_streams_keep_their_pace_while_a_megabyte_is_tokenized(measured: Measured) -> None:
    assert measured.pace < 2


async def ask_all(url: str, text: str, folder: Path) -> None:
    """Each route once; whatever is not refused for its length is given up at once.

    By curl: this process has a stream's tokens to take in time.
    """
    for path, body in requests(text):
        body = body if path == "/tokenize" else body | {"timeout": 0.001}
        file = folder / "body.json"
        await asyncio.to_thread(file.write_bytes, orjson.dumps(body))
        curl = await asyncio.create_subprocess_exec(
            *("curl", "-s", "-o", str(folder / "answer"), "-w", "%{http_code}"),
            *("-H", "Content-Type: application/json", "-H", "Expect:"),
            *("--data-binary", f"@{file}", f"{url}{path}"),
            stdout=asyncio.subprocess.PIPE,
        )
        status, _ = await curl.communicate()
        assert status in (b"200", b"400", b"422", b"503"), (folder / "answer").read_text()[:300]
