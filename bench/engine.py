"""How fast the bare engine is on this machine: no HTTP, no process boundary.

    python -m bench.engine [--model M] [--dtype D] [--concurrency 1 8 32 64] [--tokens 64]

One row per number of sequences served together: time to first token, time per step, tokens per
second. The last line is the same as JSON.
"""

import argparse
import json
import random
import time
from dataclasses import asdict, dataclass

from rich.console import Console
from rich.progress import track
from rich.table import Table

from model.engine import Engine
from model.loading.hub import DEFAULT_MODEL, resolve
from model.messages import Configure, Generate, Ready
from model.process import load
from model.sampling import SamplingParams

PROMPT_TOKENS = 64


@dataclass(frozen=True, slots=True)
class Row:
    concurrency: int
    first_token_ms: float
    step_ms: float
    tokens_per_second: float


def measure(engine: Engine, concurrency: int, tokens: int) -> Row:
    """Serve that many random prompts together, greedy, all to the same length."""
    draw = random.Random(concurrency)
    params = SamplingParams(max_tokens=tokens, seed=0, temperature=0.0, ignore_eos=True)
    for number in range(concurrency):
        prompt = [draw.randrange(1000, 40000) for _ in range(PROMPT_TOKENS)]
        engine.submit(Generate(str(number), prompt, params))
    began = time.perf_counter()
    started: set[str] = set()
    while len(started) < concurrency:
        started |= {token.id for token in engine.step().tokens}
    first = time.perf_counter()
    steps, made = 0, 0
    while engine.has_work:
        made += len(engine.step().tokens)
        steps += 1
    seconds = time.perf_counter() - first
    return Row(concurrency, (first - began) * 1000, seconds / steps * 1000, made / seconds)


def show(rows: list[Row], ready: Ready) -> None:
    table = Table(title=f"{ready.dtype} on {ready.device}, prompts of {PROMPT_TOKENS} tokens")
    for heading in ("sequences", "all have a token, ms", "step, ms", "tokens/s"):
        table.add_column(heading, justify="right")
    for row in rows:
        table.add_row(
            str(row.concurrency),
            f"{row.first_token_ms:.0f}",
            f"{row.step_ms:.1f}",
            f"{row.tokens_per_second:.0f}",
        )
    Console().print(table)
    print(json.dumps([asdict(row) for row in rows]))


def main() -> None:
    parser = argparse.ArgumentParser(description="Speed of the bare engine.")
    parser.add_argument("--model", default=DEFAULT_MODEL)
    parser.add_argument("--dtype", default="auto", choices=["auto", "float32", "bfloat16"])
    parser.add_argument("--concurrency", type=int, nargs="+", default=[1, 8, 32, 64])
    parser.add_argument("--tokens", type=int, default=64, help="new tokens for each sequence")
    options = parser.parse_args()
    engine, ready = load(
        Configure(
            model_path=str(resolve(options.model)),
            dtype=options.dtype,
            max_num_seqs=max(options.concurrency),
            max_step_tokens=512,
            max_model_len=None,
            kv_cache_bytes=1 << 30,
        )
    )
    measure(engine, 1, 8)  # warm
    show([measure(engine, n, options.tokens) for n in track(options.concurrency)], ready)


if __name__ == "__main__":
    main()
