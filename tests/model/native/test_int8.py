"""The default model on the compiled kernels: near float32, the same tokens in any batch."""

import math
from collections.abc import Iterable
from pathlib import Path
from pydoc_data.topics import topics

import pytest
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from model.backends import NativeBackend, Sizes, TorchBackend
from model.checkpoints.checkpoint import Checkpoint
from model.decoder.kv_cache import BLOCK_SIZE
from model.decoder.linear import resolve_precision
from model.engine import Engine
from model.native.runner import NativeRunner
from model.protocol.messages import Generate
from model.scheduling.block_pool import BlockPool
from model.scheduling.forward_batch import ForwardBatch
from model.scheduling.scheduler import Chunk, Scheduler
from model.text.tokenizer import Tokenizer
from tests.model.harness import CPU, generate, greedy
from tests.model.random_models import blocks_for, compute, sequence
from tests.prompts import PROMPTS

OUTPUT = 32
TEXT = 512  # tokens of a text, of which there are two
BLOCKS = 400
MANY = 64
SIZES = Sizes(
    num_blocks=BLOCKS,
    max_step_tokens=TEXT,
    max_num_seqs=TEXT,
    max_model_len=BLOCKS * BLOCK_SIZE,
    threads=2,
)


@pytest.fixture(scope="module")
def runner(kernels: Path, checkpoint: Checkpoint) -> NativeRunner:
    runner = NativeBackend(kernels).build(checkpoint, SIZES)
    assert isinstance(runner, NativeRunner)
    return runner


def test_the_likeliest_token_is_mostly_that_of_float32(
    runner: NativeRunner, checkpoint: Checkpoint, tokenizer: Tokenizer
) -> None:
    ids = tokenizer.encode("".join(topics[name] for name in sorted(topics)))
    texts = [ids[:TEXT], ids[TEXT : 2 * TEXT]]  # Python's language reference
    ours = torch.stack([compute(runner, [whole(text)])[0] for text in texts])
    theirs = in_float32(checkpoint, texts)
    agreement = float((ours.argmax(-1) == theirs.argmax(-1)).float().mean())
    cost = loss(ours, texts) - loss(theirs, texts)
    print(f"agreement {agreement:.1%}, perplexity {math.exp(cost) - 1:+.2%}")
    assert agreement >= 0.9
    assert cost < 0.03  # a bound on 20,480 tokens is tests/model/decoder/test_precision.py's matter


@torch.inference_mode()
def in_float32(checkpoint: Checkpoint, texts: list[list[int]]) -> Tensor:
    """Torch's logits of every position: (texts, T, vocabulary)."""
    exact = TorchBackend(resolve_precision("float32", CPU), CPU).build(checkpoint, SIZES)
    batches = [ForwardBatch.of([whole(text)], all_logits=True) for text in texts]
    return torch.stack([exact.run(batch).rows for batch in batches])


def whole(ids: list[int]) -> Chunk:
    return Chunk(sequence(ids, list(range(blocks_for(len(ids))))), 0, len(ids))


def loss(logits: Tensor, texts: list[list[int]]) -> float:
    """Mean cross-entropy of each next token: (texts, T, vocabulary) against (texts, T)."""
    return float(cross_entropy(logits[:, :-1].flatten(0, 1), torch.tensor(texts)[:, 1:].flatten()))


class Setting:
    """Engines over one runner, each with a scheduler and a pool of its own."""

    def __init__(self, runner: NativeRunner, checkpoint: Checkpoint, tokenizer: Tokenizer) -> None:
        self.runner = runner
        self.config = checkpoint.config
        self.tokenizer = tokenizer
        self.prompts = [tokenizer.encode(prompt) for prompt in PROMPTS]
        self.together = generate(self.engine(), self.prompts, greedy(OUTPUT))

    def engine(
        self, *, blocks: int = BLOCKS, step_tokens: int = TEXT, num_seqs: int = MANY
    ) -> Engine:
        pool = BlockPool(blocks, BLOCK_SIZE)
        scheduler = Scheduler(pool, max_num_seqs=num_seqs, max_step_tokens=step_tokens)
        eos = self.config.eos_token_ids
        return Engine(scheduler, pool, self.runner, self.tokenizer, eos)

    def diverging(self, outputs: Iterable[list[int]], which: slice = slice(None)) -> int:
        """How many of these prompts' outputs are not those of all served together; printed."""
        pairs = list(zip(outputs, self.together[which], strict=True))
        count = sum(ours != theirs for ours, theirs in pairs)
        print(f"{count} of {len(pairs)} runs diverge")
        return count


@pytest.fixture(scope="module")
def setting(runner: NativeRunner, checkpoint: Checkpoint, tokenizer: Tokenizer) -> Setting:
    return Setting(runner, checkpoint, tokenizer)


def test_the_runs_differ_from_each_other(setting: Setting) -> None:
    """Or else their equality below would say little."""
    assert len({tuple(output) for output in setting.together}) > 0.9 * len(PROMPTS)
    assert all(len(output) == OUTPUT for output in setting.together)


def test_alone_is_as_in_the_batch(setting: Setting) -> None:
    some = slice(0, None, 5)
    engine = setting.engine()
    alone = [generate(engine, [ids], greedy(OUTPUT))[0] for ids in setting.prompts[some]]
    assert setting.diverging(alone, some) == 0


@pytest.mark.parametrize(("step_tokens", "num_seqs"), [(7, 5), (23, MANY)])
def test_in_chunks_is_as_whole(setting: Setting, step_tokens: int, num_seqs: int) -> None:
    engine = setting.engine(step_tokens=step_tokens, num_seqs=num_seqs)
    assert setting.diverging(generate(engine, setting.prompts, greedy(OUTPUT))) == 0


def test_after_preemption_is_as_without(setting: Setting) -> None:
    engine = setting.engine(blocks=40)
    for number, ids in enumerate(setting.prompts):
        engine.submit(Generate(str(number), ids, greedy(OUTPUT)))
    outputs: dict[str, list[int]] = {}
    preempted = set()
    while engine.has_work:
        for token in engine.step().tokens:
            outputs.setdefault(token.id, []).append(token.token_id)
        preempted |= {one.id for one in engine._scheduler.waiting if one.num_output}
    print(f"{len(preempted)} of {len(PROMPTS)} were preempted")
    assert len(preempted) > 3
    assert setting.diverging(outputs[str(n)] for n in range(len(PROMPTS))) == 0
