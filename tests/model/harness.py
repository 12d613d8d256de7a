"""An engine in this process, and ways to run it to the end."""

from array import array
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

from model.checkpoints.checkpoint import Checkpoint
from model.checkpoints.config import ModelConfig
from model.decoder.attention.gathered import GatheredAttention
from model.decoder.dense import DenseDecoder
from model.decoder.kv_cache import BLOCK_SIZE, KVCache
from model.decoder.runner import TorchRunner
from model.decoder.weights import Weights
from model.engine import Engine
from model.process import load
from model.protocol.messages import Configure, Finished, Generate, Token
from model.protocol.sampling_params import SamplingParams
from model.scheduling.forward_batch import ForwardBatch
from model.scheduling.scheduler import Chunk
from model.scheduling.sequence import Sequence
from model.text.detokenizer import Detokenizer

CPU = torch.device("cpu")


def greedy(max_tokens: int, **fields: object) -> SamplingParams:
    settings = {"temperature": 0.0, "seed": 0, "ignore_eos": True} | fields
    return SamplingParams(max_tokens=max_tokens, **settings)  # type: ignore[arg-type]


def transformers_llama(config: ModelConfig) -> LlamaForCausalLM:
    """transformers' decoder of this shape, on no device: weights are given to it."""
    with torch.device("meta"):
        return LlamaForCausalLM(
            LlamaConfig(
                vocab_size=config.vocab_size,
                hidden_size=config.hidden_size,
                intermediate_size=config.intermediate_size,
                num_hidden_layers=config.num_layers,
                num_attention_heads=config.num_heads,
                num_key_value_heads=config.num_kv_heads,
                max_position_embeddings=config.max_model_len,
                rope_theta=config.rope_theta,
                rms_norm_eps=config.norm_eps,
                tie_word_embeddings=config.tie_embeddings,
            )
        )


def load_engine(path: Path, **options: object) -> Engine:
    """A float32 engine, unless the options say otherwise."""
    defaults = {
        "model_path": str(path),
        "dtype": "float32",
        "max_num_seqs": 64,
        "max_step_tokens": 512,
        "max_model_len": None,
        "kv_cache_bytes": 1 << 30,
    }
    engine, _, _ = load(Configure(**(defaults | options)))  # type: ignore[arg-type]
    return engine


def run_all(engine: Engine) -> tuple[dict[str, list[Token]], dict[str, Finished]]:
    """Step until nothing is left to do; tokens and ends by sequence id."""
    tokens: dict[str, list[Token]] = {}
    ends: dict[str, Finished] = {}
    while engine.has_work:
        step = engine.step()
        for token in step.tokens:
            tokens.setdefault(token.id, []).append(token)
        ends |= {end.id: end for end in step.finished}
    return tokens, ends


def generate(engine: Engine, prompts: list[list[int]], params: SamplingParams) -> list[list[int]]:
    """The output ids of each prompt, all served together."""
    for number, prompt_ids in enumerate(prompts):
        engine.submit(Generate(str(number), list(prompt_ids), params))
    tokens, _ = run_all(engine)
    return [[token.token_id for token in tokens[str(n)]] for n in range(len(prompts))]


class TeacherForced:
    """One sequence whose tokens are given, to see the logits that the model has for each."""

    def __init__(self, checkpoint: Checkpoint, capacity: int = 4096) -> None:
        config = checkpoint.config
        blocks = -(-capacity // BLOCK_SIZE)
        weights = Weights(checkpoint.weights(), torch.float32, CPU)
        cache = KVCache(config, blocks, torch.float32, CPU)
        self.cache = cache
        self._blocks = list(range(blocks))
        self._runner = TorchRunner(
            DenseDecoder(config, weights), GatheredAttention(config, cache, CPU), CPU
        )

    def logits(
        self,
        token_ids: list[int],
        chunks: list[int],
        before_last: Callable[[], None] = lambda: None,
    ) -> list[Tensor]:
        """Logits (vocabulary,) after each chunk, the chunks' sizes adding up to the tokens."""
        detokenizer = Detokenizer(None)  # type: ignore[arg-type]
        sequence = Sequence(
            token_ids=[], params=greedy(1), id="test", detokenizer=detokenizer, arrived=0.0
        )
        sequence.block_table = array("i", self._blocks)
        rows = []
        for number, count in enumerate(chunks, start=1):
            if number == len(chunks):
                before_last()
            start = len(sequence.token_ids)
            sequence.token_ids += token_ids[start : start + count]
            chunk = Chunk(sequence, start, count)
            rows.append(self._runner.run(ForwardBatch.of([chunk])).rows[0])
            sequence.num_computed += count
        assert len(sequence.token_ids) == len(token_ids)
        return rows
