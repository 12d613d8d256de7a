"""The load generator: asks as the load says, and says what it cost itself."""

import asyncio
import time

import msgspec

from bench.figures import Answer, Figures, figures
from bench.load import Load
from bench.stream import Recording, Target, read, record


class Run(msgspec.Struct, frozen=True):
    """One load against one target. `generator_share` is of one core: what measuring cost."""

    figures: Figures
    generator_share: float


async def run(target: Target, load: Load) -> Run:
    """Raises BenchError where a request is refused, fails or breaks off."""
    began, cpu = time.perf_counter(), time.process_time()
    recordings = await _recordings(target, load)
    share = (time.process_time() - cpu) / (time.perf_counter() - began)
    return Run(figures([read(target, recording) for recording in recordings]), share)


async def ask(target: Target, load: Load) -> list[Answer]:
    """The answers themselves, for scenarios that look at more than a run's figures."""
    return [read(target, recording) for recording in await _recordings(target, load)]


async def _recordings(target: Target, load: Load) -> list[Recording]:
    requests = [target.request(prompt, load.new_tokens) for prompt in load.prompts()]
    return await (_open_loop if load.rate else _closed_loop)(target, load, requests)


async def _closed_loop(target: Target, load: Load, requests: list[bytes]) -> list[Recording]:
    """Each stream asks for the next answer as soon as it has one."""
    left = iter(requests)

    async def stream() -> list[Recording]:
        return [await record(target, request) for request in left]

    streams = await asyncio.gather(*(stream() for _ in range(load.concurrency)))
    return [recording for recordings in streams for recording in recordings]


async def _open_loop(target: Target, load: Load, requests: list[bytes]) -> list[Recording]:
    """Each request at its time, whether or not those before it are served."""
    clock = asyncio.get_running_loop().time
    began = clock()

    async def at(when: float, request: bytes) -> Recording:
        await asyncio.sleep(began + when - clock())
        return await record(target, request)

    timetable = zip(load.arrivals(), requests, strict=True)
    return await asyncio.gather(*(at(when, request) for when, request in timetable))
