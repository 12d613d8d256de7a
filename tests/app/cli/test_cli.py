"""The command line: what it says, and how it ends."""

import json
import os
import select
import signal
import subprocess
from pathlib import Path

import httpx
import pytest
import tokenizers
import typer

from tests.server import TICKERTAPE, RunningServer, free_port, running
from tests.speed import patience


def run(
    *arguments: str, stdin: str = "", cwd: Path | None = None, **environment: str
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [TICKERTAPE, *arguments],
        input=stdin,
        cwd=cwd,
        capture_output=True,
        text=True,
        timeout=patience(60),
        env=os.environ | {"COLUMNS": "400"} | environment,
        check=False,
    )


def one_line(result: subprocess.CompletedProcess[str], code: int = 1) -> str:
    """What the user sees of a failure: one line, no traceback; exit code 2 is for the options."""
    assert result.returncode == code
    assert "Traceback" not in result.stderr + result.stdout
    line = result.stderr.strip().splitlines()[-1]
    assert line.startswith("tickertape: ")
    return line


def test_generate_here_and_on_a_server_type_the_same_text(server: RunningServer) -> None:
    arguments = ["generate", "The capital of France is", "--temperature", "0", "--max-length", "9"]
    there = run(*arguments, "--url", server.url)
    here = run(*arguments)
    assert "Paris" in here.stdout
    assert here.stdout == there.stdout
    for result in (here, there):
        assert result.returncode == 0
        assert "9 tokens" in result.stderr
        assert "tokens/s" in result.stderr


def test_chat_keeps_the_conversation() -> None:
    said = "My name is Ada. Please remember it.\nWhat is my name?\n\n"
    arguments = ["chat", "--dtype", "float32", "--temperature", "0", "--max-length", "30"]
    result = run(*arguments, stdin=said)
    assert result.returncode == 0, result.stderr
    assert result.stderr.count("tokens/s") == 2
    assert "Ada" in result.stdout
    assert "<|im_end|>" not in result.stdout


def test_chat_with_a_server(server: RunningServer) -> None:
    said = "My name is Ada. Please remember it.\nWhat is my name?\n\n"
    result = run(
        "chat", "--url", server.url, "--temperature", "0", "--max-length", "30", stdin=said
    )
    assert result.returncode == 0, result.stderr
    assert result.stderr.count("tokens/s") == 2
    assert len(result.stdout.split()) > 10
    assert "--dtype" in one_line(run("chat", "--url", server.url, "--dtype", "int8", stdin=said), 2)


@pytest.mark.parametrize("command", ["serve", "generate x"])
def test_a_missing_model_is_one_line(command: str) -> None:
    assert "no model" in one_line(run(*command.split(), "--model", "missing.gguf"))


def test_a_corrupt_model_is_one_line(tmp_path: Path, model_path: Path) -> None:
    whole = model_path.read_bytes()
    cut = tmp_path / "cut.gguf"
    cut.write_bytes(whole[: len(whole) // 2])
    assert str(cut) in one_line(run("serve", "--model", str(cut)))
    junk = tmp_path / "junk.gguf"
    junk.write_bytes(os.urandom(4096))
    assert str(junk) in one_line(run("serve", "--model", str(junk)))


def test_a_model_that_fails_in_the_engine_is_one_line(tmp_path: Path) -> None:
    """The header is well, so the server starts; the weights do not fit the config."""
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=64,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=1,
        num_attention_heads=2,
        max_position_embeddings=64,
    )
    LlamaForCausalLM(config).save_pretrained(tmp_path)
    changed = json.loads((tmp_path / "config.json").read_text()) | {"num_hidden_layers": 2}
    (tmp_path / "config.json").write_text(json.dumps(changed))
    tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE(vocab={"a": 0, "b": 1}, merges=[]))
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = tokenizers.decoders.ByteLevel()
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    result = run("serve", "--model", str(tmp_path), "--port", str(free_port()))
    assert "lacks the weight 'layers.1." in one_line(result)


@pytest.mark.parametrize(
    ("arguments", "environment", "words"),
    [
        (["--port", "99999"], {}, "--port (or TICKERTAPE_PORT)"),
        (["--kv-cache-memory", "much"], {}, "512MiB"),
        (["--dtype", "int3"], {}, "--dtype"),
        (["--max-num-seqs", "600"], {}, "at least --max-num-seqs, which is 600"),
        ([], {"TICKERTAPE_PORT": "none"}, "TICKERTAPE_PORT"),
        ([], {"TICKERTAPE_PREFIX_CACHE": "some"}, "--prefix-cache (or TICKERTAPE_PREFIX_CACHE)"),
    ],
)
def test_settings_that_are_none_are_named(
    arguments: list[str], environment: dict[str, str], words: str
) -> None:
    assert words in one_line(run("serve", *arguments, **environment), 2)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--max-model-len", "9000"], "8192"),
        (["--kv-cache-memory", "900000GiB"], "more than this machine's memory"),
    ],
)
def test_settings_that_do_not_fit_the_model_or_the_machine_are_named(
    arguments: list[str], words: str
) -> None:
    assert words in one_line(run("serve", *arguments))


def test_a_cluster_without_ray_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "ray.py").write_text("raise ImportError")
    assert "tickertape[cluster]" in one_line(
        run(
            "cluster", PYTHONPATH=os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")])
        ),
        2,
    )


def test_a_cluster_has_no_fewer_replicas_at_most_than_always() -> None:
    from app.settings import ClusterSettings, SettingsError, load

    with pytest.raises(SettingsError, match="at least --replicas, which is 3"):
        load(ClusterSettings, {"replicas": "3", "max_replicas": "2"})


@pytest.mark.parametrize("name", ["max_request_line", "max_header_size", "header_timeout"])
def test_what_holds_in_our_own_http_server_only_is_refused_for_a_cluster(name: str) -> None:
    from app.settings import ClusterSettings, SettingsError, load

    flag = name.replace("_", "-")
    with pytest.raises(SettingsError, match=f"--{flag} .*must be left out here"):
        load(ClusterSettings, {name: "5"})
    load(ClusterSettings, {})


@pytest.mark.parametrize(
    ("content", "words"), [("port = [", "not valid TOML"), ("prot = 1", "no setting 'prot'")]
)
def test_a_file_that_is_none_is_named(tmp_path: Path, content: str, words: str) -> None:
    (tmp_path / "tickertape.toml").write_text(content)
    assert words in one_line(run("serve", cwd=tmp_path), 2)


@pytest.mark.parametrize(
    ("flags", "named"),
    [(["--dtype", "float32"], "--dtype"), (["--no-prefix-cache"], "--prefix-cache")],
)
def test_model_flags_and_a_url_exclude_each_other(
    server: RunningServer, flags: list[str], named: str
) -> None:
    line = one_line(run("generate", "x", "--url", server.url, *flags), 2)
    assert named in line


def test_text_is_typed_as_it_is(server: RunningServer) -> None:
    """Names of emoji, tabs and brackets are text, whatever the terminal library makes of them."""
    prompt = ":warning: [bold] :warning: [bold] :warning: [bold] :warning: [bold]"
    typed = run("generate", prompt, "--url", server.url, "--temperature", "0", "--max-length", "8")
    whole = httpx.post(
        f"{server.url}/generate", json={"prompt": prompt, "temperature": 0, "max_length": 8}
    )
    assert typed.stdout == whole.json()["generated_text"] + "\n"


def test_a_folder_named_model_is_not_taken_for_ours(tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "__init__.py").write_text("raise SystemExit('wrong model')")
    result = run("generate", "Hello", "--max-length", "2", cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert "2 tokens" in result.stderr


def test_nobody_at_the_url() -> None:
    line = one_line(run("generate", "x", "--url", f"http://127.0.0.1:{free_port()}"))
    assert "nothing answers" in line


def test_a_flag_beats_the_environment_beats_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from app.settings import Settings

    (tmp_path / "tickertape.toml").write_text('port = 1\nhost = "file"\ngrace = 3\n')
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TICKERTAPE_PORT", "2")
    monkeypatch.setenv("TICKERTAPE_HOST", "environment")
    settings = Settings(port=4)
    assert (settings.port, settings.host, settings.grace) == (4, "environment", 3)


@pytest.mark.parametrize(
    ("flags", "on"), [([], True), (["--no-prefix-cache"], False), (["--prefix-cache"], True)]
)
def test_a_switch_is_a_flag_of_its_own(flags: list[str], on: bool) -> None:
    from app.cli.options import with_options
    from app.settings import EngineSettings, load

    got = []
    command = typer.Typer()
    command.command()(with_options(EngineSettings)(lambda flags: got.append(flags)))
    command(flags, standalone_mode=False)
    assert load(EngineSettings, got[0]).prefix_cache is on


def test_serve_answers_while_it_loads_and_ends_with_code_0(tmp_path: Path) -> None:
    with running(tmp_path / "log") as server:
        assert httpx.get(f"{server.url}/").status_code == 200
        assert httpx.get(f"{server.url}/ready").json() == {"status": "ready"}
        version = httpx.get(f"{server.url}/version").json()
        assert version["model"] == "smollm2-135m"
        engine = server.health()["engine_pid"]
        assert server.stop() == 0
        with pytest.raises(ProcessLookupError):
            os.kill(engine, 0)


def test_sigterm_ends_every_stream_with_its_terminal_frame(tmp_path: Path) -> None:
    with running(tmp_path / "log", "--shutdown-grace", "0.2") as server:
        body = {"prompt": "Once", "max_length": 4000, "ignore_eos": True, "stream": True}
        with httpx.stream(
            "POST", f"{server.url}/generate", json=body, timeout=patience(30)
        ) as response:
            lines = response.iter_lines()
            while not next(lines).startswith("data:"):
                pass
            server.process.send_signal(signal.SIGTERM)
            rest = [line for line in lines if line.startswith("data:")]
        assert json.loads(rest[-1].removeprefix("data: "))["finish_reason"] == "shutdown"
        assert server.process.wait(timeout=patience(10)) == 0


def test_the_engine_goes_when_the_api_process_is_killed(tmp_path: Path) -> None:
    with running(tmp_path / "log") as server:
        engine = server.health()["engine_pid"]
        status = os.pidfd_open(engine)
        server.process.kill()
        signalled = _wait_for_exit(status, seconds=5)
        os.close(status)
    assert signalled


def _wait_for_exit(pidfd: int, seconds: float) -> bool:
    readable, _, _ = select.select([pidfd], [], [], patience(seconds))
    return bool(readable)
