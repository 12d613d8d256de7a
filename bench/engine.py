"""The bare engine under the same load as the server: no HTTP, no process boundary.

    python -m bench.engine [--concurrency N ...] [--dtype D] ...     a table
    python -m bench.engine --pipe                                    one answer a line, for serve.py

With --pipe it reads one `Load` (bench/load.py) a line from stdin as JSON and answers with one
`BareRun` (bench/bare.py); the empty line asks for the memory bandwidth.
"""

import sys
import time
from statistics import median
from typing import Annotated, Any

import msgspec
import typer
from rich.console import Console
from rich.table import Table

from app.cli.options import with_options
from app.processes.engine_client import configuration
from app.settings import EngineSettings
from app.settings import load as load_settings
from bench.bandwidth import read_bandwidth
from bench.bare import BareRun
from bench.figures import Answer, BenchError, figures
from bench.load import Load
from bench.server import compile_kernels
from model.checkpoints.checkpoint import open_checkpoint
from model.checkpoints.config import ModelConfig
from model.checkpoints.hub import resolve
from model.decoder.kv_cache import BLOCK_SIZE
from model.engine import Engine
from model.process import load as load_engine
from model.protocol.messages import Generate, Ready, StepReport
from model.protocol.sampling_params import SamplingParams
from model.text.tokenizer import Tokenizer

WEIGHT_BYTES = {"float32": 4, "bfloat16": 2, "int8": 1}


class Bare:
    """One engine with what is needed to feed it and to count its bytes."""

    def __init__(self, settings: EngineSettings) -> None:
        path = resolve(settings.model)
        checkpoint = open_checkpoint(path)
        self._tokenizer: Tokenizer = checkpoint.tokenizer()
        options = configuration(settings, path)
        self.ready: Ready
        self._engine: Engine
        compile_kernels()
        self._engine, self.ready, _ = load_engine(options)
        self.config = checkpoint.config
        assumed = weights_read(self.config) * WEIGHT_BYTES[self.ready.dtype]
        self._weight_bytes = self.ready.weight_bytes or assumed
        slots = self.ready.kv_blocks_total * BLOCK_SIZE
        self._kv_bytes = options.kv_cache_bytes / slots  # of one position

    def run(self, load: Load) -> BareRun:
        """Raises BenchError when a request fails."""
        answers, steps = self._closed_loop(load)
        decodes = _decode_steps(answers, steps, load.concurrency)
        if not decodes:
            return BareRun(figures(list(answers.values())), None, None)
        seconds, positions = (median(column) for column in zip(*decodes, strict=True))
        read = self._weight_bytes + positions * self._kv_bytes
        return BareRun(figures(list(answers.values())), seconds * 1000, read)

    def _closed_loop(self, load: Load) -> tuple[dict[str, Answer], list[tuple[float, StepReport]]]:
        """As a server's streams do it: whoever is served asks again. Steps with their ends."""
        params = SamplingParams(
            max_tokens=load.new_tokens, seed=0, temperature=0.0, ignore_eos=True
        )
        prompts = [self._tokenizer.encode(prompt) for prompt in load.prompts()]
        left = iter([Generate(str(n), prompt_ids, params) for n, prompt_ids in enumerate(prompts)])
        answers: dict[str, Answer] = {}
        steps = []

        def submit() -> None:
            if command := next(left, None):
                answers[command.id] = Answer(
                    time.perf_counter(), [], len(command.prompt_ids), 0, load.new_tokens
                )
                self._engine.submit(command)

        for _ in range(load.concurrency):
            submit()
        while self._engine.has_work:
            step = self._engine.step()
            steps.append((time.perf_counter(), step))
            for end in step.finished:
                if end.reason == "error":
                    raise BenchError(f"the engine: {end.error}")
                submit()
        for when, step in steps:
            for token in step.tokens:
                answers[token.id].arrivals.append((when, 1))
        return answers, steps


def _decode_steps(
    answers: dict[str, Answer], steps: list[tuple[float, StepReport]], batch: int
) -> list[tuple[float, int]]:
    """(seconds, positions read) of each step in which the whole batch only decoded."""
    made = dict.fromkeys(answers, 0)
    found = []
    before = float("nan")
    for when, step in steps:
        ids = [token.id for token in step.tokens]
        if len(ids) == batch and all(made[i] for i in ids):
            found.append((when - before, sum(answers[i].prompt_tokens + made[i] for i in ids)))
        for i in ids:
            made[i] += 1
        before = when
    return found


def weights_read(config: ModelConfig) -> int:
    """How many weights one decode step reads: all matrices of all layers, and the head."""
    heads, kv = config.num_heads * config.head_dim, config.num_kv_heads * config.head_dim
    attention = config.hidden_size * (2 * heads + 2 * kv)
    mlp = 3 * config.hidden_size * config.intermediate_size
    return config.num_layers * (attention + mlp) + config.vocab_size * config.hidden_size


def _answer_pipe(bare: Bare) -> None:
    print(msgspec.json.encode(bare.ready).decode(), flush=True)
    for line in sys.stdin:
        answer: BareRun | dict[int, float]
        if line.strip():
            answer = bare.run(msgspec.json.decode(line, type=Load))
        else:
            answer = read_bandwidth()
        print(msgspec.json.encode(answer).decode(), flush=True)


def _show(bare: Bare, concurrency: list[int], new_tokens: int) -> None:
    ready: Ready = bare.ready
    table = Table(title=f"the bare engine: {ready.dtype} on {ready.device}, prompts of 64 words")
    for heading in ("streams", "tokens/s", "TTFT p50, ms", "decode step, ms"):
        table.add_column(heading, justify="right")
    bare.run(Load(1, new_tokens=8, seed="warm"))
    for count in concurrency:
        run = bare.run(Load(2 * count, count, new_tokens=new_tokens, seed=f"bare {count}"))
        table.add_row(
            str(count),
            f"{run.figures.tokens_per_second:.0f}",
            f"{run.figures.ttft_ms.p50:.0f}",
            f"{run.step_ms:.1f}" if run.step_ms else "-",
        )
    Console().print(table)


@with_options(EngineSettings)
def main(
    flags: dict[str, Any],
    concurrency: Annotated[list[int], typer.Option(min=1)] = [1, 8, 32, 64],  # noqa: B006
    new_tokens: Annotated[int, typer.Option(min=1)] = 128,
    pipe: Annotated[bool, typer.Option("--pipe", help="Take loads from stdin.")] = False,
) -> None:
    """How fast the bare engine is: no HTTP, no process boundary."""
    bare = Bare(load_settings(EngineSettings, flags))
    if pipe:
        _answer_pipe(bare)
    else:
        _show(bare, concurrency, new_tokens)


if __name__ == "__main__":
    typer.run(main)
