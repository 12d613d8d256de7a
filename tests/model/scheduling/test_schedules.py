"""Whatever the schedule, each request gets the tokens that it gets alone: exactly, in float32."""

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import count
from pathlib import Path

import pytest
import torch

from model.decoder.kv_cache import BLOCK_SIZE
from model.engine import Engine
from model.protocol.messages import Generate
from model.protocol.sampling_params import SamplingParams
from model.text.tokenizer import Tokenizer
from tests.model.harness import generate, greedy, load_engine, run_all
from tests.prompts import PROMPTS
from tests.tiny import HEAD, KV_HEADS, LAYERS, tiny_llama

TINY_BLOCK = 2 * LAYERS * KV_HEADS * HEAD * 4 * BLOCK_SIZE  # bytes
OUTPUT = 14


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """So little work is done sooner alone."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_llama(tmp_path_factory.mktemp("tiny"))


@dataclass(frozen=True)
class Part:
    """One request of a schedule: a step to arrive at, and what it asks for."""

    arrives: int
    prompt: tuple[int, ...]
    params: SamplingParams
    priority: int
    salt: str


@cache
def text(number: int) -> list[int]:
    draw = random.Random(number)
    return [draw.randrange(256) for _ in range(80)]


def parts(draw: random.Random) -> list[Part]:
    """Prompts are beginnings of few texts, so that many share blocks."""
    return [
        Part(
            arrives=draw.randrange(12),
            prompt=tuple(text(draw.randrange(3))[: draw.choice([5, 16, 17, 31, 32, 33, 50, 64])]),
            params=draw.choice(
                [
                    greedy(draw.randrange(1, OUTPUT + 1)),
                    greedy(draw.randrange(1, OUTPUT + 1), temperature=1.0, seed=draw.randrange(2)),
                ]
            ),
            priority=draw.randrange(3),
            salt=draw.choice(["", "", "a"]),
        )
        for _ in range(draw.randrange(2, 8))
    ]


def engine_of(path: Path, draw: random.Random, schedule: Sequence[Part], block: int) -> Engine:
    """Room for the largest request and a little more; seats, chunks and cache as they come."""
    largest = max(len(part.prompt) + part.params.max_tokens for part in schedule)
    blocks = -(-largest // BLOCK_SIZE) + draw.randrange(5)
    seats = draw.randrange(1, 7)
    return load_engine(
        path,
        max_num_seqs=seats,
        max_step_tokens=max(seats, draw.choice([1, 7, 16, 40, 512])),
        kv_cache_bytes=blocks * block,
        prefix_cache=draw.random() < 0.7,
    )


@dataclass
class Outcome:
    tokens: dict[str, list[int]]
    cached: int = 0
    preempted: int = 0


def play(engine: Engine, draw: random.Random, schedule: Sequence[Part]) -> Outcome:
    """Submit each part at its step, pause and resume at random; the tokens of each."""
    outcome = Outcome({str(number): [] for number in range(len(schedule))})
    live: set[str] = set()
    paused: list[str] = []
    for now in count():
        for number, part in enumerate(schedule):
            if part.arrives == now:
                live.add(str(number))
                engine.submit(
                    Generate(str(number), list(part.prompt), part.params, part.priority, part.salt)
                )
        if live and draw.random() < 0.15:
            paused.append(draw.choice(sorted(live)))
            engine.pause(paused[-1])
        if paused and (draw.random() < 0.2 or not engine.has_work):
            engine.unpause(paused.pop(0))
        before = {request.id for request in engine._scheduler.running.values()}
        step = engine.step()
        outcome.preempted += len(before & {one.id for one in engine._scheduler.waiting})
        outcome.cached += sum(start.cached_tokens for start in step.started)
        for token in step.tokens:
            outcome.tokens[token.id].append(token.token_id)
        live -= {end.id for end in step.finished}
        if not live and now >= max(part.arrives for part in schedule):
            break
    assert engine.gauges.kv_blocks_used == 0
    return outcome


class Alone:
    """What each request gets when it is the only one there ever was."""

    def __init__(self, path: Path) -> None:
        self._engine = load_engine(path, prefix_cache=False, kv_cache_bytes=1 << 28)
        self._known: dict[tuple[tuple[int, ...], float, int], list[int]] = {}

    def tokens(self, part: Part) -> list[int]:
        key = (part.prompt, part.params.temperature, part.params.seed)
        if key not in self._known:
            wish = greedy(OUTPUT, temperature=part.params.temperature, seed=part.params.seed)
            (self._known[key],) = generate(self._engine, [list(part.prompt)], wish)
        return self._known[key][: part.params.max_tokens]


def differences(outcome: Outcome, schedule: Sequence[Part], alone: Alone) -> list[str]:
    return [id for id, got in outcome.tokens.items() if got != alone.tokens(schedule[int(id)])]


@pytest.fixture(scope="module")
def alone(tiny: Path) -> Alone:
    return Alone(tiny)


@pytest.mark.parametrize("seeds", [range(n, n + 50) for n in range(0, 200, 50)], ids=str)
def test_200_random_schedules_change_no_token(tiny: Path, alone: Alone, seeds: range) -> None:
    cached = preempted = 0
    for seed in seeds:
        draw = random.Random(seed)
        schedule = parts(draw)
        outcome = play(engine_of(tiny, draw, schedule, TINY_BLOCK), draw, schedule)
        assert differences(outcome, schedule, alone) == [], f"schedule {seed}"
        cached += outcome.cached
        preempted += outcome.preempted
    print(f"{cached} tokens found in the cache, {preempted} preemptions")
    assert cached > 200
    assert preempted > 2


def test_one_corrupted_slot_changes_tokens(tiny: Path, alone: Alone) -> None:
    """The negative control: one slot of one block, once, in the middle of a schedule."""
    schedule = [Part(0, tuple(text(n)[:40]), greedy(OUTPUT), 0, "") for n in range(3)]
    for corrupts in (False, True):
        engine = load_engine(tiny, kv_cache_bytes=32 * TINY_BLOCK)
        for number, part in enumerate(schedule):
            engine.submit(Generate(str(number), list(part.prompt), part.params))
        outcome = Outcome({str(number): [] for number in range(3)})
        for step in count():
            if step == 6 and corrupts:
                block = engine._scheduler.running["1"].block_table[1]
                engine._runner._attention._cache.values[:, block, 5] += 3.0
            if not engine.has_work:
                break
            for token in engine.step().tokens:
                outcome.tokens[token.id].append(token.token_id)
        assert differences(outcome, schedule, alone) == (["1"] if corrupts else [])


def test_a_failed_row_fails_alone_and_nothing_of_it_is_used_again(tiny: Path, alone: Alone) -> None:
    """NaN in the cache of one sequence: it ends with an error, and so does no other, ever."""
    schedule = [Part(0, tuple(text(n)[:40]), greedy(OUTPUT), 0, "") for n in (0, 1)]
    engine = load_engine(tiny, kv_cache_bytes=10 * TINY_BLOCK)
    for number, part in enumerate(schedule):
        engine.submit(Generate(str(number), list(part.prompt), part.params))
    first = engine.step()
    assert {token.id for token in first.tokens} == {"0", "1"}
    block = engine._scheduler.running["0"].block_table[0]
    engine._runner._attention._cache.values[:, block] = torch.nan
    step = engine.step()
    assert [(end.id, end.reason) for end in step.finished] == [("0", "error")]
    rest, _ = run_all(engine)
    other = [token for token in (*first.tokens, *step.tokens, *rest["1"]) if token.id == "1"]
    assert [token.token_id for token in other] == alone.tokens(schedule[1])
    again = play(engine, random.Random(0), schedule[:1])
    assert again.cached == 0
    assert differences(again, schedule[:1], alone) == []


@pytest.mark.long
def test_the_default_model_too(model_path: Path, tokenizer: Tokenizer) -> None:
    """Three schedules: a small pool, sharing, priorities, pauses."""
    alone = Alone(model_path)
    prompt = tokenizer.encode(" ".join(PROMPTS[:4]))
    block = 2 * 30 * 3 * 64 * 4 * BLOCK_SIZE
    for seed in range(3):
        draw = random.Random(seed)
        schedule = [
            Part(n, tuple(prompt[: draw.choice([9, 16, 32, 40])]), greedy(12), n % 2, "")
            for n in range(4)
        ]
        outcome = play(engine_of(model_path, draw, schedule, block), draw, schedule)
        assert differences(outcome, schedule, alone) == [], f"schedule {seed}"
