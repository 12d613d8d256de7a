"""`tickertape models`: models by name, and those on this disk."""

from collections.abc import Iterator
from pathlib import Path

from app.cli.terminal import note, print_table, size
from model.protocol.errors import ModelLoadError

# Of families that are implemented, small enough for a processor. About what the hub has to send.
_KNOWN = {
    "HuggingFaceTB/SmolLM2-360M-Instruct": 0.7e9,
    "Qwen/Qwen2.5-0.5B-Instruct": 1.0e9,
    "Qwen/Qwen3-0.6B": 1.5e9,
    "TinyLlama/TinyLlama-1.1B-Chat-v1.0": 2.2e9,
    "Qwen/Qwen2.5-1.5B-Instruct": 3.1e9,
    "HuggingFaceTB/SmolLM2-1.7B-Instruct": 3.4e9,
}
_HEAD = ("MODEL", "WHERE", "SIZE", "FAMILY")

Row = tuple[str, str, str, str]


def models() -> None:
    """List models: the built-in one, those on this disk, and some that `pull` fetches."""
    here = [*_built_in(), *_pulled(), *_cached()]
    names = {name for name, *_ in here}
    on_hub = [
        (name, "on the hub", f"about {size(nbytes)}", "supported")
        for name, nbytes in _KNOWN.items()
        if name not in names
    ]
    print_table(_HEAD, [*here, *on_hub])
    note(
        "use one with --model NAME, fetch one with `tickertape pull NAME`; any other org/name of "
        "the hub with a llama, mistral, qwen2 or qwen3 model works, too"
    )


def _built_in() -> Iterator[Row]:
    from model.checkpoints.hub import DEFAULT_MODEL, resolve

    try:
        path = resolve(DEFAULT_MODEL)
    except ModelLoadError as error:
        yield DEFAULT_MODEL, "missing", "-", str(error)
    else:
        yield DEFAULT_MODEL, "built in", size(size_of(path)), family(path)


def _pulled() -> Iterator[Row]:
    from model.checkpoints.pulled import all_pulled

    for path in all_pulled():
        yield path.name, "pulled", size(size_of(path)), family(path)


def _cached() -> Iterator[Row]:
    """A repository of GGUF files has a model in each of them."""
    from model.checkpoints.hub import cached

    for name, snapshot, nbytes in cached():
        files = [] if (snapshot / "config.json").exists() else sorted(snapshot.glob("*.gguf"))
        for file in files:
            yield f"{name}/{file.name}", "hub cache", size(size_of(file)), family(file)
        if not files:
            yield name, "hub cache", size(nbytes), family(snapshot)


def family(path: Path) -> str:
    """The model's family, or in one sentence why it cannot be served."""
    from model.checkpoints.checkpoint import open_checkpoint

    try:
        return open_checkpoint(path).config.family
    except ModelLoadError as error:
        return f"not supported: {str(error).removeprefix(f'{path}: ')}"


def size_of(path: Path) -> int:
    """Bytes of a model on this disk."""
    files = [path] if path.is_file() else [file for file in path.rglob("*") if file.is_file()]
    return sum(file.stat().st_size for file in files)
