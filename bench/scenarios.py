"""What a closed loop does not show: long prompts, their neighbours, growth, start and memory.

Each scenario asks one question and answers with a `Finding`. The prompts of one seed are used once.
"""

import asyncio
import time
from collections.abc import Sequence
from itertools import pairwise
from math import inf
from pathlib import Path
from statistics import median

import msgspec

from bench.figures import Answer, BenchError, percentiles
from bench.generator import ask, run
from bench.load import Load
from bench.memory import Memory, memory
from bench.server import START_SECONDS, Flags, starting
from bench.stream import Target


class Sizes(msgspec.Struct, frozen=True, kw_only=True):
    """Words of prompts, new tokens, streams, and seconds between long prompts."""

    long_prompt: int = 1500
    seconds_between: float = 1.0
    few: int = 8
    many: int = 64
    stream_tokens: int = 512
    house_tokens: int = 128
    # With 100 new tokens these are read around 200 and 2,000 positions, within 2,048.
    short_context: int = 140
    long_context: int = 1940
    context_tokens: int = 100


SIZES = Sizes()


class Finding(msgspec.Struct, frozen=True):
    """Figures by name; the first is the one that was asked for."""

    scenario: str
    target: str
    figures: dict[str, float]


async def prefill(target: Target, seed: str, rounds: int, sizes: Sizes = SIZES) -> Finding:
    """How fast is a long prompt read, and how fast when it comes a second time?"""
    firsts, seconds = [], []
    for number in range(rounds):
        load = Load(1, words=sizes.long_prompt, new_tokens=2, seed=f"{seed} {number}")
        firsts += await ask(target, load)
        seconds += await ask(target, load)
    first, again = (median(a.ttft for a in answers) for answers in (firsts, seconds))
    tokens = median(a.prompt_tokens for a in firsts)
    figures = {
        "prefill, tokens/s": tokens / first,
        "prompt, tokens": tokens,
        "TTFT, ms": first * 1000,
        "TTFT the second time, ms": again * 1000,
        "second / first": again / first,
        "cached tokens": median(a.cached_tokens for a in seconds),
    }
    return Finding("a prompt of 1,500 words", target.name, figures)


async def pace(target: Target, seed: str, rounds: int, sizes: Sizes = SIZES) -> Finding:
    """Do 8 running streams keep their pace while long prompts arrive, one a second?"""
    alone: list[float] = []
    beside: list[float] = []
    long_prompts: list[Answer] = []
    for number in range(rounds):
        streams = _running(sizes, f"{seed} alone {number}")
        alone += steady_gaps(await ask(target, streams))
        streams = _running(sizes, f"{seed} beside {number}")
        answers, arrived = await _beside_long_prompts(target, streams, sizes)
        beside += steady_gaps(answers)
        long_prompts += arrived
    undisturbed, disturbed = percentiles(alone), percentiles(beside)
    figures = {
        "ITL p99 beside / p50 alone": _ratio(disturbed.p99, undisturbed.p50),
        "ITL p50 alone, ms": undisturbed.p50,
        "ITL p99 alone, ms": undisturbed.p99,
        "ITL p50 beside, ms": disturbed.p50,
        "ITL p99 beside, ms": disturbed.p99,
        "long prompts": len(long_prompts),
        "their TTFT p50, ms": percentiles([a.ttft for a in long_prompts]).p50,
    }
    return Finding("8 streams beside long prompts", target.name, figures)


def _ratio(one: float, other: float) -> float:
    """`one / other`; infinite where the other is too short for the clock."""
    return one / other if other else inf


def _running(sizes: Sizes, seed: str) -> Load:
    return Load(sizes.few, sizes.few, new_tokens=sizes.stream_tokens, seed=seed)


async def _beside_long_prompts(
    target: Target, load: Load, sizes: Sizes
) -> tuple[list[Answer], list[Answer]]:
    """The answers of the streams, and of the long prompts that arrived while they ran."""
    streams = asyncio.create_task(ask(target, load))
    arrivals: list[asyncio.Task[list[Answer]]] = []
    while not (await asyncio.wait([streams], timeout=sizes.seconds_between))[0]:
        seed = f"{load.seed} long {len(arrivals)}"
        long_prompt = Load(1, words=sizes.long_prompt, new_tokens=2, seed=seed)
        arrivals.append(asyncio.create_task(ask(target, long_prompt)))
    arrived = await asyncio.gather(*arrivals)
    return await streams, [answer for answers in arrived for answer in answers]


async def growth(target: Target, seed: str, rounds: int, sizes: Sizes = SIZES) -> Finding:
    """What do more streams, and longer contexts, add to a step?"""
    cases = {
        "step of 8 streams, ms": (sizes.few, 64),
        "step of 64 streams, ms": (sizes.many, 64),
        "step of 8 at 200 positions, ms": (sizes.few, sizes.short_context),
        "step of 8 at 2,000 positions, ms": (sizes.few, sizes.long_context),
    }
    gaps: dict[str, list[float]] = {case: [] for case in cases}
    for number in range(rounds):
        for case, (streams, words) in cases.items():
            of_its_own = f"{seed} {case} {number}"
            load = Load(
                streams, streams, words=words, new_tokens=sizes.context_tokens, seed=of_its_own
            )
            # Once before, for the prefix cache: else the first ends while the last is still read.
            await ask(target, msgspec.structs.replace(load, new_tokens=2))
            gaps[case] += steady_gaps(await ask(target, load))
    steps = {case: percentiles(found).p50 for case, found in gaps.items()}
    at_8, at_64, at_200, at_2000 = steps.values()
    ratios = {
        "64 streams / 8": _ratio(at_64, at_8),
        "2,000 positions / 200": _ratio(at_2000, at_200),
    }
    return Finding("growth of a step", target.name, ratios | steps)


async def full_house(target: Target, seed: str, rounds: int, sizes: Sizes = SIZES) -> Finding:
    """How much memory do all processes of the server take while they serve 64 streams?"""
    load = Load(sizes.many * rounds, sizes.many, new_tokens=sizes.house_tokens, seed=seed)
    serving = asyncio.create_task(run(target, load))
    samples = []
    while not serving.done():
        samples.append(await asyncio.to_thread(_memory, target))
        await asyncio.wait([serving], timeout=0.5)
    serving.result()
    figures = {
        "most PSS, MB": max(sample.pss for sample in samples) / 1e6,
        "most RSS, MB": max(sample.rss for sample in samples) / 1e6,
    }
    return Finding("memory while serving 64 streams", target.name, figures)


def _memory(target: Target) -> Memory:
    found = memory(target.pid) if target.pid else None
    if found is None:
        raise BenchError(f"{target.name}: the memory of its processes cannot be read here")
    return found


async def start(flags: Flags, log: Path, seed: str, rounds: int) -> Finding:
    """How long from the start of the process to the first token?"""
    seconds = [await _start(flags, log, f"{seed} {number}") for number in range(rounds)]
    figures = {
        "median, s": median(seconds),
        "first, s": seconds[0],
        "best, s": min(seconds),
    }
    return Finding("process start to first token", "tickertape", figures)


async def _start(flags: Flags, log: Path, seed: str) -> float:
    """Ask again and again from the start of the process on, until there is a token."""
    began = time.perf_counter()
    with starting(flags, log) as server:
        load = Load(1, words=8, new_tokens=1, seed=seed)
        while True:
            try:
                (answer,) = await ask(server.target, load)
                return answer.arrivals[0][0] - began
            except BenchError:  # it does not listen yet, or loads
                if server.process.poll() is not None or time.perf_counter() > began + START_SECONDS:
                    raise
                await asyncio.sleep(0.01)


def steady_gaps(answers: Sequence[Answer]) -> list[float]:
    """Inter-token latencies while every stream was running: after the last began, until one ends.

    Pure; seconds.
    """
    begin = max(a.arrivals[0][0] for a in answers)
    end = min(a.arrivals[-1][0] for a in answers)
    return [
        later - earlier
        for a in answers
        for (earlier, _), (later, _) in pairwise(a.arrivals)
        if begin <= earlier and later <= end
    ]
