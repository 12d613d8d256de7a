"""The bare engine under a load, and the bytes that its steps must read."""

from pathlib import Path
from statistics import median

import pytest

from app.settings import EngineSettings
from bench.bare import bare_engine
from bench.engine import Bare, weights_read
from bench.figures import BenchError
from bench.load import Load
from model.checkpoints.checkpoint import Checkpoint
from tests.tiny import HEAD, KV_HEADS, LAYERS


def test_the_bytes_of_a_step_are_those_of_the_matrices(checkpoint: Checkpoint) -> None:
    """All weights but the norms; the tied embedding counts once, as the head."""
    matrices = sum(tensor.numel() for _, tensor in checkpoint.weights() if tensor.dim() == 2)
    assert weights_read(checkpoint.config) == matrices


def test_a_closed_loop_of_the_bare_engine(tiny_model: Path) -> None:
    model, memory = str(tiny_model), "64MiB"
    bare = Bare(EngineSettings(model=model, dtype="float32", kv_cache_memory=memory))  # type: ignore[arg-type]
    load = Load(5, 2, words=8, new_tokens=6, seed="bare")
    found = bare.run(load)
    assert (found.figures.answers, found.figures.new_tokens) == (5, 6)
    prompts = [len(prompt) for prompt in load.prompts()]  # a token a byte
    assert found.figures.prompt_tokens == median(prompts)
    assert found.step_ms
    assert found.step_ms > 0
    # Two sequences somewhere between the first step of the shortest and the last of the longest.
    per_position = 2 * LAYERS * KV_HEADS * HEAD * 4
    weights = weights_read(bare.config) * 4
    assert found.step_bytes
    assert weights + 2 * (min(prompts) + 1) * per_position * 0.99 <= found.step_bytes
    assert found.step_bytes <= weights + 2 * (max(prompts) + 6) * per_position * 1.01


def test_an_engine_that_cannot_load_is_said() -> None:
    with pytest.raises(BenchError, match="ended"), bare_engine({"model": "missing.gguf"}):
        pass
