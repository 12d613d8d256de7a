"""What a newcomer meets first: banner, request lines, a busy port, help, completion, `ps`."""

import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from app.sockets.listening import AddressError, check
from tests.answers import typing
from tests.app.cli.test_cli import one_line, run
from tests.server import TICKERTAPE, RunningServer, free_port, line_with, running
from tests.speed import patience
from tests.terminal import CTRL_C, on_terminal

COMMANDS = (
    *("serve", "chat", "generate", "models", "pull", "show", "ps", "cluster", "bench"),
    "completion",
)


# ---- the server on a terminal


def test_the_banner_comes_when_the_model_is_ready_and_each_request_is_a_short_line(
    tiny_model: Path,
) -> None:
    port = free_port()
    command = [str(TICKERTAPE), "serve", "--port", str(port), "--model", str(tiny_model)]
    url = f"http://127.0.0.1:{port}"
    with on_terminal(command, {"COLUMNS": "100"}) as terminal:
        terminal.until("loading ")
        banner = terminal.until(" MiB")
        assert httpx.get(f"{url}/ready").status_code == 200
        for words in (
            f"Chat       {url}\r\n",
            f"{url}/dash\r\n",
            f"{url}/docs\r\n",
            f"base_url={url}/v1",
            f"model={tiny_model.name}",
            "thread",
            "512 tokens",
            "KV cache",
        ):
            assert words in banner
        body = {"prompt": "x", "max_length": 3, "ignore_eos": True}
        with httpx.Client(base_url=url, timeout=patience(30)) as client:
            assert client.get("/static/app.js").status_code == 200
            client.post("/generate", json=body)
            client.get("/nothing/at%1b[2J/all")
        line = terminal.until("GET /nothing/at\\x1b[2J/all 404")
        assert "POST /generate 200 in " in line
        assert "3 tokens, length" in line
        assert "/static" not in line
        assert len(line.splitlines()) <= 4
        terminal.type(CTRL_C)
        assert terminal.exit_code() == 0
        assert "Uvicorn" not in terminal.shown


async def test_elsewhere_one_line_says_what_the_banner_would(tiny_server: RunningServer) -> None:
    ready = await line_with(tiny_server, url=tiny_server.url)
    assert " loaded in " in ready["event"]
    assert ready["base_url"] == f"{tiny_server.url}/v1"
    assert (ready["dash"], ready["docs"]) == (f"{tiny_server.url}/dash", f"{tiny_server.url}/docs")
    assert ready["model"] == tiny_server.log.parent.name
    assert min(ready["threads"], ready["kv_tokens"], ready["kv_bytes"]) > 0
    assert ready["dtype"] in ("int8", "bfloat16", "float32")


def test_a_busy_port_is_one_line_that_names_a_free_one(tiny_server: RunningServer) -> None:
    port = tiny_server.port
    line = one_line(run("serve", "--port", str(port)))
    assert f"port {port} is already in use on 127.0.0.1: choose another with --port" in line
    free = int(line.rpartition("--port ")[2].split()[0])
    check("127.0.0.1", free)
    with socket.create_server(("127.0.0.1", free)), pytest.raises(AddressError):
        check("127.0.0.1", free)
    check("127.0.0.1", 0)


def test_a_port_that_another_takes_while_the_model_loads_is_one_line_too(tmp_path: Path) -> None:
    """The check before the load cannot see it; here the check is left out."""
    code = (
        "import sys; from app.sockets import listening; listening.check = lambda *_: None; "
        "from app.cli import main; main()"
    )
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        ended = subprocess.run(
            [sys.executable, "-c", code, "serve", "--port", port],
            capture_output=True,
            text=True,
            timeout=patience(60),
            check=False,
        )
    assert f"port {port} is already in use" in one_line(ended)


# ---- the commands


def test_the_version() -> None:
    from importlib.metadata import version

    assert run("--version").stdout == f"tickertape {version('tickertape')}\n"


@pytest.mark.parametrize("command", ["", *COMMANDS])
@pytest.mark.parametrize("flag", ["-h", "--help"])
def test_every_command_has_help(command: str, flag: str) -> None:
    result = run(*command.split(), flag)
    assert result.returncode == 0
    assert "usage" in result.stdout.lower()


@pytest.mark.parametrize(
    ("command", "defaults"),
    [
        ("serve", ["(default: 8000)", "(default: auto)", "(default: 512MiB)", "(default: True)"]),
        ("chat", ["(default: the model's own)", "(default: smollm2-135m)"]),
        ("generate", ["(default: 0.7)", "(default: 100)", "(default: the model's own)"]),
        ("ps", ["[default: 127.0.0.1:8000]"]),
    ],
)
def test_help_shows_defaults(command: str, defaults: list[str]) -> None:
    shown = " ".join(run(command, "--help").stdout.replace("│", " ").split())
    for default in defaults:
        assert default in shown


@pytest.mark.parametrize(
    "arguments", [["nothing"], ["serve", "--nothing"], ["generate"], ["chat", "--temperature", "9"]]
)
def test_a_wrong_use_has_exit_code_2(arguments: list[str]) -> None:
    result = run(*arguments)
    assert result.returncode == 2
    assert "Traceback" not in result.stderr


def test_a_prompt_comes_from_stdin(tiny_server: RunningServer) -> None:
    asked = ["--url", tiny_server.url.removeprefix("http://"), "--max-length", "4", "--seed", "1"]
    piped = run("generate", "-", *asked, stdin="several\nlines\n")
    given = run("generate", "several\nlines", *asked)
    assert piped.stdout == given.stdout
    assert "-" in one_line(run("generate", "-", *asked), 2)


def test_what_is_not_given_is_left_out_of_the_request(monkeypatch: pytest.MonkeyPatch) -> None:
    import typer

    from app.cli.options import with_sampling

    got: list[dict[str, Any]] = []
    command = typer.Typer()
    command.command()(with_sampling(chat=True)(lambda options: got.append(options)))
    command([], standalone_mode=False)
    flags = ["--top-k", "0", "--temperature", "0", "--stop", "a", "--stop", "b"]
    command(flags, standalone_mode=False)
    assert got == [{}, {"top_k": 0, "temperature": 0.0, "stop": ["a", "b"]}]


# ---- ps


async def test_ps_lists_the_tapes_of_a_server(tiny_server: RunningServer) -> None:
    body = {"prompt": "x", "max_length": 400, "ignore_eos": True}
    async with (
        httpx.AsyncClient(base_url=tiny_server.url, timeout=patience(60)) as http,
        typing(http, body) as (reading, _),
    ):
        result = run("ps", "--url", tiny_server.url.removeprefix("http://"))
    assert result.returncode == 0, result.stderr
    head, *rows = result.stdout.splitlines()
    assert head.split()[:3] == ["TAPE", "STATUS", "PROMPT"]
    assert reading.tape in [row.split()[0] for row in rows]
    assert "engine ready" in result.stderr


def test_ps_without_a_server_or_a_key_is_one_line(tiny_model: Path, tmp_path: Path) -> None:
    assert "nothing answers" in one_line(run("ps", "--url", f"127.0.0.1:{free_port()}"))
    keys = tmp_path / "keys"
    keys.write_text("the-key\n")
    flags = ("--model", str(tiny_model), "--api-key-file", str(keys))
    with running(tmp_path / "log", *flags) as server:
        assert "401" in one_line(run("ps", "--url", server.url))
        assert run("ps", "--url", server.url, "--api-key", "the-key").returncode == 0
        assert run("ps", "--url", server.url, TICKERTAPE_API_KEY="the-key").returncode == 0


# ---- completion


@pytest.fixture(scope="module")
def script(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("completion") / "tickertape.bash"
    path.write_text(run("completion", "bash").stdout)
    return path


@pytest.mark.parametrize(
    ("line", "some"),
    [
        ("", {*COMMANDS, "--version"}),
        ("se", {"serve"}),
        ("serve --dt", {"--dtype"}),
        ("serve --dtype i", {"int8"}),
        ("chat --sys", {"--system"}),
        ("completion ", {"bash", "zsh", "fish"}),
        ("serve --no-pre", {"--no-prefix-cache"}),
    ],
)
def test_bash_completes(script: Path, line: str, some: set[str]) -> None:
    words = ["tickertape", *line.split(" ")]
    asked = (
        f"source {script}; COMP_WORDS=({' '.join(word or chr(39) * 2 for word in words)}); "
        f'COMP_CWORD={len(words) - 1}; _tickertape; printf "%s\\n" "${{COMPREPLY[@]}}"'
    )
    ended = subprocess.run(["bash", "-euc", asked], capture_output=True, text=True, check=True)
    found = set(ended.stdout.split())
    assert found >= some
    assert all(word.startswith(words[-1]) for word in found)


def scripts() -> Iterator[Any]:
    for shell, check_only in (("bash", "-n"), ("zsh", "-n"), ("fish", "--no-execute")):
        missing = shutil.which(shell) is None
        yield pytest.param(
            shell, check_only, marks=pytest.mark.skipif(missing, reason=f"there is no {shell}")
        )


@pytest.mark.parametrize(("shell", "check_only"), list(scripts()))
def test_a_shell_can_read_its_script(shell: str, check_only: str, tmp_path: Path) -> None:
    path = tmp_path / "script"
    path.write_text(run("completion", shell).stdout)
    subprocess.run([shell, check_only, str(path)], check=True, capture_output=True)


def test_every_script_has_every_command_and_option() -> None:
    from app.settings import Settings

    for shell in ("bash", "zsh", "fish"):
        written = run("completion", shell).stdout
        assert all(command in written for command in COMMANDS)
        assert all(name.replace("_", "-") in written for name in Settings.model_fields)
