"""ModelConfig against the configuration classes of transformers, and against nonsense."""

from typing import Any

import pytest
from transformers import LlamaConfig, MistralConfig, PreTrainedConfig, Qwen2Config, Qwen3Config

from model.checkpoints.config import ModelConfig, RopeScaling
from model.checkpoints.families.known import config_from_gguf, config_from_hf
from model.protocol.errors import ModelLoadError

SIZES: dict[str, Any] = {
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
}
HF: dict[str, Any] = {"model_type": "llama", "rope_theta": 5000.0, **SIZES}
GGUF: dict[str, Any] = {
    "general.architecture": "llama",
    "llama.block_count": 2,
    "llama.context_length": 256,
    "llama.embedding_length": 32,
    "llama.feed_forward_length": 48,
    "llama.attention.head_count": 4,
    "llama.attention.head_count_kv": 2,
    "llama.attention.layer_norm_rms_epsilon": 1e-5,
    "llama.vocab_size": 64,
}
LLAMA3 = {
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}


def from_hf(config: dict[str, Any], **generation: Any) -> ModelConfig:
    return config_from_hf(config, name="tiny", generation_config=generation)


def from_gguf(metadata: dict[str, Any], *tensors: str) -> ModelConfig:
    return config_from_gguf(metadata, name="tiny", tensor_names=tensors)


@pytest.mark.parametrize(
    ("theirs", "family", "head_dim", "flags"),
    [
        (LlamaConfig(**SIZES), "llama", 8, (False, False, False)),
        (
            LlamaConfig(**SIZES, head_dim=6, attention_bias=True, mlp_bias=True),
            "llama",
            6,
            (True, True, True),
        ),
        (MistralConfig(**SIZES, head_dim=16), "llama", 16, (False, False, False)),
        (Qwen2Config(**SIZES), "qwen2", 8, (True, False, False)),
        (Qwen3Config(**SIZES, head_dim=10), "qwen3", 10, (False, False, False)),
        (Qwen3Config(**SIZES, attention_bias=True), "qwen3", 128, (True, True, False)),
    ],
)
def test_reads_what_transformers_writes(
    theirs: PreTrainedConfig, family: str, head_dim: int, flags: tuple[bool, ...]
) -> None:
    ours = from_hf(theirs.to_dict())
    assert (ours.family, ours.head_dim) == (family, head_dim)
    assert (ours.qkv_bias, ours.o_bias, ours.mlp_bias) == flags
    assert (ours.vocab_size, ours.hidden_size, ours.intermediate_size) == (64, 32, 48)
    assert (ours.num_layers, ours.num_heads, ours.num_kv_heads) == (4, 4, 2)
    assert (ours.max_model_len, ours.rope_theta, ours.rope_scaling) == (256, 10000.0, None)
    assert not ours.tie_embeddings


@pytest.mark.parametrize(
    ("theirs", "windows"),
    [
        (LlamaConfig(**SIZES), (None,) * 4),
        (MistralConfig(**SIZES), (4096,) * 4),
        (MistralConfig(**SIZES, sliding_window=None), (None,) * 4),
        (Qwen2Config(**SIZES, sliding_window=8), (None,) * 4),
        (
            Qwen2Config(**SIZES, use_sliding_window=True, sliding_window=8, max_window_layers=3),
            (None, None, None, 8),
        ),
        (
            Qwen3Config(
                **SIZES,
                use_sliding_window=True,
                sliding_window=8,
                layer_types=["sliding_attention", "full_attention"] * 2,
            ),
            (8, None, 8, None),
        ),
    ],
)
def test_windows_are_those_of_transformers(
    theirs: PreTrainedConfig, windows: tuple[int | None, ...]
) -> None:
    assert from_hf(theirs.to_dict()).windows == windows


def test_an_absent_mistral_window_is_the_default_of_transformers() -> None:
    assert from_hf({**HF, "model_type": "mistral"}).windows == (4096,) * 4


@pytest.mark.parametrize("key", ["rope_scaling", "rope_parameters"])
@pytest.mark.parametrize("type_key", ["type", "rope_type"])
@pytest.mark.parametrize(
    ("scaling", "expected"),
    [
        ({"type": "default"}, None),
        ({"type": "linear", "factor": 2}, RopeScaling("linear", 2.0)),
        ({"type": "llama3", **LLAMA3}, RopeScaling("llama3", 8.0, 64, 1.0, 4.0)),
        ({"type": "yarn", "factor": 4.0}, RopeScaling("yarn", 4.0, 256)),
        (
            {"type": "yarn", "original_max_position_embeddings": 64, "truncate": False},
            RopeScaling("yarn", 4.0, 64, truncate=False),
        ),
    ],
)
def test_rope_in_every_spelling(
    key: str, type_key: str, scaling: dict[str, Any], expected: RopeScaling | None
) -> None:
    scaling = {type_key: scaling["type"], **{k: v for k, v in scaling.items() if k != "type"}}
    ours = from_hf({**HF, key: scaling})
    assert ours.rope_scaling == expected
    assert ours.rope_theta == 5000.0


def test_theta_inside_the_rope_parameters_comes_first() -> None:
    assert from_hf({**HF, "rope_parameters": {"rope_theta": 7.0}}).rope_theta == 7.0


def test_the_generation_config_decides_what_ends_an_answer() -> None:
    assert from_hf({**HF, "eos_token_id": 2}).eos_token_ids == (2,)
    assert from_hf({**HF, "eos_token_id": [2, 3]}).eos_token_ids == (2, 3)
    assert from_hf({**HF, "eos_token_id": 2}, eos_token_id=[5, 2]).eos_token_ids == (5, 2)
    assert from_hf(HF).eos_token_ids == ()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model_type": "gemma3"}, "gemma3"),
        ({"model_type": "qwen2_moe"}, "qwen2_moe"),
        ({"model_type": None}, "model_type"),
        ({"hidden_act": "gelu"}, "gelu"),
        ({"rope_scaling": {"type": "longrope"}}, "longrope"),
        ({"rope_scaling": {"type": "dynamic", "factor": 2.0}}, "dynamic"),
        ({"rope_scaling": {"type": "linear"}}, "factor"),
        ({"rope_scaling": {"type": "llama3", **LLAMA3, "low_freq_factor": 9.0}}, "high_freq"),
        ({"rope_scaling": "linear"}, "rope_scaling"),
        ({"rope_parameters": {"full_attention": {"rope_theta": 1.0}}}, "between layers"),
        ({"rope_parameters": {"partial_rotary_factor": 0.5}}, "partial_rotary_factor"),
        ({"partial_rotary_factor": 0.5}, "partial_rotary_factor"),
        ({"quantization_config": {"quant_method": "gptq"}}, "quantized"),
        ({"num_local_experts": 8}, "experts"),
        ({"hidden_size": None}, "hidden_size"),
        ({"hidden_size": -1}, "hidden_size"),
        ({"hidden_size": 1 << 60}, "hidden_size"),
        ({"hidden_size": 32.0}, "hidden_size"),
        ({"hidden_size": True}, "hidden_size"),
        ({"num_hidden_layers": 10**9}, "num_hidden_layers"),
        ({"num_key_value_heads": 3}, "heads"),
        ({"head_dim": 7}, "odd"),
        ({"rms_norm_eps": float("nan")}, "rms_norm_eps"),
        ({"rope_theta": 0}, "rope_theta"),
        ({"tie_word_embeddings": "yes"}, "tie_word_embeddings"),
        ({"eos_token_id": ["x"]}, "eos_token_id"),
        ({"model_type": "qwen3", "layer_types": ["full_attention"]}, "layer_types"),
        ({"model_type": "qwen3", "layer_types": ["chunked"] * 4}, "chunked"),
        ({"model_type": "qwen3", "layer_types": ["sliding_attention"] * 4}, "sliding"),
        ({"model_type": "qwen2", "num_key_value_heads": None}, "num_key_value_heads"),
    ],
)
def test_refuses_what_it_cannot_serve(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ModelLoadError, match=message) as raised:
        from_hf({**HF, **change})
    assert "\n" not in str(raised.value)


def test_gguf_metadata() -> None:
    metadata = {**GGUF, "tokenizer.ggml.eos_token_id": 2, "tokenizer.ggml.eot_token_id": 5}
    ours = from_gguf(metadata, "output.weight", "blk.0.attn_q.bias")
    assert (ours.head_dim, ours.num_layers, ours.norm_eps) == (8, 2, 1e-5)
    assert (ours.tie_embeddings, ours.qkv_bias, ours.o_bias, ours.mlp_bias) == (
        False,
        True,
        False,
        False,
    )
    assert ours.eos_token_ids == (2, 5)
    assert ours.windows == (None, None)
    assert from_gguf(GGUF).tie_embeddings


def test_no_token_in_the_spellings_of_32_bits() -> None:
    none = {f"tokenizer.ggml.{key}_token_id": 0xFFFFFFFF for key in ("bos", "eos", "eot", "eom")}
    ours = from_gguf({**GGUF, **none})
    assert ours.bos_token_id is None
    assert ours.eos_token_ids == ()
    assert from_hf({**HF, "eos_token_id": -1, "bos_token_id": -1}).eos_token_ids == ()
    assert from_hf(HF, eos_token_id=[2, -1]).eos_token_ids == (2,)


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({}, None),
        ({"llama.rope.scaling.type": "none", "llama.rope.scaling.factor": 2.0}, None),
        ({"llama.rope.scaling.factor": 0.0}, None),
        ({"llama.rope.scaling.factor": 2.0}, RopeScaling("linear", 2.0)),
        ({"llama.rope.scale_linear": 2.0}, RopeScaling("linear", 2.0)),
        (
            {
                "llama.rope.scaling.type": "yarn",
                "llama.rope.scaling.factor": 1.0,
                "llama.rope.scaling.original_context_length": 64,
            },
            RopeScaling("yarn", 1.0, 64, attention_factor=1.0),
        ),
    ],
)
def test_gguf_rope_scaling(change: dict[str, Any], expected: RopeScaling | None) -> None:
    assert from_gguf({**GGUF, **change}).rope_scaling == expected


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"general.architecture": "gemma3"}, "gemma3"),
        ({"llama.expert_count": 8}, "expert_count"),
        ({"llama.logit_scale": 0.5}, "logit_scale"),
        ({"llama.attention.causal": False}, "encoder"),
        ({"llama.rope.scaling.type": "longrope"}, "longrope"),
        ({"llama.rope.dimension_count": 4}, "part"),
        ({"llama.attention.value_length": 4}, "sizes"),
        ({"llama.attention.head_count_kv": [2, 2]}, "head_count_kv"),
        ({"llama.block_count": 1 << 31}, "block_count"),
        ({"llama.vocab_size": None}, "vocab_size"),
        ({"tokenizer.ggml.bos_token_id": 1 << 20}, "bos_token_id must be .* to"),
        ({"tokenizer.ggml.eos_token_id": 1 << 20}, "eos_token_id must be .* to"),
        ({"tokenizer.ggml.eos_token_id": "x"}, "eos_token_id"),
    ],
)
def test_refuses_gguf_metadata(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ModelLoadError, match=message):
        from_gguf({**GGUF, **change})


def test_which_layers_of_smollm3_rotate() -> None:
    every_fourth = (True, True, True, False)
    smollm3 = {**HF, "model_type": "smollm3", "num_hidden_layers": 8}
    assert from_hf(smollm3).rotates == every_fourth * 2
    assert from_hf({**smollm3, "no_rope_layers": [0, 1] * 4}).rotates == (False, True) * 4
    assert from_hf(smollm3).tie_embeddings
    assert all(from_hf(HF).rotates)
    for wrong in ([1, 0], [2] * 8, ["1"] * 8, "11111111"):
        with pytest.raises(ModelLoadError, match="no_rope_layers"):
            from_hf({**smollm3, "no_rope_layers": wrong})
    gguf = {key.replace("llama.", "smollm3."): value for key, value in GGUF.items()}
    gguf |= {"general.architecture": "smollm3", "smollm3.block_count": 4}
    assert from_gguf(gguf).rotates == every_fourth
