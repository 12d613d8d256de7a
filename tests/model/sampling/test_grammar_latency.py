"""What grammars cost a batch: the default model, sixteen rows, each under a schema of its own."""

import time
from pathlib import Path
from typing import Any

import pytest

from model.engine import Engine
from model.protocol.messages import Generate
from model.protocol.sampling_params import SamplingParams
from model.text.grammar import GrammarError, json_schema
from model.text.tokenizer import Tokenizer
from tests.model.harness import load_engine
from tests.model.schemas import SCHEMAS, Schema

pytestmark = [pytest.mark.alone, pytest.mark.long, pytest.mark.timeout(900)]

ROWS = 16
TOKENS = 120
ROUNDS = 3


def endless(schema: Schema) -> Schema:
    """A list of such values that is longer than any answer here."""
    names = {"$defs", "definitions"}  # what is referred to from the root
    items = {key: value for key, value in schema.items() if key not in names}
    definitions = {key: value for key, value in schema.items() if key in names}
    return {"type": "array", "items": items, "minItems": 100} | definitions


def grammars() -> list[str]:
    """Of all schemas that may stand in a list."""
    found = []
    for schema in SCHEMAS.values():
        try:
            found.append(json_schema(endless(schema)))
        except GrammarError:
            continue
    return found


def step_seconds(engine: Engine, prompt: list[int], rows: list[str | None]) -> float:
    """The mean time of a step in which every row gets a token."""
    for index, grammar in enumerate(rows):
        fields: dict[str, Any] = {"max_tokens": TOKENS, "seed": index, "grammar": grammar}
        params = SamplingParams(**fields, temperature=1.0, ignore_eos=grammar is None)
        engine.submit(Generate(str(index), prompt, params))
    steps = []
    while engine.has_work:
        began = time.perf_counter()
        if len(engine.step().tokens) == len(rows):
            steps.append(time.perf_counter() - began)
    assert len(steps) > TOKENS // 3
    return sum(steps) / len(steps)


def test_a_batch_keeps_85_percent_of_its_pace(model_path: Path, tokenizer: Tokenizer) -> None:
    engine = load_engine(model_path, dtype="auto", max_num_seqs=ROWS)
    prompt = tokenizer.encode("Answer in JSON.\n")
    known = grammars()
    assert len(known) >= 3 * ROWS - 3
    best = []
    for group in range(3):
        rows: list[str | None] = [*known[group::3][:ROWS]]
        rows += rows[: ROWS - len(rows)]
        step_seconds(engine, prompt, rows)  # the first time, matchers are made
        ratios = [
            step_seconds(engine, prompt, [None] * ROWS) / step_seconds(engine, prompt, rows)
            for _ in range(ROUNDS)
        ]
        print(f"group {group}: {', '.join(f'{ratio:.2f}' for ratio in ratios)}")
        best.append(sorted(ratios)[ROUNDS // 2])
    print(f"with grammars {sum(best) / len(best):.2f} of the pace without")
    assert sum(best) / len(best) >= 0.85
