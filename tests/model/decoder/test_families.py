"""Every family on tiny random configs: the logits are those of transformers."""

import random
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    PreTrainedModel,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
    SmolLM3Config,
    SmolLM3ForCausalLM,
)

from model.checkpoints.checkpoint import open_checkpoint
from tests.model.harness import TeacherForced

VOCAB = 97
LENGTH = 48
TINY: dict[str, Any] = {
    "vocab_size": VOCAB,
    "hidden_size": 48,
    "intermediate_size": 80,
    "num_hidden_layers": 3,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16}
YARN_FULL = YARN | {"beta_fast": 16.0, "beta_slow": 2.0, "mscale": 0.7, "mscale_all_dim": 0.4}


def rope(**scaling: Any) -> dict[str, Any]:
    return {"rope_parameters": {"rope_theta": 5000.0} | scaling}


def llama(**fields: Any) -> PreTrainedModel:
    return LlamaForCausalLM(LlamaConfig(**(TINY | fields)))


def mistral(**fields: Any) -> PreTrainedModel:
    return MistralForCausalLM(MistralConfig(**(TINY | fields)))


def qwen2(**fields: Any) -> PreTrainedModel:
    return Qwen2ForCausalLM(Qwen2Config(**(TINY | fields)))


def qwen3(**fields: Any) -> PreTrainedModel:
    return Qwen3ForCausalLM(Qwen3Config(**(TINY | {"head_dim": 20} | fields)))


def smollm3(**fields: Any) -> PreTrainedModel:
    return SmolLM3ForCausalLM(SmolLM3Config(**(TINY | {"pad_token_id": 0} | fields)))


MODELS = {
    "llama": lambda: llama(tie_word_embeddings=False),
    "llama tied": lambda: llama(tie_word_embeddings=True),
    "llama biased": lambda: llama(attention_bias=True, mlp_bias=True),
    "llama multi-head": lambda: llama(num_key_value_heads=6),
    "llama multi-query": lambda: llama(num_key_value_heads=1),
    "llama own head size": lambda: llama(head_dim=32),
    "llama rope linear": lambda: llama(**rope(rope_type="linear", factor=2.5)),
    "llama rope llama3": lambda: llama(**rope(**LLAMA3)),
    "llama rope yarn": lambda: llama(**rope(**YARN)),
    "llama rope yarn, all fields": lambda: llama(**rope(**YARN_FULL)),
    "llama rope yarn, own factor": lambda: llama(**rope(**YARN, attention_factor=1.3)),
    "mistral": lambda: mistral(sliding_window=None),
    "mistral sliding window": lambda: mistral(sliding_window=7),
    "qwen2": lambda: qwen2(tie_word_embeddings=True),
    "qwen2 sliding window in the upper layers": lambda: qwen2(
        use_sliding_window=True, sliding_window=9, max_window_layers=1
    ),
    "qwen3": lambda: qwen3(tie_word_embeddings=False),
    "qwen3 tied, biased": lambda: qwen3(tie_word_embeddings=True, attention_bias=True),
    "qwen3 sliding window": lambda: qwen3(
        use_sliding_window=True, sliding_window=11, max_window_layers=2
    ),
    "smollm3": lambda: smollm3(num_hidden_layers=5),
    "smollm3 own layers, biased": lambda: smollm3(
        no_rope_layers=[0, 1, 0], attention_bias=True, mlp_bias=True, tie_word_embeddings=False
    ),
    "smollm3 sliding window": lambda: smollm3(
        no_rope_layer_interval=2, use_sliding_window=True, sliding_window=9
    ),
}


def randomized(model: PreTrainedModel) -> PreTrainedModel:
    """Every parameter random: as made, norms are all ones and biases all zeros, and hide errors."""
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for parameter in model.parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            parameter.copy_(noise * 0.3 + (parameter.dim() == 1))
    return model.eval()


@pytest.mark.parametrize("name", MODELS)
def test_logits_equal_transformers(name: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = randomized(MODELS[name]())
    model.save_pretrained(tmp_path)
    token_ids = [random.Random(3).randrange(VOCAB) for _ in range(LENGTH)]
    with torch.inference_mode():
        expected = model(torch.tensor([token_ids])).logits[0]
    assert expected.std() > 0.1, "logits that hardly differ would prove nothing"
    ours = TeacherForced(open_checkpoint(tmp_path))

    one_by_one = ours.logits(token_ids, [1] * LENGTH)
    torch.testing.assert_close(torch.stack(one_by_one), expected, atol=1e-4, rtol=0)
    whole = ours.logits(token_ids, [LENGTH])
    torch.testing.assert_close(whole[0], expected[-1], atol=1e-4, rtol=0)
    chunked = ours.logits(token_ids, [13, 1, 20, LENGTH - 34])
    torch.testing.assert_close(torch.stack(chunked), expected[[12, 13, 33, -1]], atol=1e-4, rtol=0)
