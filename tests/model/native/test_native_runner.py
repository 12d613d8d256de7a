"""The compiled decoder on small random models: its numbers, and that company never changes them."""

import random
from dataclasses import replace
from pathlib import Path
from statistics import median

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from model.checkpoints.config import ModelConfig
from model.decoder.kv_cache import BLOCK_SIZE
from model.native.runner import NativeRunner, bytes_per_block, unsupported
from model.protocol.sampling_params import SamplingParams
from model.scheduling.forward_batch import ForwardBatch
from model.scheduling.scheduler import Chunk
from tests.model.emulation import emulated_logits
from tests.model.random_models import (
    CONFIGS,
    RandomModel,
    blocks_for,
    compute,
    config,
    heads,
    qwen2,
    random_tokens,
    sequence,
)

pytestmark = pytest.mark.alone  # two threads that wait for each other

LENGTH = 150  # three spans, the last not full


def relative(actual: Tensor, expected: Tensor) -> float:
    """The error's length by the expected logits' own, over all rows."""
    return float((actual - expected).norm() / (expected - expected.mean(-1, keepdim=True)).norm())


def whole(runner: NativeRunner, tokens: list[int]) -> Tensor:
    """The logits of every position, all computed in one step."""
    one = sequence(tokens, list(range(blocks_for(len(tokens)))))
    return compute(runner, [Chunk(one, 0, len(tokens))])[0]


# ---- the numbers


@pytest.mark.parametrize("four_bits", [False, True], ids=["8 bits", "4 bits"])
@pytest.mark.parametrize("name", CONFIGS)
def test_logits_are_those_of_the_same_quantization_in_torch(
    name: str, four_bits: bool, kernels: Path
) -> None:
    model = RandomModel.of(CONFIGS[name], four_bits=four_bits)
    tokens = random_tokens(model.config, LENGTH)
    assert unsupported(model.config) is None
    runner = model.native(kernels, blocks=blocks_for(LENGTH))
    native = whole(runner, tokens)
    emulated = emulated_logits(model.config, model.tensors, tokens, runner.instructions)
    exact = in_float32(model, tokens)
    assert exact.std() > 0.5, "logits that hardly differ would prove nothing"

    rows = [relative(ours, theirs) for ours, theirs in zip(native, emulated, strict=True)]
    print(f"worst row {max(rows):.2%}, from float32 {relative(native[9::10], exact):.2%}")
    # Where a float sum's last bit decides a tie, one step more or less goes on through what
    # follows. One layer shows it in the row alone, so most rows are equal but for the last bits.
    if model.config.num_layers == 1:
        assert median(rows) < 1e-4
    assert relative(native, emulated) < 0.02
    assert relative(native[9::10], exact) < 0.08


def in_float32(model: RandomModel, tokens: list[int]) -> Tensor:
    """Plain torch's logits of every tenth position."""
    runner = model.in_torch(blocks_for(LENGTH))
    one = sequence(tokens, list(range(blocks_for(LENGTH))))
    rows = []
    for start in range(0, LENGTH, 10):
        one.token_ids = tokens[: start + 10]
        rows.append(runner.run(ForwardBatch.of([Chunk(one, start, 10)])).rows[0])
    return torch.stack(rows)


# ---- company


SEQUENCES = 14
POSITIONS = 90  # of each: a span and a half
BATCHED = {
    "8 bits, windows": (qwen2(7, 1, use_sliding_window=True, sliding_window=70, max_window_layers=1,
                              num_hidden_layers=2), False),
    "4 bits": (config(num_hidden_layers=2, **heads(6, 2, 64)), True),
    "4 bits, multi-head": (config(num_hidden_layers=2, **heads(4, 4, 80)), True),
    "8 bits, one KV head": (config(num_hidden_layers=2, **heads(9, 1, 128)), False),
}  # fmt: skip


class Crowd:
    """Sequences with given tokens, and the logits that each has alone, one token at a time."""

    def __init__(self, kernels: Path, config: ModelConfig, four_bits: bool) -> None:
        self.model = RandomModel.of(config, four_bits=four_bits)
        self.kernels = kernels
        self.four_bits = four_bits
        self.blocks = SEQUENCES * blocks_for(POSITIONS)
        self.tokens = [random_tokens(config, POSITIONS, seed) for seed in range(SEQUENCES)]
        self.runner = self.model.native(kernels, blocks=self.blocks, threads=3)
        self.alone = [self._alone(tokens) for tokens in self.tokens]

    def _alone(self, tokens: list[int]) -> Tensor:
        one = sequence(tokens, list(range(blocks_for(POSITIONS))))
        chunks = [Chunk(one, position, 1) for position in range(POSITIONS)]
        return torch.cat([compute(self.runner, [chunk])[0] for chunk in chunks])

    def differing(self, runner: NativeRunner, steps: list[dict[int, int]], seed: int) -> int:
        """Rows that are not what they are alone; a step says how many new tokens each one has.

        Blocks are dealt out at random, and hold what the last run left there.
        """
        blocks = random.Random(seed).sample(range(self.blocks), self.blocks)
        size = blocks_for(POSITIONS)
        requests = [
            sequence(tokens, blocks[i * size : (i + 1) * size])
            for i, tokens in enumerate(self.tokens)
        ]
        done = [0] * SEQUENCES
        wrong = 0
        for step in steps:
            counts = {i: min(count, POSITIONS - done[i]) for i, count in step.items()}
            chunks = [Chunk(requests[i], done[i], count) for i, count in counts.items() if count]
            results = iter(compute(runner, chunks)) if chunks else iter(())
            for i, count in counts.items():
                if count:
                    expected = self.alone[i][done[i] : done[i] + count]
                    wrong += int((next(results) != expected).any(-1).sum())
                    done[i] += count
        return wrong


@pytest.fixture(scope="module", params=BATCHED)
def crowd(request: pytest.FixtureRequest, kernels: Path) -> Crowd:
    return Crowd(kernels, *BATCHED[request.param])


step_of = st.dictionaries(st.integers(0, SEQUENCES - 1), st.integers(1, 18), min_size=1)


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(steps=st.lists(step_of, min_size=1, max_size=12), seed=st.integers(0, 1000))
def test_a_row_is_the_same_to_the_last_bit_in_any_batch_and_chunks(
    crowd: Crowd, steps: list[dict[int, int]], seed: int
) -> None:
    assert crowd.differing(crowd.runner, steps, seed) == 0


@pytest.mark.parametrize("threads", [1, 2, 5])
def test_the_number_of_threads_changes_nothing(crowd: Crowd, threads: int) -> None:
    runner = crowd.model.native(crowd.kernels, blocks=crowd.blocks, threads=threads)
    everyone = dict.fromkeys(range(SEQUENCES), 1)
    prefill = {i: 18 - i for i in range(SEQUENCES)}
    assert crowd.differing(runner, [prefill, {3: 1}, *[everyone] * 10, prefill, {0: 4}], 1) == 0


def test_few_rows_read_weights_that_came_in_4_bits_as_such(crowd: Crowd) -> None:
    """The tests above then cover both forms: alone reads 4 bits, many rows may read 8."""
    model = crowd.model.config
    widths = [
        ((model.num_heads + 2 * model.num_kv_heads) * model.head_dim, model.hidden_size),
        (model.hidden_size, model.num_heads * model.head_dim),
        (2 * model.intermediate_size, model.hidden_size),
        (model.hidden_size, model.intermediate_size),
    ] * model.num_layers + [(model.vocab_size, model.hidden_size)]
    in_8_bits = sum(-(-outputs // 32) * 32 * inputs for outputs, inputs in widths)
    # 32 inputs of an output: 16 bytes of nibbles, and two of a and of b.
    expected = in_8_bits * 20 // 32 if crowd.four_bits else in_8_bits
    assert crowd.runner.weight_bytes == expected


def test_a_step_may_give_no_logits(crowd: Crowd) -> None:
    one = sequence(crowd.tokens[0], list(range(blocks_for(POSITIONS))))
    assert crowd.runner.run(ForwardBatch.of([Chunk(one, 0, 40)])).rows.shape[0] == 0
    rows = compute(crowd.runner, [Chunk(one, 40, 50)])[0]
    assert torch.equal(rows, crowd.alone[0][40:])
    assert crowd.runner.run(ForwardBatch.of([])).best == []


def test_where_the_argmax_is_enough_no_logits_are_written(crowd: Crowd) -> None:
    """They would be an eighth of a large step's memory traffic."""
    first = sequence(crowd.tokens[3], [crowd.blocks - 1])
    before = compute(crowd.runner, [Chunk(first, 0, 3)])[0]
    wishes = [SamplingParams(max_tokens=1, seed=0, temperature=t) for t in (0.0, 1.0, 0.0)]
    size = blocks_for(POSITIONS)
    requests = [
        sequence(crowd.tokens[i], list(range(i * size, (i + 1) * size)), params)
        for i, params in enumerate(wishes)
    ]
    for one in requests:
        crowd.runner.run(ForwardBatch.of([Chunk(one, 0, POSITIONS - 1)]))
    logits = crowd.runner.run(ForwardBatch.of(Chunk(one, POSITIONS - 1, 1) for one in requests))
    assert list(logits.best) == [int(crowd.alone[i][-1].argmax()) for i in range(3)]
    assert all(logits.finite)
    assert torch.equal(logits.rows, torch.stack([before[0], crowd.alone[1][-1], before[2]]))


def test_a_step_beyond_the_sizes_given_at_the_start_is_refused(crowd: Crowd) -> None:
    runner = crowd.model.native(crowd.kernels, blocks=crowd.blocks, rows=8)
    one = sequence(crowd.tokens[0], list(range(blocks_for(POSITIONS))))
    with pytest.raises(ValueError, match="9 new tokens: there is room for 8"):
        runner.run(ForwardBatch.of([Chunk(one, 0, 9)]))
    batch = ForwardBatch.of([Chunk(one, 0, 8)])
    with pytest.raises(ValueError, match="9 rows of logits: there is room for 8"):
        runner.run(replace(batch, num_logits=batch.counts + 1))
    with pytest.raises(ValueError, match="257 positions: there is room for 256"):
        runner.run(ForwardBatch.of([Chunk(one, 256, 1)]))


# ---- the KV cache


class Cached:
    """Two sequences of POSITIONS tokens in the cache of a model, but for their last tokens."""

    def __init__(self, kernels: Path) -> None:
        self.model = RandomModel.of(config(num_hidden_layers=2))
        self.size = blocks_for(POSITIONS)
        self.runner = self.model.native(kernels, blocks=3 * self.size)
        self.tables = [list(range(self.size)), list(range(self.size, 2 * self.size))]
        tokens = [random_tokens(self.model.config, POSITIONS, seed) for seed in (1, 2)]
        self.requests = [sequence(*pair) for pair in zip(tokens, self.tables, strict=True)]
        compute(self.runner, [Chunk(one, 0, POSITIONS - 1) for one in self.requests])
        self.clean = self.last()

    def last(self) -> Tensor:
        """The logits of both last tokens, (2, vocabulary)."""
        chunks = [Chunk(one, POSITIONS - 1, 1) for one in self.requests]
        return torch.cat(compute(self.runner, chunks))

    def finite(self) -> list[bool]:
        chunks = [Chunk(one, POSITIONS - 1, 1) for one in self.requests]
        return list(self.runner.run(ForwardBatch.of(chunks)).finite)

    def parts(self, layer: int, block: int, head: int) -> dict[str, np.ndarray]:
        """Views of one KV head's block: keys [d / 4][16][4], values [4][d][4], scales [16] each."""
        model = self.model.config
        size, d = bytes_per_block(model) // model.num_layers // model.num_kv_heads, model.head_dim
        record = self.runner.block(layer, block)[head * size : (head + 1) * size]
        scales = record[2 * BLOCK_SIZE * d :].view(np.float32)
        return {
            "keys": record[: BLOCK_SIZE * d].reshape(d // 4, BLOCK_SIZE, 4),
            "values": record[BLOCK_SIZE * d : 2 * BLOCK_SIZE * d].reshape(BLOCK_SIZE // 4, d, 4),
            "key_scales": scales[:BLOCK_SIZE],
            "value_scales": scales[BLOCK_SIZE:],
        }


@pytest.fixture
def cached(kernels: Path) -> Cached:
    return Cached(kernels)


@pytest.mark.parametrize("part", ["keys", "values"])
def test_a_corrupted_byte_in_the_cache_changes_the_logits(cached: Cached, part: str) -> None:
    """The negative control of every equality above."""
    cached.parts(0, cached.tables[0][1], 0)[part][0, 0, 0] ^= 0x40
    corrupted = cached.last()
    assert not torch.equal(corrupted[0], cached.clean[0])
    assert torch.equal(corrupted[1], cached.clean[1])


def test_a_copied_block_serves_as_the_block_itself(cached: Cached) -> None:
    spare = 2 * cached.size
    cached.runner.run(ForwardBatch.of([], [(cached.tables[0][1], spare)]))
    for layer in range(2):  # the first is of no use any more
        cached.runner.block(layer, cached.tables[0][1])[:] = 0xFF
    cached.requests[0].block_table[1] = spare
    assert torch.equal(cached.last(), cached.clean)


def test_what_unused_slots_hold_changes_nothing(cached: Cached) -> None:
    used = (POSITIONS - 1) % BLOCK_SIZE
    for layer in range(2):
        for table in cached.tables:
            for head in range(2):
                part = cached.parts(layer, table[-1], head)
                part["keys"][:, used:, :] = 0xFF
                part["values"][-(-used // 4) :] = 0xFF
                part["values"][used // 4, :, used % 4 :] = 0xFF
                part["key_scales"][used:] = np.nan
                part["value_scales"][used:] = np.nan
    assert torch.equal(cached.last(), cached.clean)


@pytest.mark.parametrize("slot", [0, 5, 15])
@pytest.mark.parametrize("scales", ["key_scales", "value_scales"])
def test_a_nan_fails_its_own_row_alone(cached: Cached, scales: str, slot: int) -> None:
    assert cached.finite() == [True, True]
    cached.parts(1, cached.tables[0][2], 1)[scales][slot] = np.nan
    assert cached.finite() == [False, True]
    assert torch.equal(cached.last()[1], cached.clean[1])


@pytest.mark.parametrize("four_bits", [False, True], ids=["8 bits", "4 bits"])
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize(
    ("name", "finite"),
    [
        ("head.weight", [False, False]),
        ("layers.0.attn.v.weight", [False, False]),
        ("embed.weight", [False, True]),
    ],
)
def test_a_weight_that_is_no_number_is_seen(
    kernels: Path, name: str, finite: list[bool], bad: float, four_bits: bool
) -> None:
    """In one row of a matrix; of the embedding, that is one token's."""
    model = RandomModel.of(config(), four_bits=four_bits)
    model.tensors[name][7, 40] = bad
    runner = model.native(kernels, blocks=2)
    sequences = [sequence([7], [0]), sequence([8], [1])]
    logits = runner.run(ForwardBatch.of(Chunk(one, 0, 1) for one in sequences))
    assert list(logits.finite) == finite
