"""`tickertape show`: what a model file says of itself, and the memory that it takes."""

from collections import Counter
from collections.abc import Iterator
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from app.cli.models import size_of
from app.cli.terminal import ends_as_a_shell_expects, print_table, size, type_text

if TYPE_CHECKING:
    from model.checkpoints.checkpoint import Checkpoint
    from model.checkpoints.config import ModelConfig
    from model.checkpoints.stored import StoredTensor

_FIRST_CONTEXT = 2048


def show(
    model: Annotated[str, typer.Argument(help="A name of `tickertape models`, or a path.")],
) -> None:
    """Show a model: header, chat template, types of its tensors, and the memory it takes."""
    from model.checkpoints.checkpoint import open_checkpoint
    from model.checkpoints.hub import resolve

    path = resolve(model)
    checkpoint = open_checkpoint(path)
    tensors = checkpoint.stored()
    with ends_as_a_shell_expects():
        for label, value in _header(path, checkpoint, tensors):
            type_text(f"{label:<15}{value}\n")
        _heading("Tensors")
        print_table(("TYPE", "COUNT", "PARAMETERS", "SIZE"), _by_type(tensors))
        _heading("Memory for weights and the keys and values of so many tokens")
        _print_memory(checkpoint.config, tensors)
        _heading("Chat template")
        type_text(f"{checkpoint.chat_template or 'none: use `tickertape generate`'}\n")


def _heading(text: str) -> None:
    type_text(f"\n{text}\n")


def _header(
    path: Path, checkpoint: "Checkpoint", tensors: "list[StoredTensor]"
) -> Iterator[tuple[str, str]]:
    config = checkpoint.config
    yield "Name", checkpoint.name
    yield "Path", str(path)
    yield "Size", size(size_of(path))
    yield "Family", config.family
    yield "Parameters", _count(sum(prod(tensor.shape) for tensor in tensors))
    yield "Layers", f"{config.num_layers}, hidden size {config.hidden_size}"
    yield "Attention", f"{config.num_heads} heads, {config.num_kv_heads} for keys and values"
    yield "Vocabulary", f"{config.vocab_size:,} tokens"
    yield "Context", f"{config.max_model_len:,} tokens{_scaled(config)}"
    yield "End tokens", ", ".join(map(str, config.eos_token_ids)) or "none"


def _scaled(config: "ModelConfig") -> str:
    scaling = config.rope_scaling
    return f", stretched by {scaling.kind} {scaling.factor:g}" if scaling else ""


def _count(parameters: int) -> str:
    return f"{parameters / 1e9:.2f} B" if parameters >= 1e9 else f"{parameters / 1e6:.1f} M"


def _by_type(tensors: "list[StoredTensor]") -> Iterator[tuple[str, ...]]:
    """The type with most bytes first."""
    counts, parameters, nbytes = Counter[str](), Counter[str](), Counter[str]()
    for tensor in tensors:
        counts[tensor.kind] += 1
        parameters[tensor.kind] += prod(tensor.shape)
        nbytes[tensor.kind] += tensor.nbytes
    for kind, total in nbytes.most_common():
        yield kind, str(counts[kind]), _count(parameters[kind]), size(total)


def _print_memory(config: "ModelConfig", tensors: "list[StoredTensor]") -> None:
    from model.checkpoints.memory_estimate import PRECISIONS, kv_bytes_per_token, weight_bytes

    weights = {precision: weight_bytes(tensors, precision) for precision in PRECISIONS}
    rows = [
        (
            f"{context:,}",
            *(
                size(weights[precision] + context * kv_bytes_per_token(config, precision))
                for precision in PRECISIONS
            ),
        )
        for context in (0, *_contexts(config.max_model_len))
    ]
    print_table(("TOKENS", *(precision.upper() for precision in PRECISIONS)), rows)


def _contexts(longest: int) -> list[int]:
    """2048, four times as many, and so on; last the model's own."""
    contexts, context = [], _FIRST_CONTEXT
    while context < longest:
        contexts.append(context)
        context *= 4
    return [*contexts, longest]
