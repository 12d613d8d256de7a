"""The engine process: `python -m model.process FD`, FD one end of a socket pair.

The first frame is Configure; the answer is Ready or Failed. Then commands come in, and one Step
goes out per step of the batch. When the other end closes, the process is gone at once.
"""

import contextlib
import os
import queue
import signal
import socket
import sys
import threading
import time
from pathlib import Path

import torch

from model import families
from model.block_pool import BlockPool
from model.config import ModelConfig
from model.engine import Engine
from model.errors import ModelLoadError
from model.kv_cache import BLOCK_SIZE, KVCache, bytes_per_block
from model.linear import resolve_dtype
from model.loading.checkpoint import open_checkpoint
from model.messages import (
    Cancel,
    Command,
    Configure,
    Failed,
    Generate,
    Pause,
    Ready,
    Report,
    Resume,
    Unpacker,
    command_decoder,
    pack,
)
from model.runner import Runner
from model.scheduler import Scheduler
from model.weights import Weights


class Link:
    """This side of the socket. A thread receives, so that a closed peer is seen at once."""

    def __init__(self, fd: int) -> None:
        self._socket = socket.socket(fileno=fd)
        self._inbox: queue.SimpleQueue[Command] = queue.SimpleQueue()
        threading.Thread(target=self._receive, daemon=True).start()

    def _receive(self) -> None:
        """Until the API process is gone, however it went: nobody is left to work for then."""
        unpacker = Unpacker()
        try:
            with contextlib.suppress(ConnectionError):
                while data := self._socket.recv(1 << 16):
                    for body in unpacker.feed(data):
                        self._inbox.put(command_decoder.decode(body))
        finally:
            os._exit(0)

    def send(self, report: Report) -> None:
        try:
            self._socket.sendall(pack(report))
        except ConnectionError:
            os._exit(0)

    def wait(self) -> Command:
        return self._inbox.get()

    def arrived(self) -> list[Command]:
        """What has come in by now, in order; does not wait."""
        commands = []
        while not self._inbox.empty():
            commands.append(self._inbox.get())
        return commands


def load(options: Configure) -> tuple[Engine, Ready]:
    """The model in memory, ready to step. Raises ModelLoadError."""
    began = time.monotonic()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    dtype = resolve_dtype(options.dtype, device)
    checkpoint = open_checkpoint(Path(options.model_path))
    config = checkpoint.config
    num_blocks = _num_blocks(options, config, dtype, device)
    decoder = families.build(config, Weights(checkpoint.weights(), dtype, device))
    pool = BlockPool(num_blocks, BLOCK_SIZE)
    engine = Engine(
        Scheduler(pool, max_num_seqs=options.max_num_seqs, max_step_tokens=options.max_step_tokens),
        pool,
        Runner(config, decoder, KVCache(config, num_blocks, dtype, device), device),
        checkpoint.tokenizer(),
        config.eos_token_ids,
    )
    ready = Ready(
        dtype=str(dtype).removeprefix("torch."),
        device=device.type,
        max_model_len=min(options.max_model_len or config.max_model_len, num_blocks * BLOCK_SIZE),
        kv_blocks_total=num_blocks,
        load_seconds=time.monotonic() - began,
        torch_version=str(torch.__version__),
    )
    return engine, ready


def _num_blocks(
    options: Configure, config: ModelConfig, dtype: torch.dtype, device: torch.device
) -> int:
    """How many KV blocks there is memory for. Raises ModelLoadError for sizes that cannot be."""
    if options.max_model_len and options.max_model_len > config.max_model_len:
        raise ModelLoadError(
            f"--max-model-len {options.max_model_len} is more than this model's context of "
            f"{config.max_model_len}"
        )
    if options.kv_cache_bytes > _memory(device):
        raise ModelLoadError(
            f"a KV cache of {options.kv_cache_bytes} bytes is more than this machine's memory of "
            f"{_memory(device)}; give less with --kv-cache-memory"
        )
    block = bytes_per_block(config, dtype)
    if options.kv_cache_bytes < block:
        raise ModelLoadError(
            f"a KV cache of {options.kv_cache_bytes} bytes holds not even one block of "
            f"{block}; give more with --kv-cache-memory"
        )
    return options.kv_cache_bytes // block


def _memory(device: torch.device) -> int:
    """All of the device's memory, in bytes."""
    if device.type == "cuda":
        return torch.cuda.get_device_properties(device).total_memory
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def serve(engine: Engine, link: Link) -> None:
    """Step while there is work, sleep while there is none."""
    while True:
        commands = link.arrived() if engine.has_work else [link.wait(), *link.arrived()]
        for command in commands:
            obey(engine, command)
        link.send(engine.step())


def obey(engine: Engine, command: Command) -> None:
    match command:
        case Generate():
            engine.submit(command)
        case Cancel(id):
            engine.cancel(id)
        case Pause(id):
            engine.pause(id)
        case Resume(id):
            engine.resume(id)
        case Configure():
            raise ValueError("the engine is configured already")


def main(fd: int) -> None:
    # A signal to the whole group is the API process's to handle: streams may finish first.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    link = Link(fd)
    options = link.wait()
    assert isinstance(options, Configure), "the first message must be Configure"
    try:
        engine, ready = load(options)
    except ModelLoadError as error:
        link.send(Failed(str(error)))
        return
    link.send(ready)
    serve(engine, link)


if __name__ == "__main__":
    main(int(sys.argv[1]))
