"""The default model, loaded once: by us, and by transformers as the reference."""

from pathlib import Path
from typing import Any

import pytest
import torch

from model.checkpoints.checkpoint import Checkpoint
from model.checkpoints.safetensors import canonical_name
from model.engine import Engine
from model.native import library
from tests.model.harness import load_engine


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
    from transformers import LlamaConfig, LlamaForCausalLM

    config = checkpoint.config
    with torch.device("meta"):
        model = LlamaForCausalLM(
            LlamaConfig(
                vocab_size=config.vocab_size,
                hidden_size=config.hidden_size,
                intermediate_size=config.intermediate_size,
                num_hidden_layers=config.num_layers,
                num_attention_heads=config.num_heads,
                num_key_value_heads=config.num_kv_heads,
                max_position_embeddings=config.max_model_len,
                rope_theta=config.rope_theta,
                rms_norm_eps=config.norm_eps,
                tie_word_embeddings=config.tie_embeddings,
            )
        )
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
