"""`tickertape bench` as a user runs it: tables, JSON and a plot, or one line of what is wrong."""

import io
import json
import time
from pathlib import Path

import pytest
from rich.console import Console

from bench.dialects import Native
from bench.memory import Memory, memory
from bench.plot import plot
from bench.report import Report, Row, show
from bench.scenarios import Finding, Sizes, full_house, growth, pace, prefill, start
from bench.server import Flags, as_arguments
from bench.stream import Target
from tests.app.cli.test_cli import one_line, run
from tests.bench.test_figures import at
from tests.server import RunningServer, running

SMALL = ["--rounds", "2", "--requests", "1", "--words", "8", "--new-tokens", "4"]
SIZES = Sizes(
    long_prompt=40,
    seconds_between=0.1,
    few=2,
    many=3,
    stream_tokens=40,
    house_tokens=4,
    short_context=8,
    long_context=20,
    context_tokens=16,
)


def row(load: str, target: str, tokens_per_second: float, ours_over_it: float) -> Row:
    rounds = [at(tokens_per_second)]
    return Row(load, target, rounds[0], rounds, ours_over_it, memory=Memory(rss=2, pss=10**9))


def report() -> Report:
    """Two loads of two targets, where the peer made fewer tokens than it was asked for."""
    rows = [row(load, *rest) for load in ("1", "64") for rest in (("us", 90, 1), ("it", 30, 3))]
    found = [Finding("a scenario", "us", {"some figure": 1234.5})]
    return Report({}, {"words": 8, "new_tokens": 4}, {1 << 29: 2.5e10}, rows, found)


@pytest.fixture
def target(server: RunningServer) -> Target:
    return Target("us", server.url, Native(), server.process.pid)


def test_it_measures_a_server_that_runs(server: RunningServer, tmp_path: Path) -> None:
    arguments = ["load", "--url", server.url, "--no-bare", "--concurrency", "2", "--rate", "40"]
    result = run("bench", *arguments, *SMALL, "--out", str(tmp_path))
    assert result.returncode == 0, result.stderr
    assert "load 2, round 2: tickertape" in result.stderr
    assert "tokens/s" in result.stdout
    written = json.loads((tmp_path / "bench.json").read_text())
    closed, opened = written["rows"]
    assert (closed["load"], opened["load"]) == ("2", "40/s")
    assert (closed["figures"]["answers"], closed["figures"]["new_tokens"]) == (4, 4)
    assert opened["figures"]["answers"] == 4
    assert len(closed["rounds"]) == 2
    assert (tmp_path / "bench.png").read_bytes().startswith(b"\x89PNG")


def test_it_starts_and_ends_its_own_server_beside_the_bare_engine(
    tiny_model: Path, tmp_path: Path
) -> None:
    engine = [
        "--model",
        str(tiny_model),
        "--dtype",
        "float32",
        "--kv-cache-memory",
        "64MiB",
        "--no-prefix-cache",
    ]
    arguments = ["--concurrency", "2", *engine, *SMALL]
    result = run("bench", *arguments, "--out", str(tmp_path), "--seed", "once")
    assert result.returncode == 0, result.stderr
    written = json.loads((tmp_path / "bench.json").read_text())
    ours, bare = written["rows"]
    assert (ours["target"], bare["target"]) == ("tickertape", "bare engine")
    assert ours["memory"]["pss"] > 100e6
    assert bare["step_ms"] > 0
    assert bare["bandwidth_share"] > 0
    assert all(rate > 1e9 for rate in written["bandwidth"].values())
    assert written["options"]["seed"] == "once"
    assert "Finished server process" in (tmp_path / "server.log").read_text()


def test_flags_are_handed_on_as_they_were_given() -> None:
    flags: Flags = {"max_num_seqs": "8", "prefix_cache": False}
    assert as_arguments(flags) == ["--max-num-seqs", "8", "--no-prefix-cache"]
    assert as_arguments({"prefix_cache": True}) == ["--prefix-cache"]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--peer", "http://127.0.0.1:1"], "one --peer-model for each --peer"),
        (["--url", "http://127.0.0.1:1"], "nothing answers"),
        (["--kv-cache-memory", "much"], "512MiB"),
    ],
)
def test_what_cannot_be_measured_is_one_line(
    arguments: list[str], words: str, tmp_path: Path
) -> None:
    assert words in one_line(run("bench", *arguments, "--no-bare", "--out", str(tmp_path)))


async def test_scenarios_answer_with_the_figure_that_was_asked_for(tmp_path: Path) -> None:
    """The default model: the tokens of a tiny one come several at once, with no time between."""
    with running(tmp_path / "log") as server:
        await check_scenarios(Target("us", server.url, Native()))


async def check_scenarios(target: Target) -> None:
    found = {s: (await s(target, "s", 1, SIZES)).figures for s in (prefill, pace, growth)}
    first = found[prefill]
    tokens = first["prompt, tokens"]
    assert tokens in (40, 41)  # the first word has no space before it
    assert first["prefill, tokens/s"] == pytest.approx(tokens / (first["TTFT, ms"] / 1000))
    assert found[pace]["long prompts"] >= 1
    assert found[pace]["ITL p99 beside / p50 alone"] > 0
    assert min(found[growth].values()) > 0


async def test_memory_is_that_of_the_engine_too(target: Target, server: RunningServer) -> None:
    found = await full_house(target, "s", 1, SIZES)
    engine = memory(server.health()["engine_pid"])
    assert engine
    assert found.figures["most PSS, MB"] > engine.pss / 1e6 * 1.02


async def test_start_is_from_the_process_to_the_first_token(
    tiny_model: Path, tmp_path: Path
) -> None:
    began = time.perf_counter()
    found = await start({"model": str(tiny_model)}, tmp_path / "log", "s", 1)
    took = time.perf_counter() - began
    assert took / 2 < found.figures["median, s"] < took


def test_the_tables_fit_a_narrow_terminal() -> None:
    written = io.StringIO()
    show(report(), Console(width=80, file=written))
    text = written.getvalue()
    for words in ("3.00", "1,234", "25.0 GB/s", "it made only 1 tokens an answer", "1,000"):
        assert words in text
    assert "…" not in text


def test_the_plot_is_a_picture(tmp_path: Path) -> None:
    plot(report(), tmp_path / "plot.png")
    assert (tmp_path / "plot.png").read_bytes().startswith(b"\x89PNG")
