"""The default model, real weights, float32: our tokens are those of transformers, cache or not."""

import time
from itertools import pairwise
from statistics import median
from typing import Any

import pytest
import torch

from model.checkpoints.checkpoint import Checkpoint
from model.engine import Engine
from model.protocol.messages import Generate
from model.text.tokenizer import Tokenizer
from tests.model.harness import TeacherForced, generate, greedy, run_all
from tests.prompts import PROMPTS

pytestmark = pytest.mark.timeout(600)  # two at a time, on slow processors

OUTPUT = 128


@pytest.fixture(
    scope="module",
    params=[
        pytest.param(PROMPTS[::5], id="a fifth"),
        pytest.param(PROMPTS, id="all", marks=pytest.mark.long),
    ],
)
def prompts(request: pytest.FixtureRequest) -> list[str]:
    chosen: list[str] = request.param
    return chosen


@pytest.fixture(scope="module")
def prompt_ids(tokenizer: Tokenizer, prompts: list[str]) -> list[list[int]]:
    return [tokenizer.encode(prompt) for prompt in prompts]


@pytest.fixture(scope="module")
def outputs(engine: Engine, prompt_ids: list[list[int]]) -> list[list[int]]:
    """What we generate, all prompts served together."""
    return generate(engine, prompt_ids, greedy(OUTPUT))


def test_greedy_ids_equal_transformers_generate(
    reference: Any,
    prompts: list[str],
    prompt_ids: list[list[int]],
    outputs: list[list[int]],
) -> None:
    longest = max(len(ids) for ids in prompt_ids)
    padded = [[0] * (longest - len(ids)) + ids for ids in prompt_ids]
    seen = [[0] * (longest - len(ids)) + [1] * len(ids) for ids in prompt_ids]
    theirs = reference.generate(
        torch.tensor(padded),
        attention_mask=torch.tensor(seen),
        max_new_tokens=OUTPUT,
        do_sample=False,
        eos_token_id=-1,
        pad_token_id=0,
    )[:, longest:].tolist()
    for prompt, our, their in zip(prompts, outputs, theirs, strict=True):
        assert len(their) == OUTPUT
        assert our == their, prompt


def test_logits_equal_transformers(
    reference: Any, checkpoint: Checkpoint, prompt_ids: list[list[int]]
) -> None:
    ours = TeacherForced(checkpoint)
    for ids in prompt_ids:
        with torch.inference_mode():
            expected = reference(torch.tensor([ids])).logits[0, -1]
        torch.testing.assert_close(ours.logits(ids, [len(ids)])[0], expected, atol=1e-3, rtol=0)


def test_with_cache_equals_without(
    checkpoint: Checkpoint, prompt_ids: list[list[int]], outputs: list[list[int]]
) -> None:
    """Without: every token from a full computation of all that goes before it."""
    model = TeacherForced(checkpoint)
    for ids, cached in list(zip(prompt_ids, outputs, strict=True))[::2]:
        uncached = list(ids)
        for _ in range(24):
            uncached.append(int(model.logits(uncached, [len(uncached)])[0].argmax()))
        assert uncached[len(ids) :] == cached[:24]


def test_a_corrupted_cache_slot_changes_the_output(
    checkpoint: Checkpoint, prompt_ids: list[list[int]]
) -> None:
    """The negative control: the comparisons above can fail."""
    model = TeacherForced(checkpoint)
    ids = prompt_ids[0]
    clean = model.logits(ids, [len(ids)])[0]

    def corrupt() -> None:
        model.cache.values[:, 0, 1] += 3.0

    corrupted = model.logits(ids, [len(ids) - 1, 1], before_last=corrupt)[-1]
    assert not torch.allclose(corrupted, clean, atol=1e-2)


def test_alone_equals_together_and_in_any_order(
    engine: Engine, prompt_ids: list[list[int]], outputs: list[list[int]]
) -> None:
    enough = 48
    beginnings = [output[:enough] for output in outputs]
    for index in (index for index in (0, 3, 9, 18) if index < len(prompt_ids)):
        assert generate(engine, [prompt_ids[index]], greedy(enough)) == [beginnings[index]]
    backwards = generate(engine, prompt_ids[::-1], greedy(enough))
    assert backwards[::-1] == beginnings


def test_a_late_joiner_and_a_cancelled_neighbour_change_nothing(
    engine: Engine, prompt_ids: list[list[int]], outputs: list[list[int]]
) -> None:
    engine.submit(Generate("stays", prompt_ids[0], greedy(OUTPUT)))
    engine.submit(Generate("leaves", prompt_ids[1], greedy(OUTPUT)))
    ids = [
        token.token_id for _ in range(10) for token in engine.step().tokens if token.id == "stays"
    ]
    engine.cancel("leaves")
    engine.submit(Generate("joins", prompt_ids[2], greedy(OUTPUT)))
    tokens, _ = run_all(engine)
    assert ids + [token.token_id for token in tokens["stays"]] == outputs[0]
    assert [token.token_id for token in tokens["joins"]] == outputs[2]
    assert engine.gauges.kv_blocks_used == 0


@pytest.mark.alone
def test_time_per_token_hardly_grows_with_the_position(
    engine: Engine, prompt_ids: list[list[int]]
) -> None:
    """A past position is read, never computed again: at 1,500 a token costs about the same."""
    rounds = [
        (decode_seconds(engine, prompt_ids[0] * 12), decode_seconds(engine, prompt_ids[0] * 372))
        for _ in range(3)
    ]
    early, late = zip(*rounds, strict=True)
    print(f"position 50: {early} s, position 1,500: {late} s")
    assert min(late) <= 1.5 * max(early)


def decode_seconds(engine: Engine, ids: list[int]) -> float:
    """The median time of a decode step right after this prompt."""
    engine.submit(Generate("timed", ids, greedy(24)))
    while not engine.step().tokens:
        pass
    times = [time.perf_counter()]
    while engine.has_work:
        engine.step()
        times.append(time.perf_counter())
    return median(after - before for before, after in pairwise(times))
