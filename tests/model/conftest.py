"""The default model, loaded once: by us, and by transformers as the reference."""

from pathlib import Path
from typing import Any

import pytest
import torch

from model.engine import Engine
from model.native import library
from tests.model.harness import load_engine


@pytest.fixture(scope="session")
def engine(model_path: Path) -> Engine:
    """The default model in float32."""
    return load_engine(model_path)


@pytest.fixture(scope="session")
def reference(model_path: Path) -> Any:
    """transformers' own reading of the same file, in float32."""
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(
        model_path.parent, gguf_file=model_path.name, dtype=torch.float32
    ).eval()


@pytest.fixture(scope="session")
def kernels() -> Path:
    """The compiled library of model/native."""
    if reason := library.why_unavailable():
        pytest.skip(f"no compiled kernels here: {reason}")
    path = library.cached()
    assert path is not None
    return path
