"""`tickertape pull`: fetch a model once, so that serving it later needs no network."""

from pathlib import Path
from typing import Annotated
from urllib.parse import unquote, urlsplit

import typer

from app.cli.models import size_of
from app.cli.terminal import ends_as_a_shell_expects, note, notes, size, type_text
from app.settings import SettingsError
from model.protocol.errors import ModelLoadError


def pull(
    model: Annotated[
        str,
        typer.Argument(
            help="org/name or org/name/file.gguf of the Hugging Face hub (or of HF_ENDPOINT), or "
            "the file:// URL of a .gguf file or of a directory."
        ),
    ],
) -> None:
    """Download a model, with a progress bar. An unsupported one is refused before it is fetched."""
    with ends_as_a_shell_expects():
        name, path = _from_file(model) if model.startswith("file:") else _from_hub(model)
        type_text(f"{name}: {size(size_of(path))} in {path}\n")
        note(f"serve it with `tickertape serve --model {name}`")


def _from_file(url: str) -> tuple[str, Path]:
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn

    from model.checkpoints.checkpoint import open_checkpoint
    from model.checkpoints.pulled import Copy

    source = _path_of(url)
    open_checkpoint(source)  # refused before anything is copied
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
    )
    with Progress(*columns, console=notes, disable=not notes.is_terminal) as progress:
        task = progress.add_task(source.name)
        path = Copy(source).run(
            check=open_checkpoint,
            tell=lambda done, total: progress.update(task, completed=done, total=total),
        )
    return path.name, path


def _path_of(url: str) -> Path:
    parts = urlsplit(url)
    path = Path(unquote(parts.path))
    if parts.netloc not in ("", "localhost") or not path.is_absolute():
        raise SettingsError(f"{url} names no file here; write three slashes: file:///path/to/model")
    if not path.exists():
        raise ModelLoadError(f"there is no {path}; give the file:// URL of a model that is there")
    return path


def _from_hub(model: str) -> tuple[str, Path]:
    from model.checkpoints.checkpoint import open_checkpoint
    from model.checkpoints.families.known import config_from_hf
    from model.checkpoints.hub import download, hub_config, is_on_hub, resolve

    if not is_on_hub(model):
        return model, resolve(model)
    if not model.lower().endswith(".gguf"):
        config_from_hf(hub_config(model), name=model)  # small: asked before gigabytes come
    path = download(model)
    open_checkpoint(path)
    return model, path
