"""Which replica, and how many: what app/cluster/sessions.py decides, without Ray."""

import json
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import pytest
from starlette.types import Message, Receive, Scope, Send

from app.cluster.autoscaling import SEQUENCES, wanted_replicas
from app.cluster.sessions import SessionHeader, ranked, session_of

ASKED = {"role": "user", "content": "Hi"}
ANSWERED = {"role": "assistant", "content": "Hello"}
SYSTEM = {"role": "system", "content": "Be kind."}


def session(**fields: Any) -> str | None:
    return session_of(b"", fields)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ({"prompt": "x" * 256 + "a"}, {"prompt": "x" * 256 + "b"}),
        ({"messages": [ASKED]}, {"messages": [ASKED, ANSWERED, {"role": "user", "content": "?"}]}),
        ({"input": [SYSTEM, ASKED]}, {"input": [SYSTEM, ASKED, ANSWERED]}),
        ({"prompt": [*range(64), 1]}, {"prompt": [*range(64), 2]}),
        ({"prompt": "a", "temperature": 0}, {"prompt": "a", "temperature": 1}),
    ],
)
def test_what_shares_a_beginning_is_one_session(one: dict[str, Any], other: dict[str, Any]) -> None:
    assert session(**one) == session(**other) is not None


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ({"prompt": "a"}, {"prompt": "b"}),
        ({"messages": [SYSTEM, ASKED]}, {"messages": [SYSTEM, ASKED | {"content": "Ho"}]}),
        ({"prompt": [1]}, {"prompt": [2]}),
        ({"prompt": "a"}, {"prompt": "a", "cache_salt": "mine"}),
        ({"input": "a", "instructions": "x"}, {"input": "a", "instructions": "y"}),
    ],
)
def test_what_shares_none_is_not(one: dict[str, Any], other: dict[str, Any]) -> None:
    assert session(**one) != session(**other)


def test_nobody_shares_with_another_key() -> None:
    assert session_of(b"Bearer a", {"prompt": "x"}) != session_of(b"Bearer b", {"prompt": "x"})


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"prompt": 1},
        {"prompt": ""},
        {"input": {"a": 1}},
        {"input": "And?", "previous_response_id": "resp_1"},
    ],
)
def test_what_tells_nothing_has_no_session(fields: dict[str, Any]) -> None:
    assert session(**fields) is None


def test_sessions_are_spread_and_few_move() -> None:
    sessions = [str(number) for number in range(3000)]
    three, two = ["a", "b", "c"], ["c", "a"]
    homes = {session: ranked(session, three)[0] for session in sessions}
    assert min(Counter(homes.values()).values()) > 900
    for session_, home in homes.items():
        order = ranked(session_, three)
        assert ranked(session_, two)[0] == (order[1] if home == "b" else home)


@dataclass
class Load:
    total_num_requests: float = 0
    aggregated_metrics: dict[str, dict[str, float]] = field(default_factory=dict)

    @property
    def config(self) -> "Load":
        return self

    def get_target_ongoing_requests(self) -> float:
        return 8


def test_replicas_are_wanted_for_streams_and_for_sequences() -> None:
    sequences = {SEQUENCES: {"a": 20.0, "b": 4.0}}
    assert wanted_replicas(Load(16))[0] == 2
    assert wanted_replicas(Load(0, sequences))[0] == 3
    assert wanted_replicas(Load(40, sequences))[0] == 5
    assert wanted_replicas(Load())[0] == 0


class Behind:
    """What is behind the layer: keeps what it gets, answers with two ids."""

    def __init__(self) -> None:
        self.body = b""
        self.session: bytes | None = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self.session = dict(scope["headers"]).get(b"x-session-id")
        more = True
        while more:
            message = await receive()
            self.body += message.get("body", b"")
            more = message.get("more_body", False)
        ids = [(b"x-request-id", b"ours"), (b"X-Request-ID", b"of Ray")]
        await send({"type": "http.response.start", "status": 200, "headers": ids})


async def through(
    chunks: Iterable[bytes], method: str = "POST", query: bytes = b"", **headers: str
) -> tuple[Behind, list[Message]]:
    behind, sent = Behind(), list[Message]()
    *first, last = chunks
    messages = [{"type": "http.request", "body": chunk, "more_body": True} for chunk in first]
    messages.append({"type": "http.request", "body": last, "more_body": False})

    async def receive() -> Message:
        return messages.pop(0)

    async def send(message: Message) -> None:
        sent.append(message)

    scope = {
        "type": "http",
        "method": method,
        "query_string": query,
        "headers": [(name.replace("_", "-").encode(), v.encode()) for name, v in headers.items()],
    }
    await SessionHeader(behind)(scope, receive, send)
    assert messages == []
    return behind, sent


async def test_the_layer_names_the_session_and_hands_the_body_on() -> None:
    body = json.dumps({"prompt": "Hello"}).encode()
    behind, sent = await through([body[:5], b"", body[5:]])
    assert behind.body == body
    assert behind.session == (session(prompt="Hello") or "").encode()
    assert sent[0]["headers"] == [(b"x-request-id", b"ours")]


async def test_the_layer_reads_queries() -> None:
    behind, _ = await through([b""], method="GET", query=b"prompt=Hello&max_length=3")
    assert behind.session == (session(prompt="Hello") or "").encode()


async def test_the_layer_leaves_a_session_that_was_named() -> None:
    behind, _ = await through([b'{"prompt": "Hello"}'], x_session_id="mine")
    assert behind.session == b"mine"


@pytest.mark.parametrize("body", [b"", b"{", b"[1]", b"\xff", b"[" * 100_000, b"x" * 3 * 2**20])
async def test_the_layer_hands_on_whatever_comes(body: bytes) -> None:
    behind, _ = await through([body[:100], body[100:]])
    assert (behind.body, behind.session) == (body, None)
