"""What a model is, in numbers: one shape for every family and every file format.

Reads metadata that somebody else wrote, so every look-up is typed and bounded, and whatever a model
needs that is not implemented is refused by name. Knows nothing of files and of torch.
"""

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from math import isfinite, log
from typing import Any, Literal, NoReturn, TypeVar

from model.protocol.errors import ModelLoadError

T = TypeVar("T")

RopeKind = Literal["linear", "llama3", "yarn"]

_HF_FAMILIES = {"llama": "llama", "mistral": "llama", "qwen2": "qwen2", "qwen3": "qwen3"}
_GGUF_FAMILIES = ("llama", "qwen2", "qwen3")

# Far above every real model: they only keep a hostile file from asking for absurd memory.
_MAX_LAYERS = 1024
_MAX_HEADS = 4096
_MAX_SIZE = 1 << 22
_MAX_CONTEXT = 1 << 27

# None, or -1 of signed or unsigned 32 bits: there is no such token.
_NO_TOKENS = (None, -1, 0xFFFFFFFF)

# Keys with which a "llama" GGUF file asks for other mathematics than ours (Granite, Grok, ...).
_GGUF_UNSUPPORTED = (
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


@dataclass(frozen=True, slots=True)
class RopeScaling:
    """How the rotary frequencies are stretched beyond the context of pre-training.

    `linear` uses only `factor`; `llama3` also the frequency factors and the original length;
    `yarn` the original length and everything below it. Defaults are those of transformers.
    """

    kind: RopeKind
    factor: float
    original_max_position_embeddings: int = 0
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    attention_factor: float | None = None
    mscale: float | None = None
    mscale_all_dim: float | None = None
    truncate: bool = True


@dataclass(frozen=True, slots=True)
class ModelConfig:
    """The shape of a decoder.

    `windows` has one entry per layer: with a window of W, position q sees the keys k with
    q - W < k <= q; None is full attention. `eos_token_ids` are the ids that the model file says
    end an answer; tokens that do so by their names, `Tokenizer.end_ids` has.
    """

    name: str
    family: str
    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    norm_eps: float
    max_model_len: int
    rope_theta: float
    rope_scaling: RopeScaling | None
    tie_embeddings: bool
    qkv_bias: bool
    o_bias: bool
    mlp_bias: bool
    windows: tuple[int | None, ...]
    bos_token_id: int | None
    eos_token_ids: tuple[int, ...]

    def __post_init__(self) -> None:
        if self.num_heads % self.num_kv_heads:
            raise ModelLoadError(
                f"{self.num_heads} attention heads cannot share {self.num_kv_heads} key-value heads"
            )
        if self.head_dim % 2:
            raise ModelLoadError(f"a head size of {self.head_dim} is odd, so it cannot be rotated")

    @classmethod
    def from_hf(
        cls,
        config: Mapping[str, Any],
        *,
        name: str,
        generation_config: Mapping[str, Any] | None = None,
    ) -> "ModelConfig":
        """Read a Hugging Face config.json, in the spelling of transformers 4 or 5.

        Raises:
            ModelLoadError: a value is missing or absurd, or asks for what is not implemented.
        """
        fields = _Fields(config)
        model_type = fields.text("model_type")
        if model_type not in _HF_FAMILIES:
            _refuse("model type", model_type, _HF_FAMILIES)
        _refuse_hf_features(fields)
        layers = fields.integer("num_hidden_layers", high=_MAX_LAYERS)
        hidden_size = fields.integer("hidden_size")
        heads = fields.integer("num_attention_heads", high=_MAX_HEADS)
        context = fields.integer("max_position_embeddings", high=_MAX_CONTEXT)
        # Qwen2 always has biases on q, k and v; Mistral never has any; the others say.
        attention_bias = model_type in ("llama", "qwen3") and fields.flag("attention_bias", False)
        theta, scaling = _hf_rope(fields, context)
        generation = _Fields(generation_config or {})
        return cls(
            name=name,
            family=_HF_FAMILIES[model_type],
            vocab_size=fields.integer("vocab_size"),
            hidden_size=hidden_size,
            intermediate_size=fields.integer("intermediate_size"),
            num_layers=layers,
            num_heads=heads,
            num_kv_heads=_hf_kv_heads(fields, model_type, heads),
            head_dim=_hf_head_dim(fields, model_type, hidden_size, heads),
            norm_eps=fields.number("rms_norm_eps", 1e-6),
            max_model_len=context,
            rope_theta=theta,
            rope_scaling=scaling,
            tie_embeddings=fields.flag("tie_word_embeddings", False),
            qkv_bias=attention_bias or model_type == "qwen2",
            o_bias=attention_bias,
            mlp_bias=model_type == "llama" and fields.flag("mlp_bias", False),
            windows=_hf_windows(fields, model_type, layers),
            bos_token_id=fields.token("bos_token_id"),
            # As in transformers: generation_config.json, where it names any, stands for all.
            eos_token_ids=generation.tokens("eos_token_id") or fields.tokens("eos_token_id"),
        )

    @classmethod
    def from_gguf(
        cls, metadata: Mapping[str, Any], *, name: str, tensor_names: Collection[str]
    ) -> "ModelConfig":
        """Read the metadata of a GGUF file; its tensors tell of biases and of a tied head.

        Raises:
            ModelLoadError: a value is missing or absurd, or asks for what is not implemented.
        """
        family = _Fields(metadata).text("general.architecture")
        if family not in _GGUF_FAMILIES:
            _refuse("architecture", family, _GGUF_FAMILIES)
        fields = _Fields(metadata, prefix=f"{family}.")
        _refuse_gguf_features(fields)
        layers = fields.integer("block_count", high=_MAX_LAYERS)
        hidden_size = fields.integer("embedding_length")
        heads = fields.integer("attention.head_count", high=_MAX_HEADS)
        context = fields.integer("context_length", high=_MAX_CONTEXT)
        window = fields.integer("attention.sliding_window", 0, low=0, high=_MAX_CONTEXT) or None
        vocab_size = _gguf_vocab_size(fields, metadata)
        tokens = _Fields(metadata, prefix="tokenizer.ggml.")
        ends = (tokens.token(f"{key}_token_id", vocab_size) for key in ("eos", "eot", "eom"))
        return cls(
            name=name,
            family=family,
            vocab_size=vocab_size,
            hidden_size=hidden_size,
            intermediate_size=fields.integer("feed_forward_length"),
            num_layers=layers,
            num_heads=heads,
            num_kv_heads=fields.integer("attention.head_count_kv", heads, high=_MAX_HEADS),
            head_dim=_gguf_head_dim(fields, hidden_size, heads),
            norm_eps=fields.number("attention.layer_norm_rms_epsilon"),
            max_model_len=context,
            rope_theta=fields.number("rope.freq_base", 10000.0),
            rope_scaling=_gguf_rope_scaling(fields, context),
            tie_embeddings="output.weight" not in tensor_names,
            qkv_bias="blk.0.attn_q.bias" in tensor_names,
            o_bias="blk.0.attn_output.bias" in tensor_names,
            mlp_bias="blk.0.ffn_gate.bias" in tensor_names,
            windows=(window,) * layers,
            bos_token_id=tokens.token("bos_token_id", vocab_size),
            eos_token_ids=tuple(dict.fromkeys(end for end in ends if end is not None)),
        )


class _Fields:
    """Typed look-ups in metadata that nobody has checked.

    A value of None counts as absent. Without a default, an absent value is an error.
    """

    def __init__(self, values: Mapping[str, Any], prefix: str = "") -> None:
        self._values = values
        self._prefix = prefix

    def __contains__(self, key: str) -> bool:
        return self._prefix + key in self._values

    def get(self, key: str) -> Any:
        return self._values.get(self._prefix + key)

    def integer(
        self, key: str, default: int | None = None, *, low: int = 1, high: int = _MAX_SIZE
    ) -> int:
        def valid(value: Any) -> bool:
            return type(value) is int and low <= value <= high

        return self._typed(key, default, valid, f"a whole number from {low} to {high}")

    def number(self, key: str, default: float | None = None) -> float:
        def valid(value: Any) -> bool:
            return type(value) in (int, float) and isfinite(value) and value > 0

        return float(self._typed(key, default, valid, "a positive number"))

    def optional_number(self, key: str) -> float | None:
        return None if self.get(key) is None else self.number(key)

    def flag(self, key: str, default: bool | None = None) -> bool:
        return self._typed(key, default, lambda value: type(value) is bool, "true or false")

    def text(self, key: str, default: str | None = None) -> str:
        return self._typed(key, default, lambda value: type(value) is str, "a string")

    def token(self, key: str, vocab_size: int = _MAX_SIZE + 1) -> int | None:
        if self.get(key) in _NO_TOKENS:
            return None
        return self.integer(key, low=0, high=vocab_size - 1)

    def tokens(self, key: str) -> tuple[int, ...]:
        """The token ids under a key that may hold none, one, or a list of them."""
        value = self.get(key)
        ids = value if isinstance(value, list) else [] if value is None else [value]
        ends = (_Fields({key: item}).token(key) for item in ids)
        return tuple(end for end in ends if end is not None)

    def mapping(self, key: str) -> dict[str, Any]:
        return self._typed(key, {}, lambda value: isinstance(value, dict), "an object")

    def _typed(self, key: str, default: T | None, valid: Callable[[Any], bool], wanted: str) -> T:
        value = self.get(key)
        if value is None:
            value = default
        if value is None:
            raise ModelLoadError(f"the model does not say its {self._prefix}{key}")
        if not valid(value):
            raise ModelLoadError(f"{self._prefix}{key} must be {wanted}, not {value!r:.80}")
        return value  # type: ignore[no-any-return]


def _refuse(what: str, value: object, accepted: Collection[str]) -> NoReturn:
    raise ModelLoadError(f"{what} {value!r:.80} is not implemented; choose {', '.join(accepted)}")


def _refuse_hf_features(fields: _Fields) -> None:
    if fields.get("quantization_config") is not None:
        raise ModelLoadError(
            "quantized safetensors are not implemented; take the unquantized model, or a GGUF file"
        )
    if (activation := fields.text("hidden_act", "silu")) not in ("silu", "swish"):
        _refuse("the activation", activation, ["silu"])
    if fields.number("partial_rotary_factor", 1.0) != 1.0:
        raise ModelLoadError("a partial_rotary_factor other than 1 is not implemented")
    for key in ("num_experts", "num_local_experts"):
        if fields.integer(key, 0, low=0):
            raise ModelLoadError(f"mixture of experts ({key}) is not implemented")


def _hf_kv_heads(fields: _Fields, model_type: str, heads: int) -> int:
    # Without the key transformers assumes 8 or 32 for the other types: better to refuse.
    default = heads if model_type == "llama" else None
    return fields.integer("num_key_value_heads", default, high=_MAX_HEADS)


def _hf_head_dim(fields: _Fields, model_type: str, hidden_size: int, heads: int) -> int:
    if model_type == "qwen2":  # has no head_dim of its own
        return hidden_size // heads
    default = 128 if model_type == "qwen3" else hidden_size // heads
    return fields.integer("head_dim", default)


def _hf_rope(fields: _Fields, context: int) -> tuple[float, RopeScaling | None]:
    """The base of the rotary frequencies, and how they are scaled."""
    rope = _Fields(fields.mapping("rope_scaling") or fields.mapping("rope_parameters"))
    theta = rope.number("rope_theta", fields.number("rope_theta", 10000.0))
    if rope.number("partial_rotary_factor", 1.0) != 1.0:
        raise ModelLoadError("a partial_rotary_factor other than 1 is not implemented")
    if rope.get("full_attention") or rope.get("sliding_attention"):
        raise ModelLoadError("rope parameters that differ between layers are not implemented")
    kind = rope.text("rope_type", rope.text("type", "default"))
    original = fields.integer(
        "original_max_position_embeddings",
        rope.integer("original_max_position_embeddings", context, high=_MAX_CONTEXT),
        high=_MAX_CONTEXT,
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


def _hf_windows(fields: _Fields, model_type: str, layers: int) -> tuple[int | None, ...]:
    """The sliding window of each layer, as transformers decides it for each model type."""
    match model_type:
        case "llama":
            return (None,) * layers
        case "mistral":
            # An absent key means 4096 there, and only an explicit null means full attention.
            if "sliding_window" in fields and fields.get("sliding_window") is None:
                return (None,) * layers
            return (fields.integer("sliding_window", 4096, high=_MAX_CONTEXT),) * layers
    window = None
    if fields.flag("use_sliding_window", False):
        window = fields.integer("sliding_window", 4096, high=_MAX_CONTEXT)
    first = fields.integer("max_window_layers", 28, low=0)
    kinds = fields.get("layer_types")
    if kinds is None:
        return tuple(window if layer >= first else None for layer in range(layers))
    if not isinstance(kinds, list) or len(kinds) != layers:
        raise ModelLoadError(f"layer_types must be a list of {layers} names")
    return tuple(_hf_window(kind, window) for kind in kinds)


def _hf_window(kind: object, window: int | None) -> int | None:
    if kind == "full_attention":
        return None
    if kind == "sliding_attention" and window is not None:
        return window
    raise ModelLoadError(f"layer type {kind!r:.80} is not implemented here")


def _refuse_gguf_features(fields: _Fields) -> None:
    for key in _GGUF_UNSUPPORTED:
        if fields.get(key):
            raise ModelLoadError(f"this variant of the architecture ({key}) is not implemented")
    if not fields.flag("attention.causal", True):
        raise ModelLoadError("attention.causal is false: this is an encoder, not a decoder")


def _gguf_vocab_size(fields: _Fields, metadata: Mapping[str, Any]) -> int:
    tokens = metadata.get("tokenizer.ggml.tokens")
    return fields.integer("vocab_size", len(tokens) if isinstance(tokens, list) else None)


def _gguf_head_dim(fields: _Fields, hidden_size: int, heads: int) -> int:
    head_dim = fields.integer("attention.key_length", hidden_size // heads)
    if fields.integer("attention.value_length", head_dim) != head_dim:
        raise ModelLoadError("keys and values of different sizes are not implemented")
    if fields.integer("rope.dimension_count", head_dim) != head_dim:
        raise ModelLoadError("rotating only a part of each head is not implemented")
    return head_dim


def _gguf_rope_scaling(fields: _Fields, context: int) -> RopeScaling | None:
    kind = fields.text("rope.scaling.type", "linear")
    # Converters write 0 for "no factor", and scale_linear is what old files call it.
    factor = fields.get("rope.scaling.factor") or fields.get("rope.scale_linear") or 1.0
    factor = _Fields({"rope.scaling.factor": factor}).number("rope.scaling.factor")
    match kind:
        case "none":
            return None
        case "linear":
            return None if factor == 1.0 else RopeScaling("linear", factor)
        case "yarn":
            original = fields.integer(
                "rope.scaling.original_context_length", context, high=_MAX_CONTEXT
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
