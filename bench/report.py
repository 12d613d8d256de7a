"""What a benchmark found: as a table for people, as JSON for programs."""

from collections.abc import Callable, Sequence
from itertools import groupby

import msgspec
from rich import box
from rich.console import Console
from rich.table import Table

from bench.figures import Figures, Percentiles
from bench.memory import Memory
from bench.scenarios import Finding


class Row(msgspec.Struct, frozen=True):
    """One load against one target: medians over the rounds, and each round.

    `ours_over_it` is our throughput over this target's, `generator_share` the part of one core that
    the load generator took. The bare engine has a step: its bytes over the measured bandwidth and
    over the time it took.
    """

    load: str
    target: str
    figures: Figures
    rounds: list[Figures]
    ours_over_it: float
    generator_share: float = 0.0
    memory: Memory | None = None
    step_ms: float | None = None
    step_bytes: float | None = None
    bandwidth_share: float | None = None


class Report(msgspec.Struct):
    machine: dict[str, str | int]
    options: dict[str, object]
    bandwidth: dict[int, float] = {}
    rows: list[Row] = []
    findings: list[Finding] = []


def show(report: Report, console: Console) -> None:
    if report.rows:
        size = f"{report.options['words']}-word prompts, {report.options['new_tokens']} new tokens"
        console.print(_throughput(report.rows, size))
        console.print(_latencies(report.rows))
    for line in _remarks(report):
        console.print(line, highlight=False)
    if report.findings:
        console.print(_findings(report.findings))


def _throughput(rows: Sequence[Row], size: str) -> Table:
    headings = ("load", "target", "tokens/s", "ours : it", "PSS, MB", "step, ms", "memory")
    table = _table(f"throughput: {size}", *headings)
    table.caption = "memory: the share of the read bandwidth that a decode step reaches"
    _fill(
        table,
        rows,
        lambda row: (
            f"{row.figures.tokens_per_second:,.0f}",
            f"{row.ours_over_it:.2f}",
            f"{row.memory.pss / 1e6:,.0f}" if row.memory else "",
            f"{row.step_ms:.1f}" if row.step_ms else "",
            f"{row.bandwidth_share:.0%}" if row.bandwidth_share else "",
        ),
    )
    return table


def _latencies(rows: Sequence[Row]) -> Table:
    table = _table("latencies, ms: p50 / p90 / p99", "load", "target", "TTFT", "ITL", "TPOT")
    _fill(
        table,
        rows,
        lambda row: (
            _slashed(row.figures.ttft_ms),
            _slashed(row.figures.itl_ms),
            _slashed(row.figures.tpot_ms),
        ),
    )
    return table


def _table(title: str, *headings: str) -> Table:
    """The first two columns are names, the others figures."""
    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False)
    table.caption_justify = "left"
    for number, heading in enumerate(headings):
        table.add_column(heading, justify="left" if number < 2 else "right")
    return table


def _fill(table: Table, rows: Sequence[Row], cells: Callable[[Row], tuple[str, ...]]) -> None:
    """A section for each load, named once."""
    for load, section in groupby(rows, lambda row: row.load):
        for number, row in enumerate(section):
            table.add_row("" if number else load, row.target, *cells(row))
        table.add_section()


def _slashed(p: Percentiles) -> str:
    return " / ".join(f"{v:.0f}" if v >= 10 else f"{v:.1f}" for v in (p.p50, p.p90, p.p99))


def _remarks(report: Report) -> list[str]:
    lines = []
    if report.bandwidth:
        rates = report.bandwidth.items()
        sizes = ", ".join(f"{size >> 20} MiB {rate / 1e9:.1f} GB/s" for size, rate in rates)
        lines.append(f"read bandwidth of all cores (sum over a tensor): {sizes}")
    for row in report.rows:
        if row.figures.new_tokens < 0.99 * int(str(report.options["new_tokens"])):
            lines.append(f"{row.target} made only {row.figures.new_tokens:.0f} tokens an answer")
    if report.rows:
        share = max(row.generator_share for row in report.rows)
        lines.append(f"the load generator took at most {share:.1%} of one core")
    return lines


def _findings(findings: Sequence[Finding]) -> Table:
    table = _table("scenarios", "scenario", "target", "figure")
    table.columns[1].no_wrap = True
    table.add_column("value", justify="right")
    for finding in findings:
        for number, (name, value) in enumerate(finding.figures.items()):
            who = ("", "") if number else (finding.scenario, finding.target)
            table.add_row(*who, name, f"{value:,.0f}" if abs(value) >= 100 else f"{value:.2f}")
        table.add_section()
    return table
