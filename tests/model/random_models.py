"""Small models of every family with random weights, in shapes that the compiled kernels take."""

import random
from array import array
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor

from model.checkpoints.config import ModelConfig
from model.checkpoints.families.known import config_from_hf
from model.decoder.attention.gathered import GatheredAttention
from model.decoder.dense import DenseDecoder
from model.decoder.kv_cache import BLOCK_SIZE, KVCache
from model.decoder.runner import TorchRunner
from model.decoder.weights import Weights
from model.native.runner import NativeRunner
from model.protocol.sampling_params import SamplingParams
from model.scheduling.forward_batch import ForwardBatch
from model.scheduling.scheduler import Chunk
from model.scheduling.sequence import Sequence
from model.text.detokenizer import Detokenizer
from tests.model.harness import CPU, greedy

SMALL: dict[str, Any] = {
    "model_type": "llama",
    "vocab_size": 97,
    "hidden_size": 128,
    "intermediate_size": 192,
    "num_hidden_layers": 1,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "head_dim": 64,
    "max_position_embeddings": 256,
    "rms_norm_eps": 1e-5,
}
LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16}
YARN_FULL = YARN | {"beta_fast": 16.0, "beta_slow": 2.0, "mscale": 0.7, "mscale_all_dim": 0.4}


def heads(queries: int, keys: int, head_dim: int) -> dict[str, Any]:
    return {"num_attention_heads": queries, "num_key_value_heads": keys, "head_dim": head_dim}


def rope(**scaling: Any) -> dict[str, Any]:
    return {"rope_parameters": {"rope_theta": 5000.0} | scaling}


def config(**fields: Any) -> ModelConfig:
    return config_from_hf(SMALL | fields, name="random")


def mistral(**fields: Any) -> ModelConfig:
    return config(model_type="mistral", **fields)


def qwen2(queries: int, keys: int, **fields: Any) -> ModelConfig:
    """Its heads divide the hidden size among them."""
    return config(
        model_type="qwen2", hidden_size=64 * queries, **heads(queries, keys, 64), **fields
    )


def qwen3(**fields: Any) -> ModelConfig:
    return config(model_type="qwen3", **fields)


# Windows below and above a span of 64 positions; none is a multiple of a block.
CONFIGS = {
    "llama": config(),
    "llama tied, 4 heads to a key": config(tie_word_embeddings=True, **heads(4, 1, 16)),
    "llama biased": config(attention_bias=True, mlp_bias=True, **heads(8, 4, 32)),
    "llama multi-head": config(**heads(4, 4, 80)),
    "llama multi-query": config(**heads(8, 1, 32)),
    "llama 6 heads to a key": config(**heads(12, 2, 80)),
    "llama rope linear": config(**rope(rope_type="linear", factor=2.5)),
    "llama rope llama3": config(**rope(**LLAMA3)),
    "llama rope yarn": config(**rope(**YARN)),
    "llama rope yarn, all fields": config(**rope(**YARN_FULL)),
    "llama rope yarn, own factor": config(**rope(**YARN, attention_factor=1.3)),
    "mistral": mistral(sliding_window=None, vocab_size=128),
    "mistral sliding window": mistral(sliding_window=7, **heads(4, 4, 16)),
    "qwen2": qwen2(7, 1, tie_word_embeddings=True),
    "qwen2 sliding window in the upper layers": qwen2(
        5, 1, use_sliding_window=True, sliding_window=70, max_window_layers=1, num_hidden_layers=2
    ),
    "smollm3": config(model_type="smollm3", no_rope_layer_interval=2, **heads(4, 2, 32)),
    "qwen3": qwen3(**heads(4, 1, 128), vocab_size=33),
    "qwen3 tied, biased": qwen3(tie_word_embeddings=True, attention_bias=True, **heads(8, 8, 48)),
    "qwen3 sliding window": qwen3(
        use_sliding_window=True,
        sliding_window=51,
        max_window_layers=1,
        num_hidden_layers=2,
        **heads(10, 5, 32),
    ),
}


class RandomWeights(Weights):
    """Makes up each tensor that is asked for, and keeps them all in `made`."""

    def __init__(self, *, four_bits: bool = False) -> None:
        super().__init__([], torch.float32, CPU)
        self.made: dict[str, Tensor] = {}
        self._four_bits = four_bits
        self._generator = torch.Generator().manual_seed(7)

    def take(self, name: str, shape: tuple[int, ...]) -> Tensor:
        if len(shape) == 1:
            tensor = self._normal(shape) * 0.3 + name.endswith("norm.weight")
        elif self._four_bits:
            tensor = self._on_a_grid(*shape)
        else:
            tensor = self._normal(shape) / shape[1] ** 0.5
        self.made[name] = tensor
        return tensor

    def take_if_present(self, name: str, shape: tuple[int, ...]) -> None:
        return None

    def _on_a_grid(self, outputs: int, inputs: int) -> Tensor:
        """d * q + m, d and m for every 32 inputs, q all sixteen steps: as GGUF's Q4_1 stores it."""
        groups = (outputs, inputs // 32, 1)
        order = torch.rand((outputs, inputs // 32, 32), generator=self._generator).argsort(-1)
        step = (1 + torch.rand(groups, generator=self._generator)) * 0.2 / inputs**0.5
        start = -8 * step * (1 + 0.1 * self._normal(groups))
        return (step * (order % 16) + start).flatten(1)

    def _normal(self, shape: tuple[int, ...]) -> Tensor:
        return torch.randn(shape, generator=self._generator)


@dataclass(frozen=True)
class RandomModel:
    """A config and its tensors; `in_torch` and `native` are runners of it."""

    config: ModelConfig
    tensors: dict[str, Tensor]

    @classmethod
    def of(cls, config: ModelConfig, *, four_bits: bool = False) -> "RandomModel":
        weights = RandomWeights(four_bits=four_bits)
        DenseDecoder(config, weights)
        return cls(config, weights.made)

    def in_torch(self, blocks: int) -> TorchRunner:
        decoder = DenseDecoder(self.config, self._weights())
        cache = KVCache(self.config, blocks, torch.float32, CPU)
        return TorchRunner(decoder, GatheredAttention(self.config, cache, CPU), CPU)

    def native(
        self, kernels: Path, *, blocks: int, rows: int = 256, threads: int = 2
    ) -> NativeRunner:
        return NativeRunner(
            kernels,
            self.config,
            self._weights(),
            num_blocks=blocks,
            max_rows=rows,
            max_outputs=rows,
            max_positions=self.config.max_model_len,
            threads=threads,
        )

    def _weights(self) -> Weights:
        return Weights(self.tensors.items(), torch.float32, CPU)


def sequence(
    token_ids: list[int], block_table: list[int], params: SamplingParams | None = None
) -> Sequence:
    """A sequence whose tokens are all given, in blocks of its own."""
    wishes = params or greedy(1)
    made = Sequence(
        token_ids=list(token_ids),
        params=wishes,
        id="test",
        detokenizer=cast(Detokenizer, None),
        arrived=0.0,
    )
    made.block_table = array("i", block_table)
    return made


def random_tokens(config: ModelConfig, count: int, seed: int = 3) -> list[int]:
    source = random.Random(seed)
    return [source.randrange(config.vocab_size) for _ in range(count)]


def blocks_for(tokens: int) -> int:
    return -(-tokens // BLOCK_SIZE)


def compute(runner: NativeRunner, chunks: list[Chunk]) -> list[Tensor]:
    """The logits of every row of one step, as one tensor (count, vocabulary) for each chunk."""
    batch = ForwardBatch.of(chunks, all_logits=True)
    rows = runner.run(batch).rows.clone().split(batch.counts.tolist())
    of = dict(zip(map(id, batch.sequences), rows, strict=True))
    return [of[id(chunk.sequence)] for chunk in chunks]
