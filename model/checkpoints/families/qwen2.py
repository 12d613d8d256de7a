"""Qwen2 (Yang et al. 2024): Llama with biases on queries, keys and values."""

from dataclasses import replace

from model.checkpoints.config import ModelConfig
from model.checkpoints.families import gguf_reader, hf_reader
from model.checkpoints.families.family import Directory, Family, GGUFFile
from model.checkpoints.fields import MAX_CONTEXT, Fields


def _from_hf(directory: Directory) -> ModelConfig:
    fields = directory.config
    # Its config has no head_dim: a key of that name means nothing.
    size = fields.integer("hidden_size") // fields.integer("num_attention_heads")
    config = hf_reader.dense(directory, "qwen2", head_dim=size)
    return replace(config, qkv_bias=True, windows=windows(fields, config.num_layers))


def windows(fields: Fields, layers: int) -> tuple[int | None, ...]:
    """The sliding window of each layer, as transformers decides it for Qwen2 and Qwen3."""
    window = None
    if fields.flag("use_sliding_window", False):
        window = fields.integer("sliding_window", 4096, high=MAX_CONTEXT)
    first = fields.integer("max_window_layers", 28, low=0)
    by_place = [window if layer >= first else None for layer in range(layers)]
    return hf_reader.windows(fields, by_place, window)


def _from_gguf(file: GGUFFile) -> ModelConfig:
    return gguf_reader.dense(file, "qwen2")


FAMILY = Family("qwen2", ("qwen2",), _from_hf, "qwen2", _from_gguf)
