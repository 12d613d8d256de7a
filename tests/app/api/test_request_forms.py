"""Spellings of requests that users' tools send: HEAD, slashes, labels and encodings of bodies."""

import gzip
import json
from collections.abc import AsyncIterator

import httpx
import pytest

from tests.app.guard.test_access import error_of
from tests.server import RunningServer, line_with
from tests.speed import patience

GETS = [
    "/",
    "/dash",
    "/docs",
    "/openapi.json",
    "/health",
    "/ready",
    "/version",
    "/metrics",
    "/v1/models",
    "/static/app.js",
]
BODY = {"prompt": "x", "max_length": 2}
JSON = {"Content-Type": "application/json"}


@pytest.fixture
async def http(tiny_server: RunningServer) -> AsyncIterator[httpx.AsyncClient]:
    async with httpx.AsyncClient(base_url=tiny_server.url, timeout=patience(60)) as client:
        yield client


# ---- HEAD


@pytest.mark.parametrize("path", [*GETS, "/none"])
async def test_head_is_get_without_its_body(http: httpx.AsyncClient, path: str) -> None:
    got, head = await http.get(path), await http.head(path)
    assert head.status_code == got.status_code
    assert head.content == b""
    assert head.headers["Content-Type"] == got.headers["Content-Type"]
    if path not in ("/health", "/metrics"):  # these change
        assert head.headers["Content-Length"] == got.headers["Content-Length"]
    assert (await http.get("/health")).status_code == 200, "on the same connection"


async def test_head_starts_no_generation_and_reads_no_tape(http: httpx.AsyncClient) -> None:
    before = (await http.get("/health")).json()["tapes"]
    for path in ("/generate?prompt=x", "/v1/dash"):
        head = await http.head(path)
        assert head.status_code == 200
        assert head.headers["Content-Type"].startswith("text/event-stream")
    assert (await http.get("/health")).json()["tapes"] == before
    assert (await http.head("/generate")).status_code == 422
    assert (await http.head("/v1/tapes/unknown")).status_code == 404

    long = {"prompt": "x", "max_length": 100, "ignore_eos": True, "on_disconnect": "abort"}
    tape = (await http.post("/v1/tapes", json=long)).json()["tape"]
    for _ in range(3):
        head = await http.head(f"/v1/tapes/{tape}")
        assert (head.status_code, head.headers["X-Tape"]) == (200, tape)
    async with http.stream("GET", f"/v1/tapes/{tape}") as stream:
        assert '"finish_reason": "length"' in (await stream.aread()).decode().replace('":"', '": "')


async def test_head_where_only_others_are_taken(http: httpx.AsyncClient) -> None:
    head = await http.head("/v1/chat/completions")
    assert (head.status_code, head.headers["Allow"]) == (405, "POST")
    options = await http.options("/v1/models")
    assert (options.status_code, options.headers["Allow"]) == (405, "GET, HEAD")
    assert (await http.options("/generate")).headers["Allow"] == "GET, HEAD, POST"


@pytest.mark.parametrize("path", ["/openapi.json", "/static/app.js", "/"])
@pytest.mark.parametrize("method", ["PUT", "DELETE", "OPTIONS", "PATCH"])
async def test_what_no_route_serves_is_only_read(
    http: httpx.AsyncClient, path: str, method: str
) -> None:
    refused = await http.request(method, path)
    assert (refused.status_code, refused.headers["Allow"]) == (405, "GET, HEAD")


async def test_the_log_tells_head_and_its_route(
    tiny_server: RunningServer, http: httpx.AsyncClient
) -> None:
    sent = {"X-Request-Id": "head-of-models"}
    await http.head("/v1//models/", headers=sent)
    line = await line_with(tiny_server, request_id="head-of-models")
    assert (line["method"], line["route"]) == ("HEAD", "/v1/models")


# ---- paths


def at(http: httpx.AsyncClient, path: str) -> str:
    """httpx takes what is behind two slashes for a host."""
    return f"{http.base_url}".rstrip("/") + path


@pytest.mark.parametrize(
    "path", ["/v1/models/", "//v1/models", "/v1//models//", "/%76%31/models", "/v1%2Fmodels/"]
)
async def test_slashes_of_a_get(http: httpx.AsyncClient, path: str) -> None:
    answer = await http.get(at(http, path))
    assert answer.json() == (await http.get("/v1/models")).json()


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/generate/", BODY),
        ("//v1//completions/", {"prompt": "x", "max_tokens": 2}),
        ("/v1/tapes/", BODY),
        ("/tokenize/", {"prompt": "x"}),
    ],
)
async def test_slashes_of_a_post(http: httpx.AsyncClient, path: str, body: object) -> None:
    assert (await http.post(at(http, path), json=body)).is_success


@pytest.mark.parametrize("path", ["/static", "/static/", "/static/none/", "/none/", "//", "/v1/"])
async def test_no_slash_leads_elsewhere(http: httpx.AsyncClient, path: str) -> None:
    answer = await http.get(at(http, path))
    assert answer.status_code == (200 if path == "//" else 404)


# ---- bodies


@pytest.mark.parametrize(
    "label",
    [
        "application/json; charset=utf-8",
        "application/JSON",
        "application/json;charset=UTF-8",
        "application/problem+json",
    ],
)
async def test_labels_of_json(http: httpx.AsyncClient, label: str) -> None:
    content = json.dumps(BODY).encode()
    answer = await http.post("/generate", content=content, headers={"Content-Type": label})
    assert answer.status_code == 200


async def test_a_byte_order_mark_is_no_part_of_the_body(http: httpx.AsyncClient) -> None:
    content = json.dumps(BODY).encode("utf-8-sig")
    assert (await http.post("/generate", content=content, headers=JSON)).status_code == 200


@pytest.mark.parametrize(
    ("encoding", "named"),
    [
        ("utf-16", "UTF-16"),
        ("utf-16-le", "UTF-16-LE"),
        ("utf-16-be", "UTF-16-BE"),
        ("utf-32", "UTF-32"),
        ("utf-32-be", "UTF-32-BE"),
        ("latin-1", "not UTF-8 from byte 12 on"),
    ],
)
async def test_another_encoding_is_named(
    http: httpx.AsyncClient, encoding: str, named: str
) -> None:
    content = json.dumps({"prompt": "é"}, ensure_ascii=False).encode(encoding)
    answer = await http.post("/generate", content=content, headers=JSON)
    assert (answer.status_code, error_of(answer)["code"]) == (400, "malformed_json")
    assert named in error_of(answer)["message"]
    assert "send JSON as UTF-8" in error_of(answer)["message"]


@pytest.mark.parametrize("coding", ["gzip", "deflate", "br", "zstd", "gzip, identity", "GZIP"])
async def test_a_compressed_body_is_refused_by_name(http: httpx.AsyncClient, coding: str) -> None:
    content = gzip.compress(json.dumps(BODY).encode())
    for path in ("/generate", "/v1/chat/completions"):
        answer = await http.post(path, content=content, headers=JSON | {"Content-Encoding": coding})
        assert answer.status_code == 415
        assert answer.headers["Accept-Encoding"] == "identity"
        message = error_of(answer)["message"]
        assert coding.lower() in message
        assert "send the body uncompressed" in message


async def test_identity_is_no_compression(http: httpx.AsyncClient) -> None:
    headers = {"Content-Encoding": "identity"}
    assert (await http.post("/generate", json=BODY, headers=headers)).status_code == 200
