"""Which requests belong together, and which replica of a cluster serves them best. No Ray here.

All of it is an optimisation: tapes are in Redis, and any replica serves any request. But the one
that has computed a prompt's beginning has its keys and values, and starts sooner.
"""

import hashlib
from collections import deque
from collections.abc import Iterable, Mapping
from typing import Any
from urllib.parse import parse_qs

import orjson
from starlette.middleware import Middleware
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app.guard import strict_json

# Ray Serve's own name for it: a client that sends it decides itself what belongs together.
SESSION = b"x-session-id"

_CHARACTERS, _TOKEN_IDS = 256, 64
_MAX_BODY = 2 * 2**20  # of one that is looked into


def session_of(owner: bytes, fields: Mapping[str, Any]) -> str | None:
    """What requests have in common that can share a beginning; None where nothing tells.

    A text counts with its first 256 characters, a conversation up to its first question: then all
    its turns are one session, and conversations with the same instructions are not.
    """
    if fields.get("previous_response_id"):  # the beginning is in what it names
        return None
    asked = next(filter(None, map(fields.get, ("prompt", "messages", "input"))), None)
    match asked:
        case str():
            beginning: Any = asked[:_CHARACTERS]
        case [dict(), *_]:
            beginning = _first_question(asked)
        case list():
            beginning = asked[:_TOKEN_IDS]
        case _:
            return None
    told = [fields.get("cache_salt"), fields.get("instructions"), beginning]
    return hashlib.blake2b(owner + b"\0" + orjson.dumps(told), digest_size=16).hexdigest()


def _first_question(messages: list[Any]) -> list[Any]:
    for count, message in enumerate(messages, 1):
        if isinstance(message, dict) and message.get("role") == "user":
            return messages[:count]
    return messages


def ranked(session: str, names: Iterable[str]) -> list[str]:
    """Rendezvous hashing: where one goes, only its own sessions move, each to its second."""
    return sorted(names, key=lambda name: hashlib.blake2b(f"{session} {name}".encode()).digest())


class SessionHeader:
    """ASGI layer of Ray's HTTP proxy, where the routing is done: names each request's session.

    The router sees headers only. Here the body is read, looked into, and handed on as it came.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = dict(scope["headers"])
        if SESSION not in headers:
            fields, receive = await _fields(scope, receive)
            if session := session_of(headers.get(b"authorization", b""), fields):
                scope["headers"] = [*scope["headers"], (SESSION, session.encode())]
        await self._app(scope, receive, _with_one_id(send))


def proxy_layers() -> list[Middleware]:
    """Asked for by Ray's HTTP proxy: RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH names it."""
    return [Middleware(SessionHeader)]


async def _fields(scope: Scope, receive: Receive) -> tuple[Mapping[str, Any], Receive]:
    """What a request asks for, as far as that can be read, and its body once more."""
    if scope["method"] == "GET":
        query = parse_qs(scope["query_string"].decode("latin-1"))
        return {name: values[0] for name, values in query.items()}, receive
    if scope["method"] != "POST":
        return {}, receive
    messages: deque[Message] = deque()
    body = b""
    while len(body) <= _MAX_BODY:
        message = await receive()
        messages.append(message)
        body += message.get("body", b"")
        if not message.get("more_body"):
            break

    async def once_more() -> Message:
        return messages.popleft() if messages else await receive()

    return _parsed(body), once_more


def _parsed(body: bytes) -> Mapping[str, Any]:
    """Whatever is wrong with it is for the replica to say."""
    try:
        fields = strict_json.loads(body)
    except ValueError:
        return {}
    return fields if isinstance(fields, dict) else {}


def _with_one_id(send: Send) -> Send:
    """Ray adds an X-Request-Id; what its replicas answer has ours."""

    async def sending(message: Message) -> None:
        if message["type"] == "http.response.start":
            headers = list(message["headers"])
            ids = [header for header in headers if header[0].lower() == b"x-request-id"]
            for doubled in ids[1:]:
                headers.remove(doubled)
            message = {**message, "headers": headers}
        await send(message)

    return sending
