"""OpenVINO GenAI under the loads of the benchmark: in process, continuous batching, no HTTP.

    openvino/bin/python -m bench.peer_openvino DIRECTORY [STREAMS ...]

Runs in a virtual environment of its own (docs/performance.md), so it uses nothing of the project
but the load.
"""

import sys
import time
from statistics import median

import openvino_genai as ov

from bench.load import Load


def pipeline(directory: str) -> ov.ContinuousBatchingPipeline:
    """As our server is by default: 64 sequences, steps of at most 512 tokens. 2 GB of KV cache."""
    scheduler = ov.SchedulerConfig()
    scheduler.cache_size = 2
    scheduler.max_num_seqs = 64
    scheduler.max_num_batched_tokens = 512
    return ov.ContinuousBatchingPipeline(directory, scheduler, "CPU")


def run(pipe: ov.ContinuousBatchingPipeline, load: Load) -> str:
    """A closed loop: whoever is served asks again."""
    config = ov.GenerationConfig()
    config.max_new_tokens = load.new_tokens
    config.ignore_eos = True
    config.do_sample = False
    config.apply_chat_template = False
    left = iter(enumerate(load.prompts()))
    sent: dict[int, float] = {}
    first: dict[int, float] = {}
    running = {}
    tokens = 0

    def ask() -> None:
        number, prompt = next(left, (0, None))
        if prompt:
            sent[number] = time.perf_counter()
            running[number] = pipe.add_request(number, prompt, config)

    began = time.perf_counter()
    for _ in range(load.concurrency):
        ask()
    while running:
        pipe.step()
        now = time.perf_counter()
        for number, handle in list(running.items()):
            while handle.can_read():
                first.setdefault(number, now)
                tokens += sum(len(output.generated_ids) for output in handle.read().values())
            if handle.get_status() == ov.GenerationStatus.FINISHED:
                del running[number]
                ask()
    rate = tokens / (time.perf_counter() - began)
    ttft = median(first[number] - sent[number] for number in first)
    return f"{load.label} streams: {rate:.0f} tokens/s, TTFT p50 {ttft * 1000:.0f} ms"


def main(directory: str, streams: list[int]) -> None:
    pipe = pipeline(directory)
    seed = str(time.time_ns())
    run(pipe, Load(1, new_tokens=8, seed=f"{seed} warm"))
    for count in streams:
        print(run(pipe, Load(max(4, 2 * count), count, seed=f"{seed} {count}")), flush=True)


if __name__ == "__main__":
    main(sys.argv[1], [int(count) for count in sys.argv[2:]] or [1, 8, 32, 64])
