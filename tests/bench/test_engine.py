"""The bare engine under a load, and the bytes that its steps must read."""

import pytest

from app.settings import EngineSettings
from bench.bare import bare_engine
from bench.engine import Bare, weights_read
from bench.figures import BenchError
from bench.load import Load
from model.loading.checkpoint import Checkpoint


def test_the_bytes_of_a_step_are_those_of_the_matrices(checkpoint: Checkpoint) -> None:
    """All weights but the norms; the tied embedding counts once, as the head."""
    matrices = sum(tensor.numel() for _, tensor in checkpoint.weights() if tensor.dim() == 2)
    assert weights_read(checkpoint.config) == matrices


def test_a_closed_loop_of_the_bare_engine() -> None:
    bare = Bare(EngineSettings(dtype="float32", kv_cache_memory="64MiB"))  # type: ignore[arg-type]
    found = bare.run(Load(5, 2, words=8, new_tokens=6, seed="bare"))
    assert (found.figures.answers, found.figures.new_tokens) == (5, 6)
    assert 8 <= found.figures.prompt_tokens <= 9
    assert found.step_ms
    assert found.step_ms > 0
    # Two sequences somewhere between the 9 positions of the first step and the 14 of the last.
    per_position = 2 * 30 * 3 * 64 * 4
    weights = weights_read(bare.config) * 4
    assert found.step_bytes
    assert weights + 2 * 9 * per_position * 0.99 <= found.step_bytes
    assert found.step_bytes <= weights + 2 * 14 * per_position * 1.01


def test_an_engine_that_cannot_load_is_said() -> None:
    with pytest.raises(BenchError, match="ended"), bare_engine({"model": "missing.gguf"}):
        pass
