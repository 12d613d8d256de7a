"""SmolLM3 (Bakouch et al. 2025): Llama, but every fourth layer does not rotate (NoPE)."""

from dataclasses import replace

from model.checkpoints.config import ModelConfig
from model.checkpoints.families import gguf_reader, hf_reader
from model.checkpoints.families.family import Directory, Family, GGUFFile
from model.checkpoints.fields import MAX_CONTEXT, MAX_LAYERS, Fields
from model.protocol.errors import ModelLoadError

_INTERVAL = 4  # where the file does not say it; GGUF files never do


def _from_hf(directory: Directory) -> ModelConfig:
    fields = directory.config
    heads = fields.integer("num_attention_heads")
    config = hf_reader.dense(
        directory, "smollm3", kv_heads=heads, rope_theta=2_000_000.0, ties=True
    )
    rotates = _rotates(fields, config.num_layers)
    window = None
    if fields.flag("use_sliding_window", False) and fields.get("sliding_window") is not None:
        window = fields.integer("sliding_window", high=MAX_CONTEXT)
    by_place = [None if rotating else window for rotating in rotates]
    bias = fields.flag("attention_bias", False)
    return replace(
        config,
        qkv_bias=bias,
        o_bias=bias,
        mlp_bias=fields.flag("mlp_bias", False),
        windows=hf_reader.windows(fields, by_place, window),
        rotates=rotates,
    )


def _rotates(fields: Fields, layers: int) -> tuple[bool, ...]:
    """`no_rope_layers` has 1 for a layer that rotates."""
    flags = fields.get("no_rope_layers")
    if flags is None:
        return _by_interval(
            layers, fields.integer("no_rope_layer_interval", _INTERVAL, high=MAX_LAYERS)
        )
    if (
        not isinstance(flags, list)
        or len(flags) < layers
        or any(type(flag) is not int or flag not in (0, 1) for flag in flags)
    ):
        raise ModelLoadError(f"no_rope_layers must be a list of {layers} times 0 or 1")
    return tuple(flag == 1 for flag in flags[:layers])


def _by_interval(layers: int, interval: int) -> tuple[bool, ...]:
    return tuple((layer + 1) % interval != 0 for layer in range(layers))


def _from_gguf(file: GGUFFile) -> ModelConfig:
    config = gguf_reader.dense(file, "smollm3")
    return replace(config, rotates=_by_interval(config.num_layers, _INTERVAL))


FAMILY = Family("smollm3", ("smollm3",), _from_hf, "smollm3", _from_gguf, gguf_interleaves=True)
