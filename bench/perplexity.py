"""What each precision costs: the model's perplexity on a fixed text, against float32.

    python -m bench.perplexity [--model M] [--dtype float32 bfloat16 int8]

The text is 20,480 tokens of Python's language reference (bench/data), read in windows of 512; each
window begins without a past. One row per precision. The last line is the same as JSON.
"""

import argparse
import gzip
import json
import math
from array import array
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Protocol

import torch
from rich.console import Console
from rich.progress import track
from rich.table import Table
from torch import Tensor
from torch.nn import functional as F

from bench.server import compile_kernels
from model import processors
from model.backends import NativeBackend, Sizes, TorchBackend, choose
from model.checkpoints.checkpoint import Checkpoint, open_checkpoint
from model.checkpoints.hub import DEFAULT_MODEL, resolve
from model.decoder.kv_cache import BLOCK_SIZE
from model.decoder.linear import Precision, resolve_precision
from model.decoder.runner import Runner
from model.protocol.sampling_params import SamplingParams
from model.scheduling.forward_batch import ForwardBatch
from model.scheduling.scheduler import Chunk
from model.scheduling.sequence import Sequence
from model.text.detokenizer import Detokenizer
from model.text.tokenizer import Tokenizer

TEXT = Path(__file__).parent / "data" / "python_reference.txt.gz"
WINDOW = 512
WINDOWS = 40
CPU = torch.device("cpu")

_BLOCKS = -(-WINDOW // BLOCK_SIZE)
_SIZES = Sizes(_BLOCKS, WINDOW, WINDOW, WINDOW, processors.usable())


class EveryPosition(Protocol):
    """Token ids (T) -> the logits (T, vocabulary) in float32 after each of them, no past before."""

    def __call__(self, token_ids: list[int]) -> Tensor: ...


@dataclass(frozen=True, slots=True)
class Row:
    precision: str
    perplexity: float
    against_float32: float  # 0.01: one percent worse
    tokens: int


class _OneSequence:
    """A runner, for windows of at most WINDOW tokens."""

    def __init__(self, runner: Runner) -> None:
        self._runner = runner
        self._blocks = array("i", range(_BLOCKS))

    def __call__(self, token_ids: list[int]) -> Tensor:
        sequence = Sequence(
            token_ids=list(token_ids),
            params=SamplingParams(max_tokens=1, seed=0),
            id="window",
            detokenizer=Detokenizer(None),  # type: ignore[arg-type]
            arrived=0.0,
        )
        sequence.block_table = self._blocks
        batch = ForwardBatch.of([Chunk(sequence, 0, len(token_ids))], all_logits=True)
        return self._runner.run(batch).rows


class PlainDecoder(_OneSequence):
    """The families' decoder, in one precision."""

    def __init__(self, checkpoint: Checkpoint, precision: Precision) -> None:
        super().__init__(TorchBackend(precision, CPU).build(checkpoint, _SIZES))


class NativeDecoder(_OneSequence):
    """The compiled kernels."""

    def __init__(self, checkpoint: Checkpoint, library_path: Path) -> None:
        super().__init__(NativeBackend(library_path).build(checkpoint, _SIZES))


def decoder(checkpoint: Checkpoint, name: str) -> EveryPosition:
    """What the engine would run for `--dtype name` on this machine."""
    chosen = choose(name, checkpoint.config, CPU).backend
    if isinstance(chosen, NativeBackend):
        return NativeDecoder(checkpoint, chosen.path)
    return PlainDecoder(checkpoint, resolve_precision(name, CPU))


def windows(tokenizer: Tokenizer, count: int = WINDOWS) -> list[list[int]]:
    """The text's first `count` windows of WINDOW token ids."""
    token_ids = tokenizer.encode(gzip.decompress(TEXT.read_bytes()).decode())
    return [token_ids[WINDOW * n : WINDOW * (n + 1)] for n in range(count)]


def perplexity(logits_of: EveryPosition, windows: Iterable[list[int]]) -> float:
    """exp of the mean negative log-likelihood of every token but the first of each window."""
    total, count = 0.0, 0
    for token_ids in windows:
        logits = logits_of(token_ids)[:-1]
        targets = torch.tensor(token_ids[1:])
        total += float(F.cross_entropy(logits, targets, reduction="sum"))
        count += len(targets)
    return math.exp(total / count)


def show(rows: list[Row]) -> None:
    table = Table(title=f"perplexity, windows of {WINDOW} tokens")
    for heading in ("precision", "perplexity", "against float32", "tokens"):
        table.add_column(heading, justify="right")
    for row in rows:
        difference = f"{row.against_float32:+.2%}"
        table.add_row(row.precision, f"{row.perplexity:.3f}", difference, f"{row.tokens:,}")
    Console().print(table)
    print(json.dumps([asdict(row) for row in rows]))


def main() -> None:
    names = ["float32", "bfloat16", "int8"]
    parser = argparse.ArgumentParser(description="What each precision costs.")
    parser.add_argument("--model", default=DEFAULT_MODEL)
    parser.add_argument("--dtype", nargs="+", default=names, choices=names)
    options = parser.parse_args()
    compile_kernels()
    checkpoint = open_checkpoint(resolve(options.model))
    text = windows(checkpoint.tokenizer())
    measured: dict[str, float] = {}
    for name in dict.fromkeys(["float32", *options.dtype]):
        measured[name] = perplexity(decoder(checkpoint, name), track(text, description=name))
    if "int8" in measured:
        plain = PlainDecoder(checkpoint, resolve_precision("int8", CPU))
        measured["int8, torch"] = perplexity(plain, track(text, description="int8, torch"))
    baseline = measured["float32"]
    tokens = sum(map(len, text))
    show([Row(name, value, value / baseline - 1, tokens) for name, value in measured.items()])


if __name__ == "__main__":
    main()
