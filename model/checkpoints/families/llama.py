"""Llama (Touvron et al. 2023), and with it Mistral and SmolLM2: the pre-norm decoder."""

from dataclasses import replace

from model.checkpoints.config import ModelConfig
from model.checkpoints.families import gguf_reader, hf_reader
from model.checkpoints.families.family import Directory, Family, GGUFFile
from model.checkpoints.fields import MAX_CONTEXT


def _from_hf(directory: Directory) -> ModelConfig:
    fields = directory.config
    if fields.text("model_type") == "mistral":
        return _mistral(directory)
    heads = fields.integer("num_attention_heads")
    bias = fields.flag("attention_bias", False)
    return replace(
        hf_reader.dense(directory, "llama", kv_heads=heads),
        qkv_bias=bias,
        o_bias=bias,
        mlp_bias=fields.flag("mlp_bias", False),
    )


def _mistral(directory: Directory) -> ModelConfig:
    """Sliding windows (Jiang et al. 2023, section 2), and never any bias."""
    config, fields = hf_reader.dense(directory, "llama"), directory.config
    # An absent key means 4096 there, and only an explicit null means full attention.
    if "sliding_window" in fields and fields.get("sliding_window") is None:
        return config
    window = fields.integer("sliding_window", 4096, high=MAX_CONTEXT)
    return replace(config, windows=(window,) * config.num_layers)


def _from_gguf(file: GGUFFile) -> ModelConfig:
    return gguf_reader.dense(file, "llama")


FAMILY = Family("llama", ("llama", "mistral"), _from_hf, "llama", _from_gguf, gguf_interleaves=True)
