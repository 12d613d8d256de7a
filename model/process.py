"""The engine process: `python -m model.process FD`, FD one end of a socket pair.

The first frame is Configure; the answer is Ready or Failed. Then commands come in, and one
StepReport goes out per step of the batch. When the other end closes, the process ends at once.
"""

import contextlib
import ctypes
import gc
import os
import queue
import signal
import socket
import sys
import threading
import time
from dataclasses import dataclass, replace
from pathlib import Path

import msgspec
import torch

from model import processors
from model.backends import Backend, BackendSelection, NativeBackend, Sizes, choose
from model.checkpoints.checkpoint import Checkpoint, open_checkpoint
from model.checkpoints.config import ModelConfig
from model.decoder.kv_cache import BLOCK_SIZE
from model.decoder.runner import Runner
from model.engine import Engine
from model.native import library
from model.protocol.errors import ModelLoadError
from model.protocol.messages import (
    Cancel,
    Command,
    Configure,
    Failed,
    Generate,
    Pause,
    Ready,
    Report,
    Unpacker,
    Unpause,
    command_decoder,
    pack,
)
from model.sampling.grammar_matcher import GrammarCompiler
from model.scheduling.block_pool import BlockPool
from model.scheduling.scheduler import Scheduler


class Link:
    """This side of the socket. A thread receives, so that a closed peer is seen at once."""

    def __init__(self, fd: int) -> None:
        self._socket = socket.socket(fileno=fd)
        self._inbox: queue.SimpleQueue[Command | RunnerSwap] = queue.SimpleQueue()
        self._sending = threading.Lock()
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
            with self._sending:
                self._socket.sendall(pack(report))
        except ConnectionError:
            os._exit(0)

    def post(self, swap: "RunnerSwap") -> None:
        """Put something in front of the engine as if it had come in."""
        self._inbox.put(swap)

    def wait(self) -> "Command | RunnerSwap":
        return self._inbox.get()

    def arrived(self) -> "list[Command | RunnerSwap]":
        """What has come in by now, in order; does not wait."""
        commands = []
        while not self._inbox.empty():
            commands.append(self._inbox.get())
        return commands


@dataclass(frozen=True, slots=True)
class Model:
    """What `load` decided on, kept for a later switch to the compiled kernels."""

    checkpoint: Checkpoint
    selection: BackendSelection
    sizes: Sizes


@dataclass(frozen=True, slots=True)
class RunnerSwap:
    """The kernels were compiled while torch served: go on with this runner."""

    runner: Runner
    ready: Ready


def load(options: Configure) -> tuple[Engine, Ready, Model]:
    """The model in memory, ready to step. Raises ModelLoadError."""
    began = time.monotonic()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    checkpoint = open_checkpoint(Path(options.model_path))
    tokenizer = checkpoint.tokenizer()
    config = replace(checkpoint.config, eos_token_ids=tokenizer.end_ids)
    grammars = GrammarCompiler(tokenizer, config)  # ready before anybody waits for tokens
    selection = choose(options.dtype, config, device)
    num_blocks = _num_blocks(options, config, selection.backend, device)
    sizes = Sizes(
        num_blocks=num_blocks,
        max_step_tokens=options.max_step_tokens,
        max_num_seqs=options.max_num_seqs,
        max_model_len=min(options.max_model_len or config.max_model_len, num_blocks * BLOCK_SIZE),
        threads=options.threads or processors.usable(),
    )
    # Of its own accord torch leaves out the second processor of a core.
    torch.set_num_threads(options.threads or min(sizes.threads, torch.get_num_threads()))
    runner = selection.backend.build(checkpoint, sizes)
    pool = BlockPool(num_blocks, BLOCK_SIZE)
    engine = Engine(
        Scheduler(
            pool,
            max_num_seqs=options.max_num_seqs,
            max_step_tokens=options.max_step_tokens,
            prefix_cache=options.prefix_cache,
        ),
        pool,
        runner,
        tokenizer,
        config.eos_token_ids,
        grammars,
    )
    ready = Ready(
        dtype=selection.backend.dtype,
        device=device.type,
        max_model_len=sizes.max_model_len,
        kv_blocks_total=num_blocks,
        load_seconds=time.monotonic() - began,
        torch_version=str(torch.__version__),
        weight_bytes=runner.weight_bytes,
        note=selection.note,
        kv_tokens=num_blocks * BLOCK_SIZE,
        kv_bytes=num_blocks * selection.backend.bytes_per_block(config),
        threads=sizes.threads,
    )
    return engine, ready, Model(checkpoint, selection, sizes)


def compile_and_switch(link: Link, model: Model, ready: Ready) -> None:
    """Compile the kernels, load the model into them, and hand them to the engine's own thread."""
    try:
        backend = NativeBackend(library.compile())
        runner = backend.build(model.checkpoint, model.sizes)
    except (OSError, MemoryError, ModelLoadError) as error:
        note = f"the compiled kernels are not used: {error}; torch is slower"
        link.send(msgspec.structs.replace(ready, note=note))
        return
    note = f"the compiled kernels are ready, in {backend.path}"
    _give_back_memory()
    now = msgspec.structs.replace(
        ready,
        dtype=backend.dtype,
        weight_bytes=runner.weight_bytes,
        note=note,
        kv_bytes=model.sizes.num_blocks * backend.bytes_per_block(model.checkpoint.config),
    )
    link.post(RunnerSwap(runner, now))


def _num_blocks(
    options: Configure, config: ModelConfig, backend: Backend, device: torch.device
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
    block = backend.bytes_per_block(config)
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
            if isinstance(command, RunnerSwap):
                engine.switch(command.runner)
                link.send(command.ready)
            else:
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
        case Unpause(id):
            engine.unpause(id)
        case Configure():
            raise ValueError("the engine is configured already")


def _give_back_memory() -> None:
    """glibc keeps what the float32 weights took while they were packed: 80 MB."""
    with contextlib.suppress(AttributeError, OSError):
        ctypes.CDLL(None).malloc_trim(0)


def main(fd: int) -> None:
    # A signal to the whole group is the API process's to handle: streams may finish first.
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    link = Link(fd)
    options = link.wait()
    assert isinstance(options, Configure), "the first message must be Configure"
    try:
        engine, ready, model = load(options)
    except ModelLoadError as error:
        link.send(Failed(str(error)))
        return
    link.send(ready)
    if model.selection.pending:
        threading.Thread(target=compile_and_switch, args=(link, model, ready), daemon=True).start()
    del model  # and with it the mapped file, whose pages count as this process's memory
    _give_back_memory()
    gc.collect()
    gc.freeze()  # what is loaded stays: a collection need not look at it between two steps
    serve(engine, link)


if __name__ == "__main__":
    main(int(sys.argv[1]))
