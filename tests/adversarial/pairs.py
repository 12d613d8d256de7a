"""What no single field does: several together, heads, and bodies sent in an odd way."""

import gzip
import json
from collections.abc import Iterator
from itertools import islice
from typing import Any

from tests.adversarial import schemas
from tests.adversarial.bodies import RESPONSE, TAPE, WORD, Attempt, padded
from tests.adversarial.values import KINDS
from tests.adversarial.wire import JSON, Headers, Request

CHAT = "/v1/chat/completions"
COMPLETIONS = "/v1/completions"
RESPONSES = "/v1/responses"
USER = [{"role": "user", "content": "Hello"}]
END = {"timeout": 2, "on_disconnect": "abort"}
PLAIN: dict[str, dict[str, Any]] = {
    "/generate": {"prompt": "Hello", "max_length": 1},
    "/v1/tapes": {"prompt": "Hello", "max_length": 1},
    COMPLETIONS: {"prompt": "Hello", "max_tokens": 1},
    CHAT: {"messages": USER, "max_tokens": 1},
    RESPONSES: {"input": "Hello", "max_output_tokens": 1},
    "/tokenize": {"prompt": "Hello"},
    "/detokenize": {"tokens": [1]},
}
TEXT_FIELD = {
    "/generate": "prompt",
    "/v1/tapes": "prompt",
    COMPLETIONS: "prompt",
    RESPONSES: "input",
    "/tokenize": "prompt",
}


def pairs(limit: int, brief: bool = False) -> Iterator[Attempt]:
    """`brief` leaves out what is another of its kind."""
    yield from _echoes(limit)
    yield from _prompts(limit)
    yield from _logprobs()
    yield from _stops()
    yield from _schemas(limit, brief)
    yield from _conversations(limit)
    yield from islice(_heads(), 0, None, 13 if brief else 1)
    yield from islice(_sendings(limit), 0, None, 5 if brief else 1)
    yield from islice(_pages(), 0, None, 7 if brief else 1)


def _post(path: str, name: str, body: Any, headers: Headers = (), small: Any = None) -> Attempt:
    """`small` is a body that should cost as much and is plain; by default the smallest one."""

    def build() -> Request:
        made = body() if callable(body) else body
        data = made if isinstance(made, bytes) else json.dumps(made).encode()
        typed = any(name == "Content-Type" for name, _ in headers)
        return Request("POST", path, headers if typed else (JSON, *headers), data)

    def twin(size: int, tokens: int) -> Request:
        plain = dict(small or PLAIN[path])
        if tokens and not small and path in TEXT_FIELD:
            plain[TEXT_FIELD[path]] = WORD * tokens
        elif tokens and not small and path == CHAT:
            plain["messages"] = [{"role": "user", "content": WORD * tokens}]
        return Request("POST", path, (JSON,), padded(json.dumps(plain).encode(), size))

    return Attempt(f"POST {path}", "pair", name, 0, build, twin)


def _request(
    method: str,
    target: str,
    name: str,
    headers: Headers = (),
    body: bytes | None = None,
) -> Attempt:
    plain = target.partition("?")[0]
    return Attempt(
        f"{method} {plain:.40}",
        "pair",
        name,
        0,
        lambda: Request(method, target, headers, body),
        lambda size, tokens: Request(method, plain, (), b"{}" if method == "POST" else None),
    )


def _echoes(limit: int) -> Iterator[Attempt]:
    """A1."""
    ids = limit // 14
    for name, prompt, n in [
        ("echo of token ids", [1000] * min(100_000, ids), 128),
        ("echo of low token ids", [5] * min(190_000, limit // 4), 128),
        ("echo of many prompts", [[1000] * 1400] * 128, 1),
        ("echo of fitting token ids", [1000] * 8000, 128),
        ("echo of a text", "a" * (limit - 100), 128),
        ("echo of texts", ["a" * (limit // 130)] * 128, 1),
    ]:
        for stream in (False, True):
            body = {
                "prompt": prompt,
                "echo": True,
                "n": n,
                "max_tokens": 1,
                "stream": stream,
                **END,
            }
            small = {"prompt": "a", "n": n, "max_tokens": 1, **END}
            if name == "echo of fitting token ids":
                small["prompt"] = WORD * 8000
            if name == "echo of many prompts":
                small |= {"prompt": [WORD * 1400] * 128}
            yield _post(COMPLETIONS, f"{name}, streamed" * stream or name, body, small=small)


def _prompts(limit: int) -> Iterator[Attempt]:
    """Of each prompt the number of tokens is told: the twin's has as many, of words."""
    most = limit // 130
    one = {"max_tokens": 1, **END}
    for name, prompt, tokens, count, n in [
        ("long prompts", WORD * (most // 4), most // 4, 128, 1),
        ("prompts of marks", "\u0301" * (most // 7), 2 * (most // 7), 128, 1),
        ("prompts of token ids", [5] * (most // 4), most // 4, 128, 1),
        ("prompts of blanks", " " * most, most // 64, 128, 1),
        ("prompts of digits", "7" * (most // 4), most // 4, 128, 1),
        ("128 choices", "Hello", 1, 1, 128),
        ("128 choices of 8000 tokens", WORD * 8000, 8000, 1, 128),
        ("too many choices", "a", 1, 128, 128),
    ]:
        small = {"prompt": [WORD * tokens] * count, "n": min(n, 128 // count), **one}
        body = {"prompt": [prompt] * count, "n": n, **one}
        yield _post(COMPLETIONS, name, body, small=small)
    yield _post(
        CHAT,
        "128 choices",
        {"messages": USER, "n": 128, "max_tokens": 1, **END},
        small={"messages": USER, "n": 128, "max_tokens": 1, **END},
    )


def _logprobs() -> Iterator[Attempt]:
    long = {"prompt": "Hello", "logprobs": 20, "ignore_eos": True, "min_tokens": 200, **END}
    yield _post(
        "/generate",
        "logprobs",
        long | {"max_length": 8000},
        small={"prompt": "Hello", "max_length": 8000, "ignore_eos": True, **END},
    )
    yield _post(
        "/generate",
        "logprobs, streamed",
        long | {"max_length": 8000, "stream": True},
        small={"prompt": "Hello", "max_length": 8000, "ignore_eos": True, **END},
    )
    yield _post(
        COMPLETIONS,
        "logprobs of choices",
        long | {"max_tokens": 60, "n": 32, "min_tokens": 0},
        small={"prompt": "Hello", "max_tokens": 60, "n": 32, "ignore_eos": True, **END},
    )
    talk = {"messages": USER, "logprobs": True, "top_logprobs": 20, "ignore_eos": True, **END}
    yield _post(
        CHAT,
        "logprobs of choices",
        talk | {"max_tokens": 60, "n": 32},
        small={"messages": USER, "max_tokens": 60, "n": 32, "ignore_eos": True, **END},
    )


def _stops() -> Iterator[Attempt]:
    stops = ["a" * 255 + chr(97 + i) for i in range(16)]
    bias = {str(i): -100 + i % 200 for i in range(1024)}
    all_of_it = {
        "stop": stops,
        "logit_bias": bias,
        "stop_token_ids": list(range(64)),
        "repetition_penalty": 1.3,
        "presence_penalty": 1.0,
        "frequency_penalty": 1.0,
        "top_k": 1000,
        "top_p": 0.9,
        "min_p": 0.01,
        "seed": 1,
        "logprobs": 20,
        "min_tokens": 50,
        **END,
    }
    small = {"prompt": WORD * 4000, "max_length": 60, "ignore_eos": True, **END}
    yield _post(
        "/generate",
        "everything",
        {"prompt": WORD * 4000, "max_length": 60} | all_of_it,
        small=small,
    )
    yield _post(
        COMPLETIONS,
        "everything for 64",
        {"prompt": "Hello", "max_tokens": 20, "n": 64} | all_of_it | {"min_tokens": 10},
        small={"prompt": "Hello", "max_tokens": 20, "n": 64, "ignore_eos": True, **END},
    )
    yield _post(
        "/generate",
        "stop in every text",
        {
            "prompt": "a" * 3000,
            "max_length": 200,
            "ignore_eos": True,
            **END,
            "stop": ["\u0301" * 255 + str(i % 10) + chr(97 + i) for i in range(16)][:16],
        },
        small={"prompt": "a" * 3000, "max_length": 200, "ignore_eos": True, **END},
    )


def _schemas(limit: int, brief: bool) -> Iterator[Attempt]:
    """Every schema, on both routes, streamed and not, and in a tool; A2 is one of them."""
    most = min(limit, 1 << 18)
    for mark, name in enumerate(schemas.SCHEMAS):
        for stream in (False,) if brief else (False, True):
            end = {**END, "stream": stream}
            spelt = f"{name}, streamed" if stream else name

            def chat(name: str = name, mark: int = mark, end: Any = end) -> bytes:
                schema = schemas.written(name, most, mark * 10 + 1)
                body = {"messages": USER, "max_tokens": 8, **end}
                shape = b'{"type":"json_schema","json_schema":{"name":"n","schema":%b}}' % schema
                return json.dumps(body)[:-1].encode() + b',"response_format":' + shape + b"}"

            def response(name: str = name, mark: int = mark, end: Any = end) -> bytes:
                schema = schemas.written(name, most, mark * 10 + 2)
                body = {"input": "Hello", "max_output_tokens": 8, **end}
                shape = b'{"format":{"type":"json_schema","name":"n","schema":%b}}' % schema
                return json.dumps(body)[:-1].encode() + b',"text":' + shape + b"}"

            yield _post(CHAT, f"schema: {spelt}", chat, small={"messages": USER, "max_tokens": 8})
            if brief:
                continue
            yield _post(
                RESPONSES,
                f"schema: {spelt}",
                response,
                small={"input": "Hello", "max_output_tokens": 8},
            )

        def tool(name: str = name, mark: int = mark) -> bytes:
            schema = schemas.written(name, most, mark * 10 + 3)
            one = (
                b'{"type":"function","function":{"name":"f","parameters":%b,"strict":true}}'
                % schema
            )
            body = {"messages": USER, "max_tokens": 8, "tool_choice": "required", **END}
            return json.dumps(body)[:-1].encode() + b',"tools":[' + one + b"]}"

        if not brief:
            yield _post(CHAT, f"tool: {name}", tool, small={"messages": USER, "max_tokens": 8})

    def many_tools() -> bytes:
        ones = [
            b'{"type":"function","function":{"name":"f%d","parameters":%b}}'
            % (i, schemas.written("constrained", limit // 140, i))
            for i in range(128)
        ]
        body = {"messages": USER, "max_tokens": 8, "tool_choice": "required", **END}
        return json.dumps(body)[:-1].encode() + b',"tools":[' + b",".join(ones) + b"]}"

    yield _post(CHAT, "128 tools with a schema", many_tools)


def _conversations(limit: int) -> Iterator[Attempt]:
    """A3 and A4 are among them."""
    turns = min(2048, limit // 60)

    def call(arguments: str) -> dict[str, Any]:
        return {"id": "1", "type": "function", "function": {"name": "f", "arguments": arguments}}

    def talk(arguments: str, number: int = 1) -> dict[str, Any]:
        said = {"role": "assistant", "tool_calls": [call(arguments)] * number}
        return {"messages": [*USER, said], "max_tokens": 1, **END}

    half = (limit - 1000) // 3
    for name, arguments in [
        ("arguments of lists", "[" + "[]," * half + "[]]"),
        ("arguments of objects", "[" + "{}," * half + "{}]"),
        ("arguments of keys", "{" + ",".join(f'"k{i}":1' for i in range(half // 6)) + "}"),
        ("deep arguments", "[" * half + "]" * half),
        ("arguments in arguments", json.dumps(json.dumps("[" + "[]," * (half // 2) + "[]]"))),
        ("arguments of texts", "[" + '"",' * (half // 3) + '""]'),
        ("arguments of one number", "9" * (3 * half)),
        ("arguments of numbers", "[" + "1e5," * (half // 2) + "1]"),
    ]:
        yield _post(CHAT, name, talk(arguments))
        body = {"messages": talk(arguments)["messages"]}
        yield _post("/tokenize", name, body)
    yield _post(CHAT, "many calls with arguments", talk("[" + "[]," * 90 + "[]]", limit // 500))
    yield _post(CHAT, "many turns", {"messages": USER * turns, "max_tokens": 1, **END})
    yield _post(
        CHAT,
        "turns of parts",
        {
            "messages": [
                {
                    "role": "user",
                    "content": [{"type": "text", "text": "a"}] * min(12_000, limit // 40),
                }
            ],
            "max_tokens": 1,
            **END,
        },
    )
    yield _post(
        CHAT,
        "content of numbers",
        {"messages": [{"role": "user", "content": [1] * min(190_000, limit // 4)}]},
    )
    yield _post(
        "/tokenize",
        "content of numbers",
        {"messages": [{"role": "user", "content": [1] * min(190_000, limit // 4)}]},
    )
    yield _post(
        RESPONSES,
        "metadata of wrong values",
        {
            "input": "Hello",
            "metadata": {f"k{i}": i for i in range(min(38_000, limit // 16))},
        },
    )
    yield _post(
        RESPONSES,
        "large metadata",
        {
            "input": "Hello",
            "max_output_tokens": 1,
            "metadata": {"k": "v" * (limit - 1000)},
            **END,
        },
    )
    for path, plain in PLAIN.items():
        yield _post(
            path,
            "unknown fields",
            plain | {f"x{i}": 1 for i in range(min(38_000, limit // 12))},
        )
        yield _post(path, "a large user", plain | {"user": "u" * (limit - 1000)})


def _heads() -> Iterator[Attempt]:
    long = {
        "letters": "a" * 60_000,
        "commas": "," * 60_000,
        "semicolons": "a;" * 30_000,
        "qualities": "a/b;q=0.1," * 6000,
        "blanks": "a" + " " * 60_000 + "b",
        "quotes": '"' * 60_000,
        "digits": "9" * 60_000,
        "high bytes": "\xff" * 60_000,
        "tape ids": "A" * 22 + ":" + "9" * 60_000,
        "brackets": "[" * 60_000,
        "percents": "%41" * 20_000,
        "equals": "a=" * 30_000,
    }
    for name in [
        "Accept",
        "Accept-Encoding",
        "Accept-Language",
        "Authorization",
        "Content-Type",
        "Cookie",
        "Forwarded",
        "Host",
        "Idempotency-Key",
        "If-None-Match",
        "Last-Event-ID",
        "Origin",
        "Range",
        "Sec-Fetch-Site",
        "Traceparent",
        "Tracestate",
        "Baggage",
        "User-Agent",
        "X-Forwarded-For",
        "X-Api-Key",
        "X-Request-ID",
        "Content-Encoding",
        "Upgrade",
        "Te",
        "Expect",
        "Access-Control-Request-Headers",
    ]:
        for kind, value in long.items():
            yield _request("GET", "/health", f"{name} of {kind}", ((name, value),))
            yield _post("/generate", f"{name} of {kind}", PLAIN["/generate"], ((name, value),))
    for method in ("GET", "OPTIONS", "POST"):
        yield _request(
            method, "/generate", "many headers", tuple((f"x-{i}", "") for i in range(7000))
        )
        yield _request(method, "/generate", "one header many times", (("Accept", "a/b"),) * 6000)
        yield _request(
            method,
            "/generate",
            "many event ids",
            (("Last-Event-ID", "A" * 22 + ":0"),) * 1000,
        )


def _sendings(limit: int) -> Iterator[Attempt]:
    for path, plain in PLAIN.items():
        body = json.dumps(plain | {"user": "u" * 300_000}).encode()
        chunks = b"".join(b"1\r\n%c\r\n" % byte for byte in body) + b"0\r\n\r\n"
        extended = (
            b"".join(b"1;%b\r\n%c\r\n" % (b"x" * 60, byte) for byte in body[:30_000]) + b"0\r\n\r\n"
        )
        sent: Headers = (("Transfer-Encoding", "chunked"),)
        yield _post(path, "in chunks of a byte", chunks, sent)
        yield _post(path, "in chunks with extensions", extended, sent)
        packed = gzip.compress(b" " * 10 * limit + json.dumps(plain).encode())
        yield _post(path, "packed", packed, (("Content-Encoding", "gzip"),))
        yield _post(path, "too large", padded(json.dumps(plain).encode(), limit + 1000))
        yield _post(path, "blanks before", b" " * (limit - 1000) + json.dumps(plain).encode())
        yield _post(path, "blanks within", padded(json.dumps(plain).encode(), limit - 1000))
        yield _post(
            path,
            "another type",
            KINDS["lists"](limit),
            (("Content-Type", "text/plain"),),
        )


def _pages() -> Iterator[Attempt]:
    long = "a" * 15_000
    for path in [
        "/",
        "/docs",
        "/openapi.json",
        "/metrics",
        "/v1/models",
        "/redoc",
        "/dash",
        "/static/" + "../" * 4000,
        "/" + "a/" * 7000,
        "/" + "%2e%2e/" * 2000,
        "//" + long,
        "/v1/tapes/" + long,
        "/v1/models/" + long,
        "/v1/responses/" + long,
        "/static/" + long,
        "/health?" + "a=b&" * 3500,
        "/generate?" + "stop=a&" * 2100,
        "/generate?prompt=" + "%20" * 5000,
        f"/v1/tapes/{TAPE}?after=" + "9" * 15_000,
        "/generate?prompt=a&logit_bias=" + "%5b" * 4900,
        "/generate?prompt=a&stop_token_ids=1" + "&stop_token_ids=1" * 700,
        f"/v1/responses/{RESPONSE}?starting_after=" + "9" * 15_000,
    ]:
        for method in ("GET", "HEAD", "OPTIONS", "DELETE", "PUT"):
            yield _request(method, path, f"{path:.40} ({len(path)})")
