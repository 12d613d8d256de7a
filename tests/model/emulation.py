"""What model/native computes, in torch: the same quantization, written to be read, without a cache.

Every quantity that the kernels keep in 8 bits is rounded here to the very same steps and then
multiplied out in floats. The two differ only where rounding errors of float sums decide a tie.
What the steps are depends on the instructions that the kernels were compiled for.
"""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import pad, rms_norm, silu

from model.checkpoints.config import ModelConfig
from model.decoder.attention.gathered import visible
from model.decoder.rope import RotaryEmbedding, rotate
from tests.model.harness import CPU

GROUP = 64  # inputs of a product that share a scale
SPAN = 64  # positions whose softmax weights share a scale
FOUR_GROUP = 32  # inputs that share a step and a start, where weights came in 4 bits


@dataclass(frozen=True)
class Instructions:
    """Softmax weights go up to `weight_steps`; weights that came in 4 bits are either made bytes or
    have 16-bit steps and starts.
    """

    weight_steps: int
    four_bits_as_bytes: bool


INSTRUCTIONS = {"AVX-512 VNNI": Instructions(255, True), "AVX2": Instructions(127, False)}


def emulated_logits(
    config: ModelConfig, tensors: dict[str, Tensor], tokens: list[int], instructions: str
) -> Tensor:
    """Logits (T, vocabulary) of T tokens from the start of a sequence."""
    return Emulation(config, INSTRUCTIONS[instructions]).logits(tensors, tokens)


class Emulation:
    """The decoder of one configuration, as some instructions compute it."""

    def __init__(self, config: ModelConfig, instructions: Instructions) -> None:
        self.config = config
        self.instructions = instructions

    def logits(self, tensors: dict[str, Tensor], tokens: list[int]) -> Tensor:
        config = self.config
        head = self.stored(tensors["embed.weight" if config.tie_embeddings else "head.weight"])
        x = self.stored(tensors["embed.weight"])[tokens]
        cos, sin = RotaryEmbedding(config, CPU).angles(torch.arange(len(tokens)), torch.float32)
        for index in range(config.num_layers):
            prefix = f"layers.{index}."
            layer = {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}
            y = self.norm(x, layer["attn_norm.weight"])
            x = x + self.attention(y, layer, index, cos, sin)
            x = x + self.mlp(self.norm(x, layer["mlp_norm.weight"]), layer)
        return product(self.norm(x, tensors["norm.weight"]), head)

    def norm(self, x: Tensor, gains: Tensor) -> Tensor:
        return rms_norm(x, gains.shape, gains, self.config.norm_eps)

    def mlp(self, x: Tensor, layer: dict[str, Tensor]) -> Tensor:
        # The kernels keep gate and up in one matrix: it came in 4 bits if both did.
        gate, up = self.linears(x, layer, "mlp.gate", "mlp.up")
        return self.linears(silu(gate) * up, layer, "mlp.down")[0]

    def attention(
        self, x: Tensor, layer: dict[str, Tensor], index: int, cos: Tensor, sin: Tensor
    ) -> Tensor:
        query, key, value = (
            y.unflatten(-1, (-1, self.config.head_dim))
            for y in self.linears(x, layer, "attn.q", "attn.k", "attn.v")
        )
        if "attn.q_norm.weight" in layer:
            query = self.norm(query, layer["attn.q_norm.weight"])
            key = self.norm(key, layer["attn.k_norm.weight"])
        if self.config.rotates[index]:
            query, key = rotate(query, cos, sin), rotate(key, cos, sin)
        attended = self.attend(query, key, value, self.config.windows[index])
        return self.linears(attended.flatten(1), layer, "attn.o")[0]

    def attend(self, query: Tensor, key: Tensor, value: Tensor, window: int | None) -> Tensor:
        """Queries (T, H, d) over keys and values (T, KV, d), each head of each in 8 bits."""
        length, num_heads, size = query.shape
        share = num_heads // key.shape[1]
        query = eight_bits(query)
        key = eight_bits(key).repeat_interleave(share, dim=1)
        # Of the values, whole steps and their scales apart: the scales go into the weights.
        steps, scales = quantized(value)
        steps, scales = (y.repeat_interleave(share, dim=1) for y in (steps, scales))
        scores = torch.einsum("thd,jhd->htj", query.double(), key.double()).float() / size**0.5
        seen = visible(torch.arange(length), length, window)
        scores = scores.masked_fill(~seen, -torch.inf)
        p = (scores - scores.amax(-1, keepdim=True)).exp()
        weights = p * scales.squeeze(-1).T.unsqueeze(1)  # (H, T, positions)
        weights = pad(weights, (0, -length % SPAN)).unflatten(-1, (-1, SPAN))
        units = weights.amax(-1, keepdim=True) / self.instructions.weight_steps
        weights = (weights / units.clamp(min=1e-37)).round() * units
        weights = weights.flatten(-2)[..., :length]
        out = torch.einsum("htj,jhd->htd", weights.double(), steps.double()).float()
        return (out / p.sum(-1, keepdim=True)).transpose(0, 1)

    def linears(self, x: Tensor, layer: dict[str, Tensor], *names: str) -> tuple[Tensor, ...]:
        """The products of one input with several matrices, which are stored as one."""
        matrices = [layer[f"{name}.weight"] for name in names]
        y = product(x, self.stored(torch.cat(matrices)))
        if f"{names[0]}.bias" in layer:
            y = y + torch.cat([layer[f"{name}.bias"] for name in names])
        return y.split([len(matrix) for matrix in matrices], dim=-1)

    def stored(self, weight: Tensor) -> Tensor:
        """A matrix as the kernels keep it: a scale for each row; from 4 bits, if all came so."""
        groups = weight.unflatten(-1, (-1, FOUR_GROUP))
        low, high = groups.amin(-1, keepdim=True), groups.amax(-1, keepdim=True)
        places = (groups - low) * (15 / (high - low))
        q = places.round()
        if (places - q).abs().max() > 0.02:
            return eight_bits(weight)
        largest = weight.abs().amax(-1, keepdim=True).unsqueeze(-1)
        step = (high - low) / 15
        if not self.instructions.four_bits_as_bytes:
            scale = largest / 32000
            return (((step / scale).round() * q + (low / scale).round()) * scale).flatten(-2)
        # bytes = (a q + b) >> 4
        scale = largest / 126
        a = (step * (16 / scale)).round()
        b = (low * (16 / scale)).round() + 128 * 16 + 8
        return (((a * q + b).div(16, rounding_mode="floor") - 128) * scale).flatten(-2)


def product(x: Tensor, weight: Tensor) -> Tensor:
    rounded = eight_bits(x.unflatten(-1, (-1, GROUP))).flatten(-2)
    return (rounded.double() @ weight.double().T).float()


def eight_bits(x: Tensor) -> Tensor:
    steps, scale = quantized(x)
    return steps * scale


def quantized(x: Tensor) -> tuple[Tensor, Tensor]:
    """Whole steps in [-127, 127], and the size of a step for each vector of the last dimension."""
    largest = x.abs().amax(-1, keepdim=True)
    return (x * (127 / largest.clamp(min=1e-37))).round(), largest / 127
