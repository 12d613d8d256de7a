"""`tickertape models | pull | show`: models on this disk and on a hub, which is one of our own."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from model.checkpoints.checkpoint import Checkpoint
from model.checkpoints.memory_estimate import PRECISIONS, kv_bytes_per_token, weight_bytes
from tests.app.cli.test_cli import one_line, run
from tests.hub import hub
from tests.server import TICKERTAPE
from tests.terminal import on_terminal


@pytest.fixture
def own(tmp_path: Path) -> dict[str, str]:
    """Folders in which nothing was pulled yet, and nothing that the hub gives."""
    return {"TICKERTAPE_MODELS": str(tmp_path / "models"), "HF_HOME": str(tmp_path / "hub")}


@pytest.fixture
def on_hub(tiny_model: Path, tmp_path: Path) -> Iterator[tuple[dict[str, str], list[str]]]:
    """A variable that names a hub with `a/tiny` and `a/strange`, and what is fetched from it."""
    strange = tmp_path / "strange"
    strange.mkdir()
    for file in ("config.json", "tokenizer.json", "model.safetensors"):
        shutil.copy(tiny_model / file, strange / file)
    config = json.loads((strange / "config.json").read_text()) | {"model_type": "mamba"}
    (strange / "config.json").write_text(json.dumps(config))
    clean = tmp_path / "tiny"
    shutil.copytree(tiny_model, clean, ignore=shutil.ignore_patterns("log"))
    with hub({"a/tiny": clean, "a/strange": strange}) as (address, fetched):
        yield {"HF_ENDPOINT": address}, fetched


def test_what_is_known_and_what_is_here(own: dict[str, str], model_path: Path) -> None:
    table = run("models", **own).stdout
    built_in = next(line for line in table.splitlines() if line.startswith("smollm2-135m "))
    size = f"{model_path.stat().st_size / 1e6:.0f} MB"
    assert [cell.strip() for cell in built_in.split("  ") if cell] == [
        *("smollm2-135m", "built in", size, "llama")
    ]
    assert "Qwen/Qwen3-0.6B" in table
    assert "about 1.5 GB" in table


def test_a_file_is_pulled_listed_shown_and_used(
    own: dict[str, str], tmp_path: Path, model_path: Path
) -> None:
    there = tmp_path / "a model" / "Mine.gguf"
    there.parent.mkdir()
    shutil.copy(model_path, there)
    pulled = run("pull", there.as_uri(), **own)
    assert pulled.returncode == 0, pulled.stderr
    assert "Mine.gguf: 98 MB in" in pulled.stdout
    there.unlink()
    (line,) = (line for line in run("models", **own).stdout.splitlines() if "Mine" in line)
    assert line.split() == ["Mine.gguf", "pulled", "98", "MB", "llama"]
    assert "Mine" in run("show", "Mine", **own).stdout
    used = run("generate", "x", "--model", "Mine.gguf", "--max-length", "2", **own)
    assert "2 tokens" in used.stderr


def test_a_directory_is_pulled(own: dict[str, str], tiny_model: Path) -> None:
    pulled = run("pull", tiny_model.as_uri(), **own)
    assert pulled.returncode == 0, pulled.stderr
    copied = Path(own["TICKERTAPE_MODELS"]) / tiny_model.name
    assert (copied / "model.safetensors").read_bytes() == (
        tiny_model / "model.safetensors"
    ).read_bytes()
    used = run("generate", "x", "--model", tiny_model.name, "--max-length", "2", **own)
    assert used.returncode == 0, used.stderr


@pytest.mark.parametrize(
    ("url", "code", "words"),
    [
        ("file:///no/such/model.gguf", 1, "there is no /no/such/model.gguf"),
        ("file://elsewhere/model.gguf", 2, "three slashes"),
        ("file:model.gguf", 2, "three slashes"),
        ("nonsense", 1, "is no model"),
        ("http://127.0.0.1:9/x", 1, "is no model"),
    ],
)
def test_what_cannot_be_pulled_is_one_line(
    own: dict[str, str], url: str, code: int, words: str
) -> None:
    assert words in one_line(run("pull", url, **own), code)


def test_a_broken_file_is_refused_and_nothing_is_left(own: dict[str, str], tmp_path: Path) -> None:
    broken = tmp_path / "broken.gguf"
    broken.write_bytes(b"GGUF" + bytes(100))
    assert str(broken) in one_line(run("pull", broken.as_uri(), **own))
    assert "broken" not in run("models", **own).stdout


def test_a_model_of_a_hub_is_pulled_once(
    own: dict[str, str], on_hub: tuple[dict[str, str], list[str]]
) -> None:
    at, fetched = on_hub
    pulled = run("pull", "a/tiny", **own, **at)
    assert pulled.returncode == 0, pulled.stderr
    assert pulled.stdout.startswith("a/tiny: ")
    assert set(fetched) >= {"config.json", "tokenizer.json", "model.safetensors"}
    assert len(fetched) == len(set(fetched))
    fetched.clear()
    assert run("pull", "a/tiny", **own, **at).returncode == 0
    assert fetched == []
    (line,) = (line for line in run("models", **own).stdout.splitlines() if "a/tiny" in line)
    assert "hub cache" in line
    assert line.endswith("llama")


def test_an_unsupported_model_of_a_hub_is_refused_before_its_weights_are_fetched(
    own: dict[str, str], on_hub: tuple[dict[str, str], list[str]]
) -> None:
    at, fetched = on_hub
    line = one_line(run("pull", "a/strange", **own, **at))
    assert "model type 'mamba' is not implemented" in line
    assert fetched == ["config.json"]
    assert "a/nothing" in one_line(run("pull", "a/nothing", **own, **at))


def test_there_is_a_progress_bar_on_a_terminal(
    own: dict[str, str], on_hub: tuple[dict[str, str], list[str]], model_path: Path
) -> None:
    at, _ = on_hub
    whole = f"{model_path.stat().st_size / 1e6:.1f}"
    for url, full in ((model_path.as_uri(), f"{whole}/{whole} MB"), ("a/tiny", "100%")):
        with on_terminal([str(TICKERTAPE), "pull", url], own | at) as terminal:
            terminal.until("serve it with")
            assert terminal.exit_code() == 0
            assert full in terminal.shown


def test_show_says_what_the_file_says(checkpoint: Checkpoint) -> None:
    shown = run("show", "smollm2-135m").stdout
    assert "8,192 tokens" in shown
    assert "134.5 M" in shown
    assert "Q4_1" in shown
    assert str(checkpoint.chat_template) in shown
    rows = [line.split("  ") for line in shown.splitlines() if line.startswith("8,192")]
    weights = weight_bytes(checkpoint.stored(), "float32")
    most = weights + 8192 * kv_bytes_per_token(checkpoint.config, "float32")
    assert rows[0][-1].strip() == f"{most / 1e6:.0f} MB"


def test_show_of_safetensors(tiny_model: Path) -> None:
    shown = run("show", str(tiny_model)).stdout
    assert "F32" in shown
    assert "none: use `tickertape generate`" in shown


def test_the_memory_that_is_told_is_what_the_engine_takes(checkpoint: Checkpoint) -> None:
    import torch

    from model.decoder.kv_cache import BLOCK_SIZE, bytes_per_block
    from model.native.runner import bytes_per_block as native_bytes_per_block

    config = checkpoint.config
    told = {p: BLOCK_SIZE * kv_bytes_per_token(config, p) for p in PRECISIONS}
    assert told["int8"] == native_bytes_per_block(config)
    assert told["bfloat16"] == bytes_per_block(config, torch.bfloat16)
    assert told["float32"] == bytes_per_block(config, torch.float32)
    tensors = dict(checkpoint.weights())
    assert weight_bytes(checkpoint.stored(), "float32") == sum(
        tensor.numel() * 4 for tensor in tensors.values()
    )
