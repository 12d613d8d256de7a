"""How `tickertape generate` and `chat` end, whatever is at the other end of their streams."""

import contextlib
import os
import pty
import select
import socket
import subprocess
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.app.cli.test_cli import one_line, run
from tests.server import TICKERTAPE, RunningServer
from tests.speed import patience

GENERATE = [str(TICKERTAPE), "generate", "x", "--max-length", "200"]


def piped(command: Sequence[str], redirections: str) -> tuple[list[int], str]:
    """What a shell makes of it: the exit codes of a pipe's commands, and what they complain of."""
    script = f'"$@" {redirections}; echo "${{PIPESTATUS[@]}}" >&3'
    reads, writes = os.pipe()
    shell = ["bash", "-c", f"exec 3>&{writes}; {script}", "bash", *command]
    ended = subprocess.run(
        shell,
        pass_fds=[writes],
        stderr=subprocess.PIPE,
        text=True,
        timeout=patience(100),
        check=False,
    )
    os.close(writes)
    with os.fdopen(reads) as codes:
        return [int(code) for code in codes.read().split()], ended.stderr


@pytest.fixture(params=["there", "here"])
def model(
    request: pytest.FixtureRequest, tiny_server: RunningServer, tiny_model: Path
) -> list[str]:
    """A server, and the model in the process itself."""
    return ["--url", tiny_server.url] if request.param == "there" else ["--model", str(tiny_model)]


def test_who_stops_reading_ends_it_without_a_word(model: list[str]) -> None:
    codes, complaints = piped([*GENERATE, *model], "| true")
    assert codes == [141, 0]
    assert complaints == ""


def test_a_disk_that_is_full_is_one_line(tiny_server: RunningServer) -> None:
    codes, complaints = piped([*GENERATE, "--url", tiny_server.url], ">/dev/full")
    assert codes == [1]
    assert complaints.startswith("tickertape: the output cannot be written: ")
    assert complaints.count("\n") == 1


@pytest.mark.parametrize("redirections", [">&-", "2>&- >/dev/null", "<&- >/dev/null"])
def test_a_closed_stream_is_no_fault(tiny_server: RunningServer, redirections: str) -> None:
    for command in (GENERATE, [str(TICKERTAPE), "chat"]):
        there = [*command, "--url", tiny_server.url]
        closed = redirections if command is GENERATE else f"<&- {redirections}"
        codes, complaints = piped(there, closed)
        assert codes == [0]
        assert "Traceback" not in complaints


@pytest.mark.parametrize(
    "environment",
    [
        {"PYTHONIOENCODING": "latin-1"},
        {"PYTHONIOENCODING": "ascii"},
        {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"},
    ],
)
def test_characters_that_cannot_be_shown_are_replaced(
    tiny_server: RunningServer, environment: dict[str, str]
) -> None:
    """A model of random bytes: hardly one of its characters is ASCII."""
    asked = ["generate", "é", "--max-length", "60", "--url", tiny_server.url, "--seed", "1"]
    ended = subprocess.run(
        [TICKERTAPE, *asked],
        capture_output=True,
        timeout=patience(60),
        check=False,
        env=os.environ | environment,
    )
    assert ended.returncode == 0, ended.stderr
    assert b"?" in ended.stdout
    assert b"Traceback" not in ended.stderr


def test_bytes_that_are_no_text_are_replaced(tiny_server: RunningServer) -> None:
    asked = [b"generate", b"\xff\xfe", b"--max-length", b"2", b"--url", tiny_server.url.encode()]
    ended = subprocess.run(
        [os.fsencode(TICKERTAPE), *asked], capture_output=True, timeout=patience(60), check=False
    )
    assert ended.returncode == 0, ended.stderr


@contextlib.contextmanager
def one_token() -> Iterator[str]:
    """The address of a server whose stream stands still after a token, until it is cancelled."""
    head = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nX-Tape: t\r\n\r\n"
    token = b'id: t:1\nevent: token\ndata: {"text": "first", "token_ids": [1], "index": 0}\n\n'

    def answer(listening: socket.socket) -> None:
        stream, _ = listening.accept()
        with stream:
            stream.recv(1 << 16)
            stream.sendall(head + token)
            cancelling, _ = listening.accept()
            with cancelling:
                assert cancelling.recv(1 << 16).startswith(b"DELETE /v1/tapes/t ")
                cancelling.sendall(b"HTTP/1.1 204 No Content\r\nConnection: close\r\n\r\n")

    with socket.create_server(("127.0.0.1", 0)) as listening, ThreadPoolExecutor(1) as pool:
        listening.settimeout(patience(60))
        answered = pool.submit(answer, listening)
        yield f"http://127.0.0.1:{listening.getsockname()[1]}"
        answered.result()


def test_ctrl_c_in_the_middle_of_an_answer_cancels_it() -> None:
    with one_token() as url:
        ends_at_ctrl_c([str(TICKERTAPE), "generate", "x", "--url", url], shows=b"first")


def ends_at_ctrl_c(command: list[str], shows: bytes) -> None:
    """On a terminal."""
    child, terminal = pty.fork()
    if child == 0:
        os.execv(command[0], command)
    try:
        shown = typed_until(terminal, shows)
        os.write(terminal, b"\x03")
        with contextlib.suppress(OSError):  # its end is one
            while select.select([terminal], [], [], 30)[0] and (more := os.read(terminal, 4096)):
                shown += more
    finally:
        os.close(terminal)
    _, status = os.waitpid(child, 0)
    assert os.waitstatus_to_exitcode(status) == 130, shown
    assert b"Traceback" not in shown


def typed_until(terminal: int, words: bytes) -> bytes:
    shown = b""
    while words not in shown:
        assert select.select([terminal], [], [], 60)[0], shown
        shown += os.read(terminal, 4096)
    return shown


def test_a_key_with_a_line_end_in_it_is_one_line(tiny_server: RunningServer) -> None:
    asked = ["generate", "x", "--url", tiny_server.url, "--api-key", "a\nb"]
    assert "control character" in one_line(run(*asked))


@pytest.mark.parametrize("url", ["ftp://x", "http://[::1", "http://127.0.0.1:99999"])
def test_an_address_that_is_none_is_one_line(url: str) -> None:
    assert "give one such as" in one_line(run("generate", "x", "--url", url))
