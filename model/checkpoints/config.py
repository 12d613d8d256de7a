"""What a model is, in numbers: one shape for every family and every file format.

A decoder is built from these alone, so whatever sets two families apart is a field here.
"""

from dataclasses import dataclass
from typing import Literal

from model.protocol.errors import ModelLoadError

RopeKind = Literal["linear", "llama3", "yarn"]


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
    """The shape of a decoder, and all that sets its mathematics apart from another's."""

    name: str
    family: str  # only to be shown: no mathematics follows from it
    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    norm_eps: float
    max_model_len: int  # tokens
    rope_theta: float
    rope_scaling: RopeScaling | None
    tie_embeddings: bool  # whether the head is the embedding
    # One entry a layer. With a window of W, position q sees the keys k with q - W < k <= q; None
    # is full attention.
    windows: tuple[int | None, ...]
    rotates: tuple[bool, ...]  # one entry a layer: whether it has rotary positions
    bos_token_id: int | None
    # Those that the model file names; those that end by their names, `Tokenizer.end_ids` has.
    eos_token_ids: tuple[int, ...]
    qkv_bias: bool = False
    o_bias: bool = False
    mlp_bias: bool = False
    head_norms: bool = False  # whether every head's query and key pass an RMS norm of their own

    def __post_init__(self) -> None:
        if self.num_heads % self.num_kv_heads:
            raise ModelLoadError(
                f"{self.num_heads} attention heads cannot share {self.num_kv_heads} key-value heads"
            )
        if self.head_dim % 2:
            raise ModelLoadError(f"a head size of {self.head_dim} is odd, so it cannot be rotated")
