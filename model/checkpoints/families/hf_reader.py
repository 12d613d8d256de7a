"""Reads a Hugging Face config.json, in the spelling of transformers 4 or 5: what families share."""

from collections.abc import Sequence

from model.checkpoints.config import ModelConfig, RopeScaling
from model.checkpoints.families.family import Directory
from model.checkpoints.fields import MAX_CONTEXT, MAX_HEADS, MAX_LAYERS, Fields, refuse
from model.protocol.errors import ModelLoadError


def dense(
    directory: Directory,
    family: str,
    *,
    head_dim: int | None = None,
    kv_heads: int | None = None,
    rope_theta: float = 10000.0,
    ties: bool = False,
) -> ModelConfig:
    """A decoder without biases, whose layers all attend to all positions.

    The others stand for absent keys; without `kv_heads` its key must be there, and without
    `head_dim` it is the hidden size divided by the heads. Raises ModelLoadError.
    """
    fields = directory.config
    _refuse_features(fields)
    layers = fields.integer("num_hidden_layers", high=MAX_LAYERS)
    hidden_size = fields.integer("hidden_size")
    heads = fields.integer("num_attention_heads", high=MAX_HEADS)
    context = fields.integer("max_position_embeddings", high=MAX_CONTEXT)
    theta, scaling = _rope(fields, context, rope_theta)
    return ModelConfig(
        name=directory.name,
        family=family,
        vocab_size=fields.integer("vocab_size"),
        hidden_size=hidden_size,
        intermediate_size=fields.integer("intermediate_size"),
        num_layers=layers,
        num_heads=heads,
        num_kv_heads=fields.integer("num_key_value_heads", kv_heads, high=MAX_HEADS),
        head_dim=head_dim or fields.integer("head_dim", hidden_size // heads),
        norm_eps=fields.number("rms_norm_eps", 1e-6),
        max_model_len=context,
        rope_theta=theta,
        rope_scaling=scaling,
        tie_embeddings=fields.flag("tie_word_embeddings", ties),
        windows=(None,) * layers,
        rotates=(True,) * layers,
        bos_token_id=fields.token("bos_token_id"),
        # As in transformers: generation_config.json, where it names any, stands for all.
        eos_token_ids=directory.generation.tokens("eos_token_id") or fields.tokens("eos_token_id"),
    )


def _refuse_features(fields: Fields) -> None:
    if fields.get("quantization_config") is not None:
        raise ModelLoadError(
            "quantized safetensors are not implemented; take the unquantized model, or a GGUF file"
        )
    if (activation := fields.text("hidden_act", "silu")) not in ("silu", "swish"):
        refuse("the activation", activation, ["silu"])
    if fields.number("partial_rotary_factor", 1.0) != 1.0:
        raise ModelLoadError("a partial_rotary_factor other than 1 is not implemented")
    for key in ("num_experts", "num_local_experts"):
        if fields.integer(key, 0, low=0):
            raise ModelLoadError(f"mixture of experts ({key}) is not implemented")


def _rope(fields: Fields, context: int, theta: float) -> tuple[float, RopeScaling | None]:
    """The base of the rotary frequencies, and how they are scaled."""
    rope = Fields(fields.mapping("rope_scaling") or fields.mapping("rope_parameters"))
    theta = rope.number("rope_theta", fields.number("rope_theta", theta))
    if rope.number("partial_rotary_factor", 1.0) != 1.0:
        raise ModelLoadError("a partial_rotary_factor other than 1 is not implemented")
    if rope.get("full_attention") or rope.get("sliding_attention"):
        raise ModelLoadError("rope parameters that differ between layers are not implemented")
    kind = rope.text("rope_type", rope.text("type", "default"))
    original = fields.integer(
        "original_max_position_embeddings",
        rope.integer("original_max_position_embeddings", context, high=MAX_CONTEXT),
        high=MAX_CONTEXT,
    )
    match kind:
        case "default":
            return theta, None
        case "linear":
            return theta, RopeScaling("linear", rope.number("factor"))
        case "llama3":
            low, high = rope.number("low_freq_factor"), rope.number("high_freq_factor")
            if low >= high:
                raise ModelLoadError("high_freq_factor must be greater than low_freq_factor")
            return theta, RopeScaling("llama3", rope.number("factor"), original, low, high)
        case "yarn":
            return theta, RopeScaling(
                "yarn",
                rope.number("factor", context / original),
                original,
                beta_fast=rope.number("beta_fast", 32.0),
                beta_slow=rope.number("beta_slow", 1.0),
                attention_factor=rope.optional_number("attention_factor"),
                mscale=rope.optional_number("mscale"),
                mscale_all_dim=rope.optional_number("mscale_all_dim"),
                truncate=rope.flag("truncate", True),
            )
    raise ModelLoadError(
        f"rope type {kind!r:.80} is not implemented; choose default, linear, llama3, yarn"
    )


def windows(
    fields: Fields, others: Sequence[int | None], window: int | None
) -> tuple[int | None, ...]:
    """The sliding window of each layer by `layer_types`; `others` where the key is absent."""
    kinds = fields.get("layer_types")
    if kinds is None:
        return tuple(others)
    if not isinstance(kinds, list) or len(kinds) != len(others):
        raise ModelLoadError(f"layer_types must be a list of {len(others)} names")
    return tuple(_window(kind, window) for kind in kinds)


def _window(kind: object, window: int | None) -> int | None:
    if kind == "full_attention":
        return None
    if kind == "sliding_attention" and window is not None:
        return window
    raise ModelLoadError(f"layer type {kind!r:.80} is not implemented here")
