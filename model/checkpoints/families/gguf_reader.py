"""Reads the metadata of a GGUF file: what families share."""

from collections.abc import Mapping
from math import log
from typing import Any

from model.checkpoints.config import ModelConfig, RopeScaling
from model.checkpoints.families.family import GGUFFile
from model.checkpoints.fields import MAX_CONTEXT, MAX_HEADS, MAX_LAYERS, Fields
from model.protocol.errors import ModelLoadError

# Keys with which a "llama" GGUF file asks for other mathematics than ours (Granite, Grok, ...).
_UNSUPPORTED = (
    "attention.clamp_kqv",
    "attention.max_alibi_bias",
    "attention.scale",
    "attention.temperature_length",
    "attn_logit_softcapping",
    "embedding_scale",
    "expert_count",
    "final_logit_softcapping",
    "logit_scale",
    "residual_scale",
)


def dense(file: GGUFFile, family: str) -> ModelConfig:
    """Its tensors tell of biases and of a tied head. Raises ModelLoadError."""
    fields, names = file.config, file.tensor_names
    _refuse_features(fields)
    layers = fields.integer("block_count", high=MAX_LAYERS)
    hidden_size = fields.integer("embedding_length")
    heads = fields.integer("attention.head_count", high=MAX_HEADS)
    context = fields.integer("context_length", high=MAX_CONTEXT)
    window = fields.integer("attention.sliding_window", 0, low=0, high=MAX_CONTEXT) or None
    vocab_size = _vocab_size(fields, file.metadata)
    tokens = Fields(file.metadata, prefix="tokenizer.ggml.")
    ends = (tokens.token(f"{key}_token_id", vocab_size) for key in ("eos", "eot", "eom"))
    return ModelConfig(
        name=file.name,
        family=family,
        vocab_size=vocab_size,
        hidden_size=hidden_size,
        intermediate_size=fields.integer("feed_forward_length"),
        num_layers=layers,
        num_heads=heads,
        num_kv_heads=fields.integer("attention.head_count_kv", heads, high=MAX_HEADS),
        head_dim=_head_dim(fields, hidden_size, heads),
        norm_eps=fields.number("attention.layer_norm_rms_epsilon"),
        max_model_len=context,
        rope_theta=fields.number("rope.freq_base", 10000.0),
        rope_scaling=_rope_scaling(fields, context),
        tie_embeddings="output.weight" not in names,
        qkv_bias="blk.0.attn_q.bias" in names,
        o_bias="blk.0.attn_output.bias" in names,
        mlp_bias="blk.0.ffn_gate.bias" in names,
        windows=(window,) * layers,
        rotates=(True,) * layers,
        bos_token_id=tokens.token("bos_token_id", vocab_size),
        eos_token_ids=tuple(dict.fromkeys(end for end in ends if end is not None)),
    )


def _refuse_features(fields: Fields) -> None:
    for key in _UNSUPPORTED:
        if fields.get(key):
            raise ModelLoadError(f"this variant of the architecture ({key}) is not implemented")
    if not fields.flag("attention.causal", True):
        raise ModelLoadError("attention.causal is false: this is an encoder, not a decoder")


def _vocab_size(fields: Fields, metadata: Mapping[str, Any]) -> int:
    tokens = metadata.get("tokenizer.ggml.tokens")
    return fields.integer("vocab_size", len(tokens) if isinstance(tokens, list) else None)


def _head_dim(fields: Fields, hidden_size: int, heads: int) -> int:
    head_dim = fields.integer("attention.key_length", hidden_size // heads)
    if fields.integer("attention.value_length", head_dim) != head_dim:
        raise ModelLoadError("keys and values of different sizes are not implemented")
    if fields.integer("rope.dimension_count", head_dim) != head_dim:
        raise ModelLoadError("rotating only a part of each head is not implemented")
    return head_dim


def _rope_scaling(fields: Fields, context: int) -> RopeScaling | None:
    kind = fields.text("rope.scaling.type", "linear")
    # Converters write 0 for "no factor", and scale_linear is what old files call it.
    factor = fields.get("rope.scaling.factor") or fields.get("rope.scale_linear") or 1.0
    factor = Fields({"rope.scaling.factor": factor}).number("rope.scaling.factor")
    match kind:
        case "none":
            return None
        case "linear":
            return None if factor == 1.0 else RopeScaling("linear", factor)
        case "yarn":
            original = fields.integer(
                "rope.scaling.original_context_length", context, high=MAX_CONTEXT
            )
            # llama.cpp multiplies its own factor with the one of the paper.
            own = fields.number("rope.scaling.attn_factor", 1.0)
            return RopeScaling(
                "yarn",
                factor,
                original,
                beta_fast=fields.number("rope.scaling.yarn_beta_fast", 32.0),
                beta_slow=fields.number("rope.scaling.yarn_beta_slow", 1.0),
                attention_factor=own * (1.0 + 0.1 * log(factor)) if factor > 1 else own,
            )
    raise ModelLoadError(
        f"rope scaling {kind!r:.80} is not implemented; choose none, linear or yarn"
    )
