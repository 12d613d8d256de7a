"""The default model, loaded once: by us, and by transformers as the reference."""

from pathlib import Path
from typing import Any

import pytest

from model.checkpoints.checkpoint import Checkpoint
from model.checkpoints.safetensors import canonical_name
from model.engine import Engine
from model.native import library
from tests.model.harness import load_engine, transformers_llama


@pytest.fixture(scope="session")
def engine(model_path: Path) -> Engine:
    """The default model in float32."""
    return load_engine(model_path)


@pytest.fixture(scope="session")
def reference(checkpoint: Checkpoint) -> Any:
    """transformers' decoder with the same weights, in float32.

    Its own reading of the file takes a minute; tests/model/checkpoints/test_gguf.py compares the
    weights and the config with that.
    """
    config = checkpoint.config
    model = transformers_llama(config)
    weights = dict(checkpoint.weights())
    names = {key: canonical_name(key) or "" for key in model.state_dict()}
    tied = {"head.weight": weights["embed.weight"]} if config.tie_embeddings else {}
    state = {key: (weights | tied)[name] for key, name in names.items()}
    model.load_state_dict(state, assign=True)
    # A buffer that follows from the config was made on no device.
    model.model.rotary_emb = type(model.model.rotary_emb)(model.config)
    return model.eval()


@pytest.fixture(scope="session")
def kernels() -> Path:
    """The compiled library of model/native."""
    if reason := library.why_unavailable():
        pytest.skip(f"no compiled kernels here: {reason}")
    path = library.cached()
    assert path is not None
    return path
