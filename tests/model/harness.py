"""An engine in this process, and ways to run it to the end."""

from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor

from model import families
from model.detokenizer import Detokenizer
from model.engine import Engine
from model.kv_cache import BLOCK_SIZE, KVCache
from model.loading.checkpoint import Checkpoint
from model.messages import Configure, Finished, Generate, Token
from model.process import load
from model.request import Request
from model.runner import TorchRunner
from model.sampling import SamplingParams
from model.scheduler import Chunk
from model.weights import Weights

CPU = torch.device("cpu")


def greedy(max_tokens: int, **fields: object) -> SamplingParams:
    settings = {"temperature": 0.0, "seed": 0, "ignore_eos": True} | fields
    return SamplingParams(max_tokens=max_tokens, **settings)  # type: ignore[arg-type]


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
    """Step until nothing is left to do; tokens and ends by request id."""
    tokens: dict[str, list[Token]] = {}
    ends: dict[str, Finished] = {}
    while engine.has_work:
        step = engine.step()
        for token in step.tokens:
            tokens.setdefault(token.id, []).append(token)
        ends |= {end.id: end for end in step.finished}
    return tokens, ends


def generate(
    engine: Engine, prompts: Sequence[list[int]], params: SamplingParams
) -> list[list[int]]:
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
        self._runner = TorchRunner(config, families.build(config, weights), cache, CPU)

    def logits(
        self,
        token_ids: Sequence[int],
        chunks: Sequence[int],
        before_last: Callable[[], None] = lambda: None,
    ) -> list[Tensor]:
        """Logits (vocabulary,) after each chunk, the chunks' sizes adding up to the tokens."""
        detokenizer = Detokenizer(None)  # type: ignore[arg-type]
        request = Request("test", [], greedy(1), detokenizer, arrived=0.0)
        request.block_table = list(self._blocks)
        rows = []
        for number, count in enumerate(chunks, start=1):
            if number == len(chunks):
                before_last()
            start = len(request.token_ids)
            request.token_ids += token_ids[start : start + count]
            rows.append(self._runner.run([Chunk(request, start, count)]).rows[0])
        assert len(request.token_ids) == len(token_ids)
        return rows
