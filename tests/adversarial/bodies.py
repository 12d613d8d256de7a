"""Every field of every route with every kind of hostile value in it: attempts, each with a recipe.

The same document, limit and seed give the same attempts. An attempt is named after its route, its
field and its kind; nothing is built before it is sent.
"""

import json
import random
import zlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote, quote_from_bytes

from tests.adversarial import schemas
from tests.adversarial.document import HOLE, Document, Field, Operation, Schema, written
from tests.adversarial.values import BROKEN, KINDS, Value, text
from tests.adversarial.wire import JSON, Headers, Request

QUERY = 15_000  # bytes of --max-request-line, 16 KiB
HEADER = 60_000  # of --max-header-size, 64 KiB
TAPE, RESPONSE = "{a tape}", "{a response}"  # in a target: one that is there
WORD = "the "  # one token


@dataclass(frozen=True)
class Attempt:
    """`twin` makes what is harmless but otherwise equal, of the size and with the tokens given."""

    route: str
    field: str
    kind: str
    size: int
    build: Callable[[], Request]
    twin: Callable[[int, int], Request]

    @property
    def name(self) -> str:
        return f"{self.route} {self.field} <- {self.kind}, {self.size}"


def attempts(document: Document, limit: int) -> Iterator[Attempt]:
    """All of them: more than ten thousand."""
    for operation in document.operations():
        for field in document.fields(operation):
            for kind, value in _values(document, field):
                yield _attempt(document, operation, field, kind, value, limit)
        if operation.body is None:
            yield from _uncalled(document, operation, limit)


def chosen(every: Iterable[Attempt], number: int, seed: int) -> list[Attempt]:
    """So many, in which every field and every kind occurs; more where fewer would not do."""
    shuffled = list(every)
    random.Random(seed).shuffle(shuffled)
    first: list[Attempt] = []
    rest: list[Attempt] = []
    seen: set[tuple[str, str]] = set()
    for one in shuffled:
        news = {(one.route, one.field), ("", one.kind)} - seen
        seen |= news
        (first if news else rest).append(one)
    return first + rest[: max(0, number - len(first))]


# ---- kinds


def _values(document: Document, field: Field) -> Iterator[tuple[str, Value]]:
    yield from KINDS.items()
    for number, schema in enumerate(document.resolved(field.schema)):
        for kind, value in _fitting(document, schema):
            yield f"{kind}, {number}" if number else kind, value
    if not field.path:
        yield from BROKEN.items()


def _fitting(document: Document, schema: Schema) -> Iterator[tuple[str, Value]]:
    """Of the right type: as much as is allowed, one more, and as much as there is room for."""
    match schema.get("type"):
        case "array" if "items" in schema:
            yield from _lists(document, schema)
        case "string":
            yield from _texts(schema)
        case "integer" | "number":
            yield from _numbers(schema)
        case "object" if schema.get("additionalProperties") is True:
            for number, name in enumerate(schemas.SCHEMAS):
                yield f"schema: {name}", _schema(name, number)
        case "object":
            yield from _objects(document, schema)


def _schema(name: str, number: int) -> Value:
    return lambda size: schemas.written(name, min(size, 1 << 17), number)


def _lists(document: Document, schema: Schema) -> Iterator[tuple[str, Value]]:
    item = json.dumps(document.valid(schema["items"])).encode()
    most = schema.get("maxItems", 1 << 30)

    def several(number: int, last: bytes = item) -> Value:
        def made(size: int) -> bytes:
            count = max(0, min(number, size // (len(item) + 1)) - 1)
            return b"[" + b",".join([*[item] * count, last]) + b"]"

        return made

    yield "as many as allowed", several(most)
    yield "one too many", several(min(most, 1 << 29) + 1)
    yield "far too many", several(1 << 30)
    yield "the last is wrong", several(min(most, 30_000), b"{}")
    yield "the last is another", several(min(most, 30_000), b'"\\u0000"')


def _texts(schema: Schema) -> Iterator[tuple[str, Value]]:
    most = schema.get("maxLength")
    if most:
        yield "as long as allowed", lambda size: text("a")(most + 2)
        yield "marks as long as allowed", lambda size: text("\u0301")(2 * most + 2)
        yield "one too long", lambda size: text("a")(most + 3)
    if words := schema.get("enum"):
        yield "a word and more", lambda size: json.dumps(words[0] + " " * size).encode()


def _numbers(schema: Schema) -> Iterator[tuple[str, Value]]:
    step = 1 if schema["type"] == "integer" else 0.001
    for name in ("minimum", "maximum"):
        if (bound := schema.get(name)) is not None:
            yield name, _constant(bound)
            beyond = bound + (step if name == "maximum" else -step)
            yield f"beyond {name}", _constant(beyond)


def _constant(value: Any) -> Value:
    return lambda size: json.dumps(value).encode()


def _objects(document: Document, schema: Schema) -> Iterator[tuple[str, Value]]:
    inner = schema.get("additionalProperties")
    if isinstance(inner, dict):
        value = json.dumps(document.valid(inner)).encode()

        def entries(number: int) -> Value:
            def made(size: int) -> bytes:
                count = max(1, min(number, size // (len(value) + 10)))
                return b"{" + b",".join(b'"%d":%b' % (i, value) for i in range(count)) + b"}"

            return made

        most = schema.get("maxProperties", 39_000)
        yield "as many as allowed", entries(most)
        yield "one too many", entries(most + 1)
        yield "far too many", entries(39_000)
    valid = document.valid(schema)
    if isinstance(valid, dict):
        yield "more fields", _with_more(valid)


def _with_more(valid: dict[str, Any]) -> Value:
    """A valid object among tens of thousands of fields that there are not."""

    def made(size: int) -> bytes:
        more = KINDS["keys"](size)[1:-1]
        return json.dumps(valid | {HOLE: 0}).encode().replace(f'"{HOLE}": 0'.encode(), more)

    return made


# ---- requests


def _attempt(
    document: Document, operation: Operation, field: Field, kind: str, value: Value, limit: int
) -> Attempt:
    crc = zlib.crc32(f"{operation.name} {field.name} {kind}".encode())
    most = {"body": limit - 2000, "header": HEADER, "query": QUERY, "path": QUERY}[field.place]
    size = most >> (crc % 3 * 2)

    def build() -> Request:
        if field.place == "body":
            return posted(operation, written(document.holding(operation, field.path), value(size)))
        return asked(document, operation, {field.path[0]: _plain(value(size))})

    def twin(size: int, tokens: int) -> Request:
        if field.place != "body":
            return asked(document, operation, {})
        inner = WORD * tokens if tokens and _holds_text(field) else document.valid(field.schema)
        body = written(document.holding(operation, field.path), json.dumps(inner).encode())
        return posted(operation, padded(body, size))

    return Attempt(operation.name, field.name, kind, size, build, twin)


def posted(operation: Operation, body: bytes, more: Headers = ()) -> Request:
    path = operation.path.replace("{response_id}", RESPONSE).replace("{tape_id}", TAPE)
    return Request(operation.method, path, (JSON, *more), body)


def padded(body: bytes, size: int) -> bytes:
    """As large, in blanks."""
    return body[:1] + b" " * max(0, size - len(body)) + body[1:]


def asked(document: Document, operation: Operation, given: dict[str | None, bytes]) -> Request:
    """With these parameters, and the others as they have to be."""
    headers: list[tuple[str, str]] = []
    query: list[str] = []
    target = operation.path
    for field in operation.parameters:
        name = str(field.path[0])
        value = given.get(name, _default(document, operation, field))
        if value is None:
            continue
        match field.place:
            case "header":
                kept = value.translate(None, b"\r\n\0")
                headers.append((name, kept.decode("latin-1")))
            case "query":
                query += [f"{name}={quote_from_bytes(value)}"]
            case "path":
                known = name not in given
                target = target.replace(
                    f"{{{name}}}", value.decode() if known else quote(value.decode(), safe="")
                )
    if query:
        target += "?" + "&".join(query)
    body = b"{}" if operation.method == "POST" else None
    return Request(operation.method, target, (*headers, JSON) if body else tuple(headers), body)


def _default(document: Document, operation: Operation, field: Field) -> bytes | None:
    match field.path[0]:
        case "prompt":
            return b"The capital"
        case "max_length" | "samples":
            return b"1"
        case "timeout" if operation.method == "GET":
            return b"2"
        case "tape_id":
            return TAPE.encode()
        case "response_id":
            return RESPONSE.encode()
        case "model":
            return b"smollm2-135m"
    return None


def _plain(value: bytes) -> bytes:
    """A string without its quotation marks and escapes."""
    try:
        read = json.loads(value)
        return read.encode() if isinstance(read, str) else value
    except (ValueError, RecursionError):  # no JSON, no UTF-8, or too deep for Python's reader
        return value


def _holds_text(field: Field) -> bool:
    return field.path[-1:] in [("prompt",), ("content",), ("input",), ("text",), ("instructions",)]


def _uncalled(document: Document, operation: Operation, limit: int) -> Iterator[Attempt]:
    """A body that the route does not take."""

    def build() -> Request:
        plain = asked(document, operation, {})
        return Request(plain.method, plain.target, (JSON,), KINDS["lists"](limit))

    def twin(size: int, tokens: int) -> Request:
        return asked(document, operation, {})

    yield Attempt(operation.name, "body", "uncalled for", limit, build, twin)
