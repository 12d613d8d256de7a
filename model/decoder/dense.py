"""The pre-norm decoder of Llama (Touvron et al. 2023) and its kin, as a config describes it."""

from torch import Tensor
from torch.nn import functional as F

from model.checkpoints.config import ModelConfig
from model.decoder.attention.base import AttentionPlan
from model.decoder.layers import GatedMLP, RotaryContext, SelfAttention, take_norm
from model.decoder.linear import make_linear, take_linear
from model.decoder.rope import RotaryEmbedding
from model.decoder.weights import Weights


class DenseDecoder:
    """Embed, then per layer x + attention(norm(x)) and x + mlp(norm(x)), then norm and head."""

    def __init__(self, config: ModelConfig, weights: Weights) -> None:
        """Take all of `weights`. Raises ModelLoadError: one is missing, misshapen or left over."""
        vocab, hidden = config.vocab_size, config.hidden_size
        self._embedding = weights.take("embed.weight", (vocab, hidden))
        factors = weights.take_if_present("rope.factors", (config.head_dim // 2,))
        self._rope = RotaryEmbedding(config, weights.device, factors)
        self._layers = [DecoderLayer(config, weights, i) for i in range(config.num_layers)]
        self._norm = take_norm(config, weights, "norm", hidden)
        self._head = (
            make_linear(self._embedding, storage=weights.storage)
            if config.tie_embeddings
            else take_linear(weights, ["head"], [vocab], hidden, bias=False)
        )
        weights.expect_all_taken()

    def hidden(self, token_ids: Tensor, plan: AttentionPlan) -> Tensor:
        """Token ids (T,) -> the last layer's output (T, hidden), before the final norm."""
        x = F.embedding(token_ids, self._embedding)
        step = RotaryContext(plan, *self._rope.angles(plan.positions, x.dtype))
        for layer in self._layers:
            x = layer(x, step)
        return x

    def logits(self, hidden: Tensor) -> Tensor:
        """Rows (R, hidden) of `hidden` -> logits (R, vocabulary) in float32."""
        return self._head(self._norm(hidden)).float()


class DecoderLayer:
    """x + attention(norm(x)), then x + mlp(norm(x))."""

    def __init__(self, config: ModelConfig, weights: Weights, index: int) -> None:
        hidden = config.hidden_size
        self._attention_norm = take_norm(config, weights, f"layers.{index}.attn_norm", hidden)
        self._attention = SelfAttention(config, weights, index)
        self._mlp_norm = take_norm(config, weights, f"layers.{index}.mlp_norm", hidden)
        self._mlp = GatedMLP(config, weights, index)

    def __call__(self, x: Tensor, step: RotaryContext) -> Tensor:
        x = x + self._attention(self._attention_norm(x), step)
        return x + self._mlp(self._mlp_norm(x))
