"""Qwen3 (Yang et al. 2025): Llama with a norm on every head's query and key."""

from dataclasses import replace

from model.checkpoints.config import ModelConfig
from model.checkpoints.families import gguf_reader, hf_reader, qwen2
from model.checkpoints.families.family import Directory, Family, GGUFFile


def _from_hf(directory: Directory) -> ModelConfig:
    fields = directory.config
    config = hf_reader.dense(directory, "qwen3", head_dim=fields.integer("head_dim", 128))
    bias = fields.flag("attention_bias", False)
    windows = qwen2.windows(fields, config.num_layers)
    return replace(config, qkv_bias=bias, o_bias=bias, windows=windows, head_norms=True)


def _from_gguf(file: GGUFFile) -> ModelConfig:
    return replace(gguf_reader.dense(file, "qwen3"), head_norms=True)


FAMILY = Family("qwen3", ("qwen3",), _from_hf, "qwen3", _from_gguf)
