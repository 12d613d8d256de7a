"""What others were struck by, tried here: input and access. Each test names its fault.

More of them: guard/test_access.py (names, keys, logs), sockets/test_http_protocol.py (heads),
guard/test_strict_json.py (bodies), api/test_bad_input.py (fields).
"""

import ast
import asyncio
import contextlib
import json
import os
import random
import resource
import socket
import time
from collections.abc import AsyncIterator, Iterator
from functools import partial
from importlib.metadata import requires
from pathlib import Path
from typing import Any, get_args

import httpx
import pytest
from tokenizers.pre_tokenizers import ByteLevel

from app.api.native.generate import GenerateBody
from tests.answers import read_all
from tests.app.api.test_bad_input import JSON, error_of, refused_as_fast_as_torn
from tests.app.sockets.test_http_protocol import GET, connection
from tests.server import RunningServer, running
from tests.speed import in_turn, patience

ROOT = Path(__file__).parents[2]


@pytest.fixture
async def http(tiny_server: RunningServer) -> AsyncIterator[httpx.AsyncClient]:
    async with httpx.AsyncClient(base_url=tiny_server.url, timeout=patience(60)) as client:
        yield client


@pytest.fixture(autouse=True)
async def _unharmed(tiny_server: RunningServer) -> AsyncIterator[None]:
    """Whatever a test sends, the server and its engine live on, and nothing is left over."""
    pid = tiny_server.health()["engine_pid"]
    yield
    await tiny_server.health_becomes(5, engine="ready", engine_pid=pid, running=0, waiting=0)


# ---- section 2: what has a CVE or an advisory


@pytest.mark.parametrize(
    "ranges",
    [
        ",".join(f"{start}-" for start in range(10_000)),
        ",".join("0-0" for _ in range(10_000)),
        ",".join(f"-{length}" for length in range(1, 10_000)),
        "0-" * 30_000,
        "9" * 60_000 + "-",
    ],
    ids=lambda ranges: ranges[:8],
)
async def test_cve_2025_62727_ten_thousand_ranges(http: httpx.AsyncClient, ranges: str) -> None:
    headers = {"Range": f"bytes={ranges[:60_000]}"}
    for path in ("/static/app.js", "/"):

        async def in_ranges(path: str = path) -> None:
            answer = await http.get(path, headers=headers)
            assert answer.status_code in (200, 206, 400, 416)
            assert len(answer.content) < 1 << 20

        ranged, whole = await in_turn(5, in_ranges, partial(http.get, path))
        assert min(ranged) < 5 * max(whole), (ranged, whole)


@pytest.mark.parametrize(
    "path",
    [
        "../pyproject.toml",
        "..%2fpyproject.toml",
        "%2e%2e/pyproject.toml",
        "%2e%2e%2fpyproject.toml",
        "..%5cpyproject.toml",
        "....//pyproject.toml",
        "vendor/../../pyproject.toml",
        "vendor/%2e%2e/%2e%2e/pyproject.toml",
        "/etc/passwd",
        "%2fetc%2fpasswd",
        "%00/etc/passwd",
        "app.js%00.css",
        "x" * 5000,
    ],
)
async def test_ghsa_v5gw_mw7f_84px_no_way_out_of_static(
    tiny_server: RunningServer, path: str
) -> None:
    """As raw bytes: a client would tidy the path."""
    async with connection(tiny_server.port) as (reader, writer):
        head = f"GET /static/{path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"
        writer.write(head.encode())
        raw = await reader.read()
    assert int(raw[9:12]) in (400, 404), raw[:200]
    assert b'{"error":' in raw


@pytest.mark.parametrize("path", ["/generate", "/v1/tapes"])
@pytest.mark.parametrize(
    "kind",
    ["text/plain", "application/x-www-form-urlencoded", "multipart/form-data; boundary=x", ""],
)
async def test_cve_2021_32677_a_form_cannot_send_json(
    http: httpx.AsyncClient, path: str, kind: str
) -> None:
    answer = await http.post(path, content=b'{"prompt": "x"}', headers={"Content-Type": kind})
    assert (answer.status_code, error_of(answer)["code"]) == (415, "unsupported_media_type")


def test_cve_2024_24762_nothing_parses_multipart() -> None:
    wanted = " ".join(requires("tickertape") or ())
    assert "multipart" not in wanted
    used = {name for path in sources() for name in imported(path)}
    assert not {name for name in used if "multipart" in name}


@pytest.mark.parametrize("banned", ["pickle", "cPickle", "dill", "shelve", "marshal", "joblib"])
def test_cve_2026_3059_shadowmq_nothing_is_unpickled(banned: str) -> None:
    for path in sources():
        assert not {name for name in imported(path) if name.partition(".")[0] == banned}, path


def test_cve_2025_32434_torch_loads_no_file() -> None:
    for path in sources():
        assert not set(attributes(ast.parse(path.read_text()))) & DANGEROUS, path


def test_what_is_banned_would_be_found() -> None:
    """The negative control."""
    code = "import torch as t, numpy\nt.load(x)\nnumpy.load(f, allow_pickle=True)\nq.recv_pyobj()"
    assert set(attributes(ast.parse(code))) & DANGEROUS == {
        "torch.load",
        "numpy.load",
        "recv_pyobj",
    }


DANGEROUS = {
    "torch.load",
    "numpy.load",
    "torch.hub",
    "torch.package",
    "recv_pyobj",
    "send_pyobj",
    "allow_pickle",
}


def sources() -> list[Path]:
    return [path for top in ("app", "model", "bench") for path in (ROOT / top).rglob("*.py")]


def imported(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module


def attributes(tree: ast.AST) -> Iterator[str]:
    """module.name of every attribute of an imported module; of others the name alone."""
    modules = {
        alias.asname or alias.name: alias.name
        for node in ast.walk(tree)
        if isinstance(node, ast.Import)
        for alias in node.names
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute):
            yield node.attr
            if isinstance(node.value, ast.Name) and node.value.id in modules:
                yield f"{modules[node.value.id]}.{node.attr}"


def integer_fields() -> list[str]:
    """Those of a request that hold an integer, however deep in an Optional or a list."""

    def holds(kind: Any) -> bool:
        return kind is int or any(holds(inner) for inner in get_args(kind))

    return [name for name, field in GenerateBody.model_fields.items() if holds(field.annotation)]


@pytest.mark.parametrize("name", integer_fields())
async def test_cve_2026_21869_no_integer_goes_through_unchecked(
    http: httpx.AsyncClient, name: str
) -> None:
    """Every one that is not in range is named; every one that is in range is served."""
    low = {"seed": -(2**63), "priority": -1000}
    wrong = [-(2**63), -(2**31), -(2**31) - 1, -1001, -1, 2**63, 2**64 - 1]
    for value in wrong:
        if value >= low.get(name, 0) and value < 0:
            continue
        shaped: Any = value
        if name == "stop_token_ids":
            shaped = [value]
        elif name == "logit_bias":
            shaped = {str(value): 1}
        answer = await http.post("/generate", json={"prompt": "x", "max_length": 1, name: shaped})
        assert answer.status_code == 422, (name, value, answer.text)
        assert (error_of(answer)["param"] or "").startswith(name)


def test_integer_fields_are_all_found() -> None:
    assert {"max_length", "top_k", "seed", "logit_bias", "stop_token_ids"} <= set(integer_fields())


@pytest.mark.parametrize(
    "stop", ["x" * 1_000_000, ["x"] * 10_000, ["x" * 256] * 17, ["x" * 257], [["x"]], [None]]
)
async def test_a_million_characters_of_stop_strings(http: httpx.AsyncClient, stop: Any) -> None:
    body = {"prompt": "x", "stop": stop}
    answer = await http.post("/generate", json=body)
    assert answer.status_code == 422
    assert (error_of(answer)["param"] or "").startswith("stop")
    assert len(answer.content) < 2000
    await refused_as_fast_as_torn(http, body)


async def test_as_many_stop_strings_as_may_be_take_no_time(http: httpx.AsyncClient) -> None:
    """The matcher is linear: strings that almost match, again and again."""
    stop = ["a" * 200 + chr(ord("b") + number) for number in range(16)]
    body = {"prompt": "a" * 100, "max_length": 200, "ignore_eos": True, "stop": stop}

    async def generate(stop: list[str]) -> None:
        assert (await http.post("/generate", json=body | {"stop": stop})).status_code == 200

    stopped, plain = await in_turn(3, partial(generate, stop), partial(generate, []))
    assert min(stopped) < 2 * max(plain), (stopped, plain)


def tokens_of(text: str) -> list[int]:
    """Those of the tiny model, one for each byte; a byte is a letter in its vocabulary."""
    alphabet = sorted(ByteLevel.alphabet())
    letters = ByteLevel(add_prefix_space=False, use_regex=False).pre_tokenize_str(text)[0][0]
    return [alphabet.index(letter) for letter in letters]


@pytest.mark.parametrize(
    ("alphabet", "wanted"),
    [
        ("\r\n\x00\x0b\x0c\x1c :", {"\r", "\n", "\x00", "\r\n", "\n\n"}),
        ("\u2028", {"\u2028"}),
    ],
    ids=["line ends", "U+2028"],
)
async def test_cve_2026_44214_no_text_makes_a_frame(
    http: httpx.AsyncClient, alphabet: str, wanted: set[str]
) -> None:
    """Line ends of every kind go through a stream byte for byte, and end no line of it."""
    bias = {str(token): 100 for token in tokens_of(alphabet)}
    seen = ""
    for seed in range(5):
        body = {"prompt": "\r\n\u2028\x00", "max_length": 60, "seed": seed, "temperature": 2.0}
        body |= {"ignore_eos": True, "logit_bias": bias}
        reading, whole = await asyncio.gather(
            read_all(http, body), http.post("/generate", json=body)
        )
        assert reading.text == whole.json()["generated_text"]
        assert len(reading.token_ids) == 60
        seen += reading.text
    assert {text for text in wanted if text in seen} == wanted


@pytest.mark.parametrize(
    ("event_id", "status"),
    [
        (b"garbage", 400),
        (b"A" * 22, 400),
        (b"A" * 22 + b":-1", 400),
        (b"A" * 22 + b":1e3", 400),
        (b"A" * 22 + b":" + b"9" * 1000, 400),
        (b"A" * 22 + "٣".encode().join([b":", b""]), 400),
        (b"A" * 22 + b":1", 404),
        (b"A" * 60_000, 400),
        (b"A" * 1_000_000, 431),
        (b"A" * 22 + b":1\x00", 400),
        (b"\x00", 400),
        (b"\xff" * 30, 400),
    ],
    ids=lambda value: str(value[:12]) if isinstance(value, bytes) else str(value),
)
async def test_garbage_as_last_event_id(
    tiny_server: RunningServer, event_id: bytes, status: int
) -> None:
    for line in (b"GET /generate?prompt=x", b"GET /v1/tapes/" + b"A" * 22):
        async with connection(tiny_server.port) as (reader, writer):
            writer.write(line + b" HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n")
            writer.write(b"Last-Event-ID: " + event_id + b"\r\n\r\n")
            raw = await reader.read()
        expected = 404 if line.endswith(b"A") and status == 404 else status
        assert int(raw[9:12]) == expected, raw[:300]
        assert json.loads(raw.partition(b"\r\n\r\n")[2])["error"]["message"]


async def test_random_bytes_never_are_an_error_of_ours(tiny_server: RunningServer) -> None:
    """As bodies and as whole requests; a seed makes it the same every time."""
    dice = random.Random(2026)
    body = b'{"prompt": "x", "max_length": 1, "temperature": 0.5, "stop": ["a"], "seed": 1}'
    async with httpx.AsyncClient(base_url=tiny_server.url, timeout=patience(30)) as http:
        for _ in range(300):
            mutant = bytearray(body)
            for _ in range(dice.randint(1, 4)):
                place = dice.randrange(len(mutant))
                mutant[place : place + dice.randint(0, 2)] = dice.randbytes(dice.randint(0, 2))
            answer = await http.post("/generate", content=bytes(mutant), headers=JSON)
            assert answer.status_code in (200, 400, 422), bytes(mutant)
    for _ in range(100):
        mutant = bytearray(GET % b"health")
        mutant[dice.randrange(len(mutant))] = dice.randrange(256)
        async with connection(tiny_server.port) as (reader, writer):
            writer.write(bytes(mutant))
            writer.write_eof()
            raw = await reader.read()
        assert not raw or raw[9:12] in (b"200", b"400", b"404", b"405", b"421"), bytes(mutant)


# ---- section 3: the machine runs short


@pytest.mark.alone
def test_fd_limit_64_recovers_when_they_are_freed(tmp_path: Path, tiny_model: Path) -> None:
    with running(tmp_path / "log", "--model", str(tiny_model)) as server:
        pid = server.process.pid
        resource.prlimit(pid, resource.RLIMIT_NOFILE, (64, 64))
        crowd = []
        for _ in range(200):
            client = socket.create_connection(("127.0.0.1", server.port))
            client.sendall(b"GET /health HTTP/1.1\r\n")
            crowd.append(client)
        began = time.monotonic()
        while "short of file descriptors" not in server.log.read_text():
            assert time.monotonic() - began < patience(10)
        assert httpx.get(f"{server.url}/health", timeout=patience(10)).status_code == 200
        # What it uses while nobody asks for anything. To turn away 200 connections is honest work,
        # and does not count; a loop that tries `accept` again at once would use a whole core.
        began, used = time.monotonic(), cpu(pid)
        time.sleep(2)
        share = (cpu(pid) - used) / (time.monotonic() - began)
        for client in crowd:
            client.close()
        began = time.monotonic()
        while True:
            with contextlib.suppress(httpx.TransportError):
                answer = httpx.post(f"{server.url}/generate", json={"prompt": "x", "max_length": 2})
                assert answer.status_code == 200
                break
            assert time.monotonic() - began < patience(10)
        print(f"{share:.0%} of a core, served again after {time.monotonic() - began:.2f} s")
        assert share < 0.5
        assert len(server.log.read_text().splitlines()) < 200
        assert server.stop() == 0


def cpu(pid: int) -> float:
    """Seconds that a process has computed."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
