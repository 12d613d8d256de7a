"""`tickertape bench`: our server, the bare engine and peers, side by side on this machine."""

import asyncio
import contextlib
import os
import platform
import secrets
from collections.abc import Awaitable, Callable, Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum
from importlib.metadata import version
from itertools import zip_longest
from pathlib import Path
from typing import Annotated, Any
from urllib.parse import urlsplit

import msgspec
import typer
from rich.console import Console
from rich.progress import Progress, TextColumn, TimeElapsedColumn

from app.cli.options import with_options
from app.settings import EngineSettings
from bench import scenarios
from bench.bare import bare_engine
from bench.comparison import Plan, Say, compare
from bench.dialects import Native, OpenAI
from bench.figures import BenchError
from bench.plot import plot
from bench.report import Report, show
from bench.server import Flags, compile_kernels, serving
from bench.stream import Target

notes = Console(stderr=True, highlight=False)


class What(StrEnum):
    LOAD = "load"
    PREFILL = "prefill"
    PACE = "pace"
    GROWTH = "growth"
    MEMORY = "memory"
    START = "start"
    ALL = "all"


Scenario = Callable[[Target, str, int], Awaitable[scenarios.Finding]]
SCENARIOS: dict[What, Scenario] = {
    What.PREFILL: scenarios.prefill,
    What.PACE: scenarios.pace,
    What.GROWTH: scenarios.growth,
    What.MEMORY: scenarios.full_house,
}

Whats = Annotated[
    list[What] | None,
    typer.Argument(help="Throughput and latencies under load (the default), or scenarios, or all."),
]
Concurrency = Annotated[list[int], typer.Option(min=1, help="Streams at once; repeatable.")]
Rates = Annotated[list[float] | None, typer.Option(help="Poisson arrivals a second; repeatable.")]
Words = Annotated[int, typer.Option(min=1, help="Random words in a prompt.")]
NewTokens = Annotated[int, typer.Option(min=2, help="New tokens of an answer.")]
Requests = Annotated[int, typer.Option(min=1, help="Requests of each stream in a run.")]
Rounds = Annotated[int, typer.Option(min=1, help="Runs of each target; medians are shown.")]
Url = Annotated[str | None, typer.Option(help="A Tickertape that runs already.")]
Peers = Annotated[list[str] | None, typer.Option(help="An OpenAI-compatible server; repeatable.")]
PeerModels = Annotated[list[str] | None, typer.Option(help="Its name for the model; one a peer.")]
PeerNames = Annotated[list[str] | None, typer.Option(help="Its name in table and plot.")]
PeerPids = Annotated[list[int] | None, typer.Option(help="Its process, to see its memory.")]
Bare = Annotated[bool, typer.Option(help="Measure the bare engine too.")]
Seed = Annotated[str | None, typer.Option(help="Decides all prompts; by default a fresh one.")]
Out = Annotated[Path, typer.Option(help="A folder for bench.json, bench.png and server.log.")]


@with_options(EngineSettings)
def bench(
    flags: dict[str, Any],
    what: Whats = None,
    concurrency: Concurrency = [1, 8, 32, 64],  # noqa: B006
    rate: Rates = None,
    words: Words = 64,
    new_tokens: NewTokens = 128,
    requests: Requests = 2,
    rounds: Rounds = 3,
    url: Url = None,
    peer: Peers = None,
    peer_model: PeerModels = None,
    peer_name: PeerNames = None,
    peer_pid: PeerPids = None,
    bare: Bare = True,
    seed: Seed = None,
    out: Out = Path("bench-results"),
) -> None:
    """Measure this machine's Tickertape beside its bare engine and beside peers.

    Every request is greedy and goes to its full length. The flags of the engine, below, count for
    the server that is started and for the bare engine alike.
    """
    seed = seed or secrets.token_hex(4)
    flags = {name: value for name, value in flags.items() if value is not None}
    session = Session(
        whats=set(What) if what and What.ALL in what else set(what or [What.LOAD]),
        plan=Plan(concurrency, rate or [], words, new_tokens, requests, rounds, seed),
        flags=flags,
        url=url,
        peers=_peers(peer or [], peer_model or [], peer_name or [], peer_pid or []),
        bare=bare,
        log=out / "server.log",
    )
    out.mkdir(parents=True, exist_ok=True)
    report = Report(_machine(), msgspec.to_builtins(session.plan) | {"flags": flags})
    try:
        asyncio.run(session.measure(report))
    finally:  # what was found before a failure took its time, too
        (out / "bench.json").write_bytes(msgspec.json.format(msgspec.json.encode(report)))
    show(report, Console())
    _plot(report, out / "bench.png")


@dataclass(frozen=True, slots=True, kw_only=True)
class Session:
    """What was asked for; `measure` does it."""

    whats: set[What]
    plan: Plan
    flags: Flags
    url: str | None
    peers: list[Target]
    bare: bool
    log: Path

    async def measure(self, report: Report) -> None:
        """Fill in the report as results come. Raises BenchError."""
        with _progress() as say:
            if not self.url:
                say("the kernels are compiled, unless they are")
                compile_kernels()
            if What.START in self.whats:
                say("from process start to first token")
                report.findings.append(
                    await scenarios.start(self.flags, self.log, self.plan.seed, self.plan.rounds)
                )
            if self.whats == {What.START}:
                return
            say("the server starts")
            with self._ours() as ours:
                if What.LOAD in self.whats:
                    await self._loads([ours, *self.peers], report, say)
                await self._scenarios([ours, *self.peers], report, say)

    @contextlib.contextmanager
    def _ours(self) -> Iterator[Target]:
        if self.url:
            yield Target("tickertape", self.url, Native())
        else:
            with serving(self.flags, self.log) as target:
                yield target

    async def _loads(self, targets: list[Target], report: Report, say: Say) -> None:
        if not self.bare:
            async for row in compare(self.plan, targets, None, None, say):
                report.rows.append(row)
            return
        say("the bare engine starts")
        with bare_engine(self.flags) as bare:
            say("memory bandwidth")
            report.bandwidth = bare.bandwidth()
            bandwidth = report.bandwidth[max(report.bandwidth)]
            async for row in compare(self.plan, targets, bare, bandwidth, say):
                report.rows.append(row)

    async def _scenarios(self, targets: list[Target], report: Report, say: Say) -> None:
        for what in [what for what in SCENARIOS if what in self.whats]:
            for target in targets:
                if what is What.MEMORY and target.pid is None:
                    continue
                say(f"{what}: {target.name}")
                seed = f"{self.plan.seed} {what}"
                report.findings.append(await SCENARIOS[what](target, seed, self.plan.rounds))


def _peers(
    urls: Sequence[str], models: Sequence[str], names: Sequence[str], pids: Sequence[int]
) -> list[Target]:
    """Raises BenchError unless every peer has its model, and names and pids are for all or none."""
    for given, option in ((models, "--peer-model"), (names, "--peer-name"), (pids, "--peer-pid")):
        if len(given) != len(urls) and (given or option == "--peer-model"):
            raise BenchError(f"give one {option} for each --peer")
    return [
        Target(name or urlsplit(url).netloc, url, OpenAI(model), pid)
        for url, model, name, pid in zip_longest(urls, models, names, pids)
    ]


@contextlib.contextmanager
def _progress() -> Iterator[Say]:
    """One line that says what is measured now. It is redrawn twice a second, not to disturb."""
    columns = (TextColumn("{task.description}"), TimeElapsedColumn())
    with Progress(*columns, console=notes, transient=True, refresh_per_second=2) as progress:
        task = progress.add_task("")

        def say(doing: str) -> None:
            if not notes.is_terminal:
                notes.print(doing)
            progress.update(task, description=doing)

        yield say


def _machine() -> dict[str, str | int]:
    return {
        "tickertape": version("tickertape"),
        "torch": version("torch"),
        "python": platform.python_version(),
        "system": platform.system(),
        "processor": _processor(),
        "cores": os.cpu_count() or 0,
    }


def _processor() -> str:
    """The processor's own name where the system tells it."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            name, _, value = line.partition(":")
            if name.strip() == "model name":
                return value.strip()
    return platform.processor() or platform.machine()


def _plot(report: Report, path: Path) -> None:
    if not report.rows:
        return
    try:
        plot(report, path)
    except ImportError:
        notes.print("no plot: it needs matplotlib (pip install 'tickertape[bench]')")


def main(arguments: Sequence[str]) -> None:
    """`tickertape bench ARGUMENTS`. Raises BenchError, ModelLoadError or SettingsError."""
    names = {"help_option_names": ["-h", "--help"]}
    app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
    app.command(context_settings=names)(bench)
    app(list(arguments), prog_name="tickertape bench")
