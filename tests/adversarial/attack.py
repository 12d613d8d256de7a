"""What one client does with many connections, or with one that stays: attacks, each with a twin.

The twin opens as many connections and asks for little. A bystander with an address, or a key, of
its own must not be able to tell one from the other.
"""

import contextlib
import json
import socket
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from tests.adversarial import schemas
from tests.adversarial.bodies import WORD
from tests.adversarial.wire import JSON, Answer, Headers, Request, ask, head_of, opened

NEVER_READS = 4096  # bytes of a socket's buffer
TALK = [{"role": "user", "content": "Hello"}]


@dataclass(frozen=True)
class Target:
    """The server, as the attacker reaches it; `scale` 1 is the whole attack."""

    port: int
    headers: Headers
    scale: float

    def number(self, whole: int) -> int:
        return max(1, round(whole * self.scale))

    def post(self, path: str, body: dict[str, Any]) -> bytes:
        return self.written(Request("POST", path, (JSON,), json.dumps(body).encode()))

    def get(self, path: str, more: Headers = ()) -> bytes:
        return self.written(Request("GET", path, more))

    def written(self, request: Request) -> bytes:
        return request.written(self.headers)

    def ask(self, request: bytes) -> Answer:
        return ask(self.port, request, 300)


Step = Callable[[Target], None]


@dataclass(frozen=True)
class Attack:
    """The bystander is watched for `watched` seconds after it."""

    name: str
    hostile: Step
    twin: Step
    watched: float = 5.0


def left_at_headers(make: Callable[[Target, int], bytes], whole: int) -> Step:
    """Streams whose reader leaves as soon as they have begun."""

    def step(target: Target) -> None:
        requests = [make(target, i) for i in range(target.number(whole))]
        with opened(target.port, requests) as clients:
            for client in clients:
                head_of(client)

    return step


def left_when_sent(make: Callable[[Target, int], bytes], whole: int) -> Step:
    def step(target: Target) -> None:
        for i in range(target.number(whole)):
            with opened(target.port, [make(target, i)]):
                pass

    return step


# ---- schemas


def hostile_stream(on_disconnect: str) -> Callable[[Target, int], bytes]:
    """Another schema each time, which takes long to be made ready."""

    def made(target: Target, mark: int) -> bytes:
        schema = json.loads(schemas.written("constrained", 1 << 16, time.monotonic_ns() + mark))
        shape = {"type": "json_schema", "json_schema": {"name": "n", "schema": schema}}
        body = {"messages": TALK, "max_tokens": 50, "stream": True, "response_format": shape}
        return target.post("/v1/chat/completions", body | {"on_disconnect": on_disconnect})

    return made


def unstreamed_schema(target: Target, mark: int) -> bytes:
    schema = json.loads(schemas.written("constrained", 1 << 16, time.monotonic_ns() + mark))
    shape = {"type": "json_schema", "json_schema": {"name": "n", "schema": schema}}
    body = {"messages": TALK, "max_tokens": 50, "response_format": shape}
    return target.post("/v1/chat/completions", body)


def plain_stream(target: Target, mark: int) -> bytes:
    return target.post("/v1/chat/completions", {"messages": TALK, "max_tokens": 50, "stream": True})


def plain(target: Target, mark: int) -> bytes:
    return target.post("/v1/chat/completions", {"messages": TALK, "max_tokens": 50})


# ---- texts


def long_text(target: Target, mark: int) -> bytes:
    return target.post("/tokenize", {"prompt": f"{mark} " + "the quick brown fox " * 95_000})


def short_text(target: Target, mark: int) -> bytes:
    return target.post("/tokenize", {"prompt": f"{mark} the quick brown fox"})


# ---- pauses


def pause_bomb(words: int) -> Step:
    """Streams of long prompts with an hour of grace, left at their headers; then all resumed."""

    def step(target: Target) -> None:
        number = target.number(300)
        tapes: list[str] = []

        def made(mark: int) -> bytes:
            body = {"prompt": f"{mark} " + WORD * words, "max_length": 100, "stream": True}
            return target.post("/generate", body | {"grace": 3600, "on_disconnect": "pause"})

        for start in range(0, number, 50):
            requests = [made(i) for i in range(start, min(number, start + 50))]
            with opened(target.port, requests) as clients:
                tapes += filter(None, (tape_of(head_of(client)) for client in clients))
        with opened(target.port, [target.get(f"/v1/tapes/{tape}") for tape in tapes]):
            time.sleep(2)  # the storm is what is watched
        for tape in tapes:
            target.ask(target.written(Request("DELETE", f"/v1/tapes/{tape}")))

    return step


def tape_of(head: bytes) -> str:
    """From its X-Tape; empty without one."""
    for line in head.split(b"\r\n"):
        name, _, value = line.partition(b":")
        if name.lower() == b"x-tape":
            return value.strip().decode()
    return ""


# ---- readers


def finished_tape(target: Target, entries: int, logprobs: int) -> str:
    body = {"prompt": "Hello", "max_length": entries, "ignore_eos": True, "logprobs": logprobs}
    answer = target.ask(target.post("/generate", body))
    return tape_of(answer.head)


def readers_that_read_nothing(entries: int) -> Step:
    def step(target: Target) -> None:
        tape = finished_tape(target, max(20, target.number(entries)), 20)
        requests = [target.get(f"/v1/tapes/{tape}")] * target.number(300)
        with opened(target.port, requests, NEVER_READS) as clients:
            for client in clients:
                head_of(client)
            time.sleep(3)  # with all of them there

    return step


def many_readers(whole: int) -> Step:
    """Of one tape that runs."""

    def step(target: Target) -> None:
        body = {"prompt": "Hello", "max_length": 200, "ignore_eos": True}
        tape = tape_of(target.ask(target.post("/v1/tapes", body)).head)
        requests = [target.get(f"/v1/tapes/{tape}")] * target.number(whole)
        with opened(target.port, requests) as clients:
            _read_all(clients, 5)
        target.ask(target.written(Request("DELETE", f"/v1/tapes/{tape}")))

    return step


def _read_all(clients: Sequence[socket.socket], seconds: float) -> None:
    for client in clients:
        client.setblocking(False)
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        for client in clients:
            with contextlib.suppress(OSError):
                client.recv(1 << 16)
        time.sleep(0.2)


def connections(make: Callable[[Target], bytes], whole: int, seconds: float = 3) -> Step:
    """As many at once, held."""

    def step(target: Target) -> None:
        with opened(target.port, [make(target)] * target.number(whole)):
            time.sleep(seconds)

    return step


# ---- bodies


def begun_body(target: Target) -> bytes:
    request = Request("POST", "/generate", (JSON, ("Content-Length", "1000000")), b"{")
    return target.written(request)


def stored(value: int) -> Step:
    """Responses that are kept, and what they were sent with."""

    def step(target: Target) -> None:
        for i in range(target.number(100)):
            body = {
                "input": "Hello",
                "max_output_tokens": 1,
                "metadata": {"k": f"{i}" + "v" * value},
            }
            target.ask(target.post("/v1/responses", body))

    return step


def claims(target: Target) -> None:
    """Another Idempotency-Key each time, of the greatest length."""
    for i in range(target.number(1000)):
        body = json.dumps({"prompt": "a", "max_length": 1}).encode()
        key = ("Idempotency-Key", f"{i}".rjust(255, "k"))
        target.ask(target.written(Request("POST", "/generate", (JSON, key), body)))


def nothing(target: Target) -> None:
    """Whom nobody attacks."""
    time.sleep(2)


ATTACKS: Sequence[Attack] = (
    Attack(
        "A5: streams with schemas, paused at their headers",
        left_at_headers(hostile_stream("pause"), 40),
        left_at_headers(plain_stream, 40),
    ),
    Attack(
        "A5: streams with schemas, aborted at their headers",
        left_at_headers(hostile_stream("abort"), 40),
        left_at_headers(plain_stream, 40),
    ),
    Attack(
        "A6: schemas, left when sent",
        left_when_sent(unstreamed_schema, 60),
        left_when_sent(plain, 60),
    ),
    Attack(
        "A7: long texts, left when sent",
        left_when_sent(long_text, 200),
        left_when_sent(short_text, 200),
    ),
    Attack("A8: pauses, and all resumed at once", pause_bomb(4000), pause_bomb(1)),
    Attack(
        "A9: readers that read nothing",
        readers_that_read_nothing(3000),
        readers_that_read_nothing(20),
    ),
    Attack("A10: many readers of one tape", many_readers(300), many_readers(1)),
    Attack("A11: bodies that do not come", connections(begun_body, 300, 20), nothing),
    Attack("A13: what is kept of a response", stored(1_900_000), stored(10)),
    Attack("idempotency keys", claims, nothing),
    Attack(
        "readers of the operations page", connections(lambda t: t.get("/v1/dash"), 300), nothing
    ),
    Attack("readers of metrics", connections(lambda t: t.get("/metrics"), 300), nothing),
    Attack("readers of the document", connections(lambda t: t.get("/openapi.json"), 300), nothing),
)


def chosen(only: str) -> Iterator[Attack]:
    return (attack for attack in ATTACKS if only in attack.name)
