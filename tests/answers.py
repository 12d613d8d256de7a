"""Streams read by hand: what arrives, entry by entry, and where it was cut."""

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import httpx

from tests.server import Frame, read_stream


@dataclass
class Reading:
    """What one reader has of a tape, over however many connections; entries come once each."""

    tape: str = ""
    last: int = 0
    text: str = ""
    token_ids: list[int] = field(default_factory=list)
    statuses: list[dict[str, Any]] = field(default_factory=list)
    done: dict[str, Any] | None = None

    @property
    def event_id(self) -> str:
        return f"{self.tape}:{self.last}"

    def take(self, frame: Frame) -> None:
        """One frame. Fails when an entry is missing or comes again, or follows the end."""
        assert self.done is None, "the terminal frame is the last"
        match frame.event:
            case "token":
                data = json.loads(frame.data or "")
                self._move(frame, len(data["token_ids"]))
                self.text += data["text"]
                self.token_ids += data["token_ids"]
            case "status":
                assert frame.id is None
                self.statuses.append(json.loads(frame.data or ""))
            case "done":
                self._move(frame, 1)
                self.done = json.loads(frame.data or "")
            case None:
                assert frame.data is None, "the opening block, or a comment"
            case _:
                raise AssertionError(f"unexpected frame {frame}")

    def _move(self, frame: Frame, count: int) -> None:
        assert frame.id == f"{self.tape}:{self.last + count}"
        self.last += count

    async def read(self, response: httpx.Response, until: int | None = None) -> None:
        """To the terminal frame, or as far as entry `until`: a frame that goes beyond is lost."""
        assert response.status_code == 200, await response.aread()
        tape = response.headers["X-Tape"]
        assert self.tape in ("", tape), "a resume never starts a second generation"
        self.tape = tape
        async for frame in read_stream(response):
            if until is not None and number(frame) > until:
                return
            self.take(frame)
            if until is not None and number(frame) == until:
                return
        assert self.done, "a bare end of file"


def number(frame: Frame) -> int:
    return int((frame.id or ":-1").rpartition(":")[2])


async def read_all(http: httpx.AsyncClient, body: dict[str, Any], **options: Any) -> Reading:
    """A whole stream from POST /generate."""
    reading = Reading()
    await read_into(reading, http, body, **options)
    return reading


async def read_into(
    reading: Reading, http: httpx.AsyncClient, body: dict[str, Any], **options: Any
) -> None:
    """The same, for one who looks at the reading meanwhile."""
    async with http.stream(
        "POST", "/generate", json=body | {"stream": True}, **options
    ) as response:
        await reading.read(response)


@asynccontextmanager
async def typing(
    http: httpx.AsyncClient, body: dict[str, Any]
) -> AsyncIterator[tuple[Reading, AsyncIterator[Frame]]]:
    """A stream whose first token is there, and its frames from then on."""
    reading = Reading()
    async with http.stream("POST", "/generate", json=body | {"stream": True}) as response:
        reading.tape = response.headers["X-Tape"]
        frames = read_stream(response)
        async for frame in frames:
            reading.take(frame)
            if frame.event == "token":
                break
        yield reading, frames


async def to_the_end(reading: Reading, frames: AsyncIterator[Frame]) -> dict[str, Any]:
    """The terminal frame's data; all frames up to it are taken."""
    async for frame in frames:
        reading.take(frame)
    assert reading.done, "a bare end of file"
    return reading.done
