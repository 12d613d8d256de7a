"""From torch to the compiled kernels in the middle of running sequences, once they are compiled."""

import os
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import cast

import pytest

from model.backends import NativeBackend, Sizes, TorchBackend, choose
from model.checkpoints.checkpoint import Checkpoint
from model.decoder.kv_cache import BLOCK_SIZE
from model.engine import Engine
from model.process import Link, Model, RunnerSwap, compile_and_switch
from model.protocol.messages import (
    Command,
    Configure,
    Failed,
    Finished,
    Generate,
    Pause,
    Ready,
    Report,
    Started,
    StepReport,
    Token,
    Unpacker,
    Unpause,
    pack,
    report_decoder,
)
from model.scheduling.block_pool import BlockPool
from model.scheduling.scheduler import Scheduler
from model.text.tokenizer import Tokenizer
from tests.model.harness import CPU, generate, greedy, load_engine, run_all
from tests.model.random_models import CONFIGS, RandomModel, config, random_tokens
from tests.prompts import PROMPTS
from tests.speed import patience

ROOT = Path(__file__).parents[2]
SIZES = {"max_num_seqs": 4, "max_step_tokens": 64, "max_model_len": 2048}
KV_CACHE = 1 << 26
COMPARED = 20  # tokens after the switch

# Instead of a compiler: waits for leave, then puts a library that was compiled before in its place.
STAND_IN = """#!/bin/sh
for last; do :; done
until [ -e "$0.go" ]; do sleep 0.01; done
cp "$LIBRARY" "$last"
"""


# ---- the engine


def test_a_switch_changes_no_token(kernels: Path, tokenizer: Tokenizer) -> None:
    """From the kernels to the kernels with an empty cache: to the last token as if nothing was."""
    model = RandomModel.of(config(num_hidden_layers=2))
    pool = BlockPool(40, BLOCK_SIZE)
    scheduler = Scheduler(pool, max_num_seqs=4, max_step_tokens=16)
    engine = Engine(scheduler, pool, model.native(kernels, blocks=40), tokenizer, ())
    prompts = [random_tokens(model.config, 5 + 9 * n, seed=n) for n in range(7)]
    undisturbed = generate(engine, prompts, greedy(60))
    assert len(set(map(tuple, undisturbed))) == len(prompts)

    for number, ids in enumerate(prompts):
        engine.submit(Generate(str(number), ids, greedy(60)))
    early: list[Token] = []
    while len(early) < 30:
        early += engine.step().tokens
    engine.pause("1")
    assert engine.gauges.running, "there must be something of every kind"
    assert engine.gauges.waiting
    assert engine.gauges.paused
    engine.switch(model.native(kernels, blocks=40))
    assert engine.gauges.kv_blocks_used == 0
    engine.unpause("1")
    late, ends = run_all(engine)

    for number, expected in enumerate(undisturbed):
        before = [token.token_id for token in early if token.id == str(number)]
        after = [token.token_id for token in late[str(number)]]
        assert before + after == expected
    assert {end.reason for end in ends.values()} == {"length"}
    assert len(ends) == len(prompts)
    assert engine.gauges.kv_blocks_used == 0


# ---- the process


class EngineProcess:
    """`python -m model.process`, as the engine client starts it, and its reports in order."""

    def __init__(self, options: Configure, environment: dict[str, str]) -> None:
        ours, theirs = socket.socketpair()
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "model.process", str(theirs.fileno())],
                pass_fds=[theirs.fileno()],
                env=os.environ | environment,
                cwd=ROOT,
            )
        self._socket = ours
        self._socket.settimeout(patience(60))
        self.send(options)

    def send(self, command: Command) -> None:
        self._socket.sendall(pack(command))

    def reports(self) -> Iterator[Report]:
        unpacker = Unpacker()
        while data := self._socket.recv(1 << 16):
            for body in unpacker.feed(data):
                yield report_decoder.decode(body)

    def end(self) -> int:
        self._socket.close()
        return self._process.wait(timeout=patience(10))


@dataclass
class Seen:
    """What an engine reported, apart by kind."""

    ready: list[Ready] = field(default_factory=list)
    started: list[Started] = field(default_factory=list)
    tokens: list[Token] = field(default_factory=list)
    finished: list[Finished] = field(default_factory=list)
    tokens_before_switch: int = 0
    blocks_used: int = 0

    def add(self, report: Report) -> None:
        assert not isinstance(report, Failed), report.message
        if isinstance(report, Ready):
            self.ready.append(report)
            self.tokens_before_switch = len(self.tokens)
        if isinstance(report, StepReport):
            self.started += report.started
            self.tokens += report.tokens
            self.finished += report.finished
            self.blocks_used = report.gauges.kv_blocks_used

    def ids(self, id: str, tokens: list[Token]) -> list[int]:
        return [token.token_id for token in tokens if token.id == id]


@pytest.mark.long
def test_a_process_serves_at_once_and_goes_on_with_the_kernels(
    kernels: Path, model_path: Path, tokenizer: Tokenizer, tmp_path: Path
) -> None:
    compiler = tmp_path / "c++-stand-in"
    compiler.write_text(STAND_IN)
    compiler.chmod(0o755)
    environment = {
        "XDG_CACHE_HOME": str(tmp_path / "cache"),
        "CXX": str(compiler),
        "LIBRARY": str(kernels),
    }
    options = Configure(str(model_path), "int8", kv_cache_bytes=KV_CACHE, **SIZES)
    # More than there are seats; one is paused during the switch.
    prompts = {f"r{n}": tokenizer.encode(PROMPTS[n]) for n in range(5)}
    enough = 150
    seen = Seen()
    engine = EngineProcess(options, environment)
    try:
        for id, ids in prompts.items():
            engine.send(Generate(id, ids, greedy(enough)))
        for report in engine.reports():
            seen.add(report)
            if len(seen.tokens) > 40 and not (go := Path(f"{compiler}.go")).exists():
                engine.send(Pause("r1"))
                go.touch()
            if isinstance(report, Ready) and len(seen.ready) == 2:
                engine.send(Unpause("r1"))
            if len(seen.finished) == len(prompts):
                break
    finally:
        assert engine.end() == 0

    first, second = seen.ready
    assert first.weight_bytes is None  # torch
    assert first.note == "compiling kernels for this processor, once"
    assert second.dtype == "int8"
    assert second.weight_bytes
    assert second.note
    assert second.note.startswith("the compiled kernels are ready, in ")
    assert second.kv_blocks_total == first.kv_blocks_total
    assert sorted(start.id for start in seen.started) == sorted(prompts)
    assert sorted((end.id, end.reason) for end in seen.finished) == [
        (id, "length") for id in sorted(prompts)
    ]
    assert seen.blocks_used == 0
    torch_tokens = seen.tokens[: seen.tokens_before_switch]
    native_tokens = seen.tokens[seen.tokens_before_switch :]
    print(f"{len(torch_tokens)} tokens by torch, {len(native_tokens)} by the kernels")
    native = load_engine(model_path, dtype="int8", kv_cache_bytes=KV_CACHE)
    before = {id: seen.ids(id, torch_tokens) for id in prompts}
    after = {id: seen.ids(id, native_tokens) for id in prompts}
    for id in prompts:
        assert len(before[id] + after[id]) == enough
        assert len(after[id]) >= COMPARED, "the switch must come in the middle"
        text = "".join(token.text for token in seen.tokens if token.id == id)
        assert text == tokenizer.decode(before[id] + after[id])
    assert before["r0"]
    # What the kernels go on with is what they say to the prompt and all that torch had said.
    so_far = [prompt + before[id] for id, prompt in prompts.items()]
    assert generate(native, so_far, greedy(COMPARED)) == [
        tokens[:COMPARED] for tokens in after.values()
    ]


# ---- what can go wrong


class Recorder:
    """A link that keeps what is sent and posted."""

    def __init__(self) -> None:
        self.sent: list[Report] = []
        self.posted: list[RunnerSwap] = []

    def send(self, report: Report) -> None:
        self.sent.append(report)

    def post(self, swap: RunnerSwap) -> None:
        self.posted.append(swap)


READY = Ready("bfloat16", "cpu", 2048, 100, 0.5, "2", note="compiling")


@pytest.mark.usefixtures("kernels")
@pytest.mark.parametrize(
    ("compiler", "home", "reason"),
    [
        ("#!/bin/sh\nexit 3\n", "cache", "the compiler failed with exit code 3"),
        ("#!/bin/sh\ntrue\n", "cache", "cannot be loaded"),
        ("#!/bin/sh\nexit 3\n", "a-file", "the compiler failed with exit code 3"),
    ],
)
def test_without_kernels_torch_goes_on_and_one_line_says_why(
    checkpoint: Checkpoint,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    compiler: str,
    home: str,
    reason: str,
) -> None:
    path = tmp_path / "c++-stand-in"
    path.write_text(compiler)
    path.chmod(0o755)
    (tmp_path / "a-file").touch()
    monkeypatch.setenv("CXX", str(path))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / home))
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    choice = choose("int8", checkpoint.config, CPU)
    assert choice.pending
    assert isinstance(choice.backend, TorchBackend)
    link = Recorder()
    compile_and_switch(cast(Link, link), Model(checkpoint, choice, Sizes(8, 8, 8, 128, 1)), READY)
    assert link.posted == []
    (ready,) = link.sent
    assert isinstance(ready, Ready)
    assert ready.dtype == READY.dtype
    assert ready.note is not None
    assert reason in ready.note
    assert ready.note.endswith("; torch is slower")


@pytest.mark.parametrize("dtype", ["auto", "int8"])
def test_the_kernels_are_taken_from_the_cache(kernels: Path, dtype: str) -> None:
    choice = choose(dtype, CONFIGS["llama"], CPU)
    assert choice.backend == NativeBackend(kernels)
    assert not choice.pending
    assert choice.note is None


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_dtype_that_was_asked_for_is_given(dtype: str) -> None:
    assert choose(dtype, CONFIGS["llama"], CPU).backend.dtype == dtype
