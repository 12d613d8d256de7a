"""Log lines: one for each request, of one form, whatever a client sends, and nothing it asks."""

import hashlib
import io
import json
import logging
import re
import sys
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.guard.api_keys import ApiKeys
from app.main import create_app
from app.observability import logs
from app.observability.access_log import request_id_of
from app.settings import Settings
from tests.answers import typing
from tests.app.guard.test_api_keys import bearer
from tests.app.plain_http import exchange
from tests.server import RunningServer, line_with, running
from tests.speed import patience

KEY = "a key that nobody shall read"
BODY: dict[str, Any] = {"prompt": "my secret", "max_length": 6, "ignore_eos": True}
MADE = re.compile("[0-9a-f]{32}")
ANYTHING = st.text(st.characters() | st.sampled_from("\n\r\x1b\x7f\x85\u2028\u2029\x9b\ud800\x00"))


@pytest.fixture(scope="module")
def logging_server(
    tiny_model: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[RunningServer]:
    keys = tmp_path_factory.mktemp("logs") / "keys"
    keys.write_text(KEY)
    flags = ("--model", str(tiny_model), "--api-key-file", str(keys))
    with running(keys.with_name("log"), *flags) as server:
        yield server
        assert server.stop() == 0, server.log.read_text()
        for line in server.log.read_text().splitlines():
            assert {"timestamp", "level", "event"} <= json.loads(line).keys()
            assert "secret" not in line
            assert KEY not in line


@pytest.fixture
async def http(logging_server: RunningServer) -> AsyncIterator[httpx.AsyncClient]:
    url, headers = logging_server.url, bearer(KEY)
    async with httpx.AsyncClient(base_url=url, headers=headers, timeout=patience(60)) as client:
        yield client


async def line_of(server: RunningServer, answer: httpx.Response) -> dict[str, Any]:
    return await line_with(server, request_id=answer.headers["X-Request-Id"])


# ---- what a line says


@pytest.mark.parametrize("stream", [False, True])
async def test_a_request_has_one_line_when_it_ends(
    logging_server: RunningServer, http: httpx.AsyncClient, stream: bool
) -> None:
    answer = await http.post("/generate?colour=secret", json=BODY)
    if stream:
        answer = await http.post("/generate", json=BODY | {"stream": True})
    line = await line_of(logging_server, answer)
    assert (line["event"], line["level"], line["logger"]) == (
        "request",
        "info",
        "tickertape.requests",
    )
    assert (line["method"], line["route"], line["status"]) == ("POST", "/generate", 200)
    assert line["tape"] == answer.headers["X-Tape"]
    assert line["key"] == hashlib.sha256(KEY.encode()).hexdigest()[:16]
    assert (line["prompt_tokens"], line["completion_tokens"]) == (9, 6)
    assert (line["finish_reason"], line["resumes"]) == ("length", 0)
    assert 0 < line["ttft_ms"] < line["duration_ms"]
    assert 0 < line["itl_p99_ms"] < line["duration_ms"]
    assert re.fullmatch(r"127\.0\.0\.1:\d+", line["client"])


async def test_resumes_are_counted_and_refusals_told(
    logging_server: RunningServer, http: httpx.AsyncClient
) -> None:
    tape = (await http.post("/generate", json=BODY)).json()["tape"]
    path = f"/v1/tapes/{tape}"
    for number in (1, 2):
        again = await http.get(path, headers={"Last-Event-ID": f"{tape}:{number}"})
        line = await line_of(logging_server, again)
        assert (line["route"], line["tape"]) == ("/v1/tapes/{tape_id}", tape)
        assert (line["resumes"], line["finish_reason"]) == (number, "length")
    for answer, route, status in [
        (await http.get("/v1/tapes/secret"), "/v1/tapes/{tape_id}", 404),
        (await http.get("/nothing"), "other", 404),
        (await http.put("/generate"), "/generate", 405),
        (await http.post("/generate", json={}), "/generate", 422),
        (await http.get("/version", headers={"Host": "evil.example"}), "other", 421),
        (await http.get("/v1/models", headers={"Authorization": "Bearer secret"}), None, 401),
    ]:
        line = await line_of(logging_server, answer)
        assert line["status"] == status
        assert line["route"] == route or route is None
        assert "tape" not in line


async def test_a_tape_that_ends_when_nobody_reads_it_has_a_line_too(
    logging_server: RunningServer, http: httpx.AsyncClient
) -> None:
    left = BODY | {"max_length": 400, "on_disconnect": "pause", "grace": 0}
    async with typing(http, left) as (reading, _):
        pass
    request = await line_with(logging_server, event="request", tape=reading.tape)
    assert request["finish_reason"] is None
    end = await line_with(logging_server, event="generation", tape=reading.tape)
    assert end["finish_reason"] == "cancelled"
    assert end["key"] == request["key"]
    begun = await http.post("/v1/tapes", json=BODY)
    end = await line_with(logging_server, event="generation", tape=begun.json()["tape"])
    assert (end["finish_reason"], end["completion_tokens"]) == ("length", 6)


async def test_what_probes_ask_is_not_logged(
    logging_server: RunningServer, http: httpx.AsyncClient
) -> None:
    for path in ("/health", "/ready", "/metrics"):
        assert (await http.get(path)).headers["X-Request-Id"]
    await line_of(logging_server, await http.get("/version"))
    lines = map(json.loads, logging_server.log.read_text().splitlines())
    assert not {line.get("route") for line in lines} & {"/health", "/ready", "/metrics"}


# ---- the id of a request


@pytest.mark.parametrize("given_id", ["a", "x" * 128, "Az09._:/+=@~-", "5c1e-77/b=="])
async def test_a_harmless_id_is_kept(
    logging_server: RunningServer, http: httpx.AsyncClient, given_id: str
) -> None:
    for method, path, json_body in [
        ("POST", "/generate", BODY | {"stream": True}),
        ("GET", "/nothing", None),
        ("GET", "/static/app.js", None),
        ("GET", "/health", None),
        ("POST", "/v1/completions", {"prompt": 5}),
    ]:
        headers = {"X-Request-Id": given_id}
        answer = await http.request(method, path, json=json_body, headers=headers)
        assert answer.headers.get_list("X-Request-Id") == [given_id]


@given(st.lists(st.binary(max_size=140), min_size=1, max_size=2))
def test_no_other_id_is(values: list[bytes]) -> None:
    request_id = request_id_of([(b"x-request-id", value) for value in values])
    assert MADE.fullmatch(request_id) or [request_id.encode()] == values
    assert re.fullmatch("[!-~]{1,128}", request_id)
    assert not set(request_id) & set("\"'\\<>{}%&$`|;")


async def test_what_never_becomes_a_request_has_an_id_and_a_line(
    logging_server: RunningServer,
) -> None:
    raw = await exchange(logging_server.port, b"GARBAGE\x1b[31m\r\n\r\n")
    (request_id,) = re.findall(rb"(?i)x-request-id: (\w+)\r\n", raw)
    line = await line_with(logging_server, request_id=request_id.decode())
    assert (line["event"], line["status"], line["code"]) == ("refused", 400, "malformed_request")


async def test_an_error_of_ours_names_the_request(
    tiny_model: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """No route may fail so; one that does answers from outside of all middleware."""
    app = create_app(Settings(model=str(tiny_model), allowed_hosts="*"))
    app.state.services = SimpleNamespace(api_keys=ApiKeys())  # no more of them is needed

    @app.get("/fails")
    async def fails() -> None:
        raise RuntimeError("a fault")

    transport = httpx.ASGITransport(app, raise_app_exceptions=False)
    with caplog.at_level("INFO", "tickertape.requests"):
        async with httpx.AsyncClient(transport=transport, base_url="http://x") as client:
            answer = await client.get("/fails", headers={"X-Request-Id": "mine"})
    assert answer.status_code == 500
    assert answer.headers.get_list("X-Request-Id") == ["mine"]
    (record,) = (record for record in caplog.records if record.name == "tickertape.requests")
    assert (record.__dict__["status"], record.__dict__["route"]) == (500, "/fails")


# ---- nothing breaks it


async def test_nothing_that_is_sent_breaks_a_line(
    logging_server: RunningServer, http: httpx.AsyncClient
) -> None:
    evil = b'\r\n{"event": "fake"}\x1b[31m\x00\x7f\x85\xe2\x80\xa8\x9b1m\xed\xa0\x80'
    quoted = b"".join(b"%%%02x" % byte for byte in evil)
    high = bytes(byte for byte in evil if byte >= 0x80)
    requests = [
        b"GET /" + quoted + b" HTTP/1.1\r\nHost: localhost\r\n",
        b"DELETE /v1/tapes/" + quoted + b"?" + quoted + b" HTTP/1.1\r\nHost: localhost\r\n",
        b"GET /v1/models/" + quoted + b" HTTP/1.1\r\nHost: localhost\r\n",
    ]
    requests += [
        b"GET /version HTTP/1.1\r\nHost: localhost\r\n" + name + b": " + value + b"\r\n"
        for name in (b"X-Forwarded-For", b"Authorization", b"X-Request-Id", b"Host", b"X")
        for value in (high, b"\x1b[31m", b"Bearer " + high)
    ]
    requests += [b"GET /" + evil + b" HTTP/1.1\r\n", evil + b" / HTTP/1.1\r\n"]
    begin = len(logging_server.log.read_bytes())
    for request in requests:
        await exchange(logging_server.port, request + b"Connection: close\r\n\r\n")
    await line_of(logging_server, await http.get("/version"))  # then those before are there, too
    lines = logging_server.log.read_bytes()[begin:].split(b"\n")[:-1]
    assert len(lines) == len(requests) + 1
    for line in lines:
        assert re.fullmatch(rb"[ -~]+", line)
        assert json.loads(line)["event"] in ("request", "refused")


def written(form: logging.Formatter, *message: Any, **extra: Any) -> str:
    """What a line logged so is. An exception that is handled goes with it."""
    stream = io.StringIO()
    handler = logging.StreamHandler(stream)
    handler.setFormatter(form)
    logger = logging.Logger("tickertape.test")
    logger.addHandler(handler)
    logger.error(*message, extra=extra, exc_info=sys.exc_info()[0] is not None)
    return stream.getvalue()


@given(ANYTHING, ANYTHING)
def test_json_gives_back_whatever_it_is_told(text: str, argument: str) -> None:
    form = logs.formatter(as_text=False)
    try:
        raise ValueError(text)
    except ValueError:
        line = written(form, "%s", argument, path=text, nested={"of": [text]})
    assert re.fullmatch(r"[ -~]+\n", line)
    told = json.loads(line)
    assert (told["event"], told["path"], told["nested"]) == (argument, text, {"of": [text]})
    assert "Traceback" in told["exception"]


@given(ANYTHING, ANYTHING)
def test_text_is_one_line_that_can_be_printed(text: str, argument: str) -> None:
    form = logs.formatter(as_text=True)
    line = written(form, "%s", argument, path=text, nested={"of": [text]})
    assert line.endswith("\n")
    assert line[:-1].isprintable()
    assert "[error    ]" in line


@given(ANYTHING)
def test_a_traceback_in_text_has_lines_of_its_own_only(text: str) -> None:
    try:
        raise ValueError(text)
    except ValueError:
        lines = written(logs.formatter(as_text=True), "failed").split("\n")
    assert all(map(str.isprintable, lines))
    told = len(text.split("\n"))
    assert len(lines) <= 6 + told
    assert "Traceback (most recent call last):" in lines[1]


@pytest.mark.parametrize(
    ("form", "on_terminal", "is_json"),
    [
        ("auto", False, True),
        ("auto", True, False),
        ("json", True, True),
        ("text", False, False),
    ],
)
def test_json_for_machines_and_text_for_people(
    monkeypatch: pytest.MonkeyPatch, form: logs.Form, on_terminal: bool, is_json: bool
) -> None:
    stream = io.StringIO()
    monkeypatch.setattr(stream, "isatty", lambda: on_terminal, raising=False)
    monkeypatch.setattr(sys, "stderr", stream)
    names = ("", "tickertape", "uvicorn")
    before = [(logging.getLogger(n).handlers, logging.getLogger(n).level) for n in names]
    try:
        logs.configure("info", form)
        logging.getLogger("uvicorn.error").info("started", extra={"color_message": "no"})
        logging.getLogger("tickertape.tapes").debug("not told")
        logging.getLogger("some.library").warning("beware")
        logging.getLogger("some.library").info("not told")
    finally:
        for name, (handlers, level) in zip(names, before, strict=True):
            logging.getLogger(name).handlers = handlers
            logging.getLogger(name).setLevel(level)
    lines = stream.getvalue().splitlines()
    assert len(lines) == 2
    assert "no" not in lines[0].split()
    assert lines[0].startswith("{") is is_json
    assert ("\x1b[" in lines[0]) is (form == "auto" and on_terminal)
    if is_json:
        assert [json.loads(line)["event"] for line in lines] == ["started", "beware"]


def test_the_line_for_people_names_what_counts() -> None:
    line = written(logs.formatter(as_text=True), "request", route="/generate", status=200)
    assert re.search(r"request +\[?.*route=/generate.* status=200", line)
