"""The loads of a report as a picture. Needs matplotlib: `pip install 'tickertape[bench]'`."""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from bench.figures import Percentiles
from bench.report import Report, Row

COLORS = ["#c2410c", "#6b7280", "#1d4ed8", "#15803d", "#7e22ce", "#0e7490"]


def plot(report: Report, path: Path) -> None:
    """Throughput, TTFT and TPOT over the load, as a PNG. Raises ImportError without matplotlib."""
    from matplotlib.figure import Figure

    picture = Figure(figsize=(15, 4.8), layout="constrained")
    throughput, ttft, tpot = picture.subplots(1, 3, width_ratios=[1.4, 1, 1])
    _throughput(throughput, report.rows)
    _latency(ttft, report.rows, "ttft_ms")
    _latency(tpot, report.rows, "tpot_ms")
    throughput.set_title("tokens per second", loc="left")
    ttft.set_title("time to first token, ms (p50 to p99)", loc="left")
    tpot.set_title("time per output token, ms (p50 to p99)", loc="left")
    handles, labels = throughput.get_legend_handles_labels()
    picture.legend(handles, labels, loc="outside upper left", ncols=len(labels), frameon=False)
    picture.savefig(path, dpi=150)


def _throughput(axes: Any, rows: Sequence[Row]) -> None:
    """A bar for each target at each load, its height a share of the best there, its figure above.

    So loads that differ by two orders of magnitude are all legible.
    """
    loads, targets = _unique(row.load for row in rows), _unique(row.target for row in rows)
    best = {x: max(r.figures.tokens_per_second for r in rows if r.load == x) for x in loads}
    for number, target in enumerate(targets):
        own = [row for row in rows if row.target == target]
        heights = [row.figures.tokens_per_second / best[row.load] for row in own]
        places, width = _places(own, loads, number, len(targets))
        bars = axes.bar(places, heights, width * 0.94, label=target, color=_color(number))
        figures = [f"{row.figures.tokens_per_second:,.0f}" for row in own]
        axes.bar_label(bars, figures, fontsize=8, padding=2)
    axes.set_ylim(0, 1.15)
    axes.set_yticks([0, 0.5, 1], ["0", "half of\nthe best", "the best"], fontsize=8)
    _dress(axes, loads)


def _latency(axes: Any, rows: Sequence[Row], name: str) -> None:
    loads, targets = _unique(row.load for row in rows), _unique(row.target for row in rows)
    for number, target in enumerate(targets):
        own = [row for row in rows if row.target == target]
        latencies: list[Percentiles] = [getattr(row.figures, name) for row in own]
        places, _ = _places(own, loads, number, len(targets))
        middles = [latency.p50 for latency in latencies]
        up = [latency.p99 - latency.p50 for latency in latencies]
        axes.errorbar(
            places,
            middles,
            [[0] * len(up), up],
            fmt="o",
            markersize=5,
            capsize=3,
            linewidth=1.4,
            color=_color(number),
        )
        for place, value in zip(places, middles, strict=True):
            axes.annotate(
                _short(value),
                (place, value),
                (0, -12),
                textcoords="offset points",
                ha="center",
                fontsize=8,
                color=_color(number),
            )
    axes.set_yscale("log")
    axes.yaxis.set_major_formatter("{x:,.0f}")
    axes.yaxis.set_minor_formatter(_plain_numbers())
    axes.margins(y=0.15)
    _dress(axes, loads)


def _plain_numbers() -> Any:
    """20 and 60 between 10 and 100, not powers; none where there is no room."""
    from matplotlib.ticker import LogFormatter

    return LogFormatter(minor_thresholds=(1.6, 0.5))


def _places(
    rows: Sequence[Row], loads: Sequence[str], number: int, targets: int
) -> tuple[list[float], float]:
    """Where target `number` stands at each of its loads, beside its neighbours; and its width."""
    width = 0.84 / targets
    return [loads.index(row.load) + (number + 0.5) * width - 0.42 for row in rows], width


def _dress(axes: Any, loads: Sequence[str]) -> None:
    axes.set_xticks(range(len(loads)), loads)
    axes.set_xlabel("streams at once, or requests a second")
    axes.grid(axis="y", color="#e5e7eb", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)


def _unique(names: Iterable[str]) -> list[str]:
    return list(dict.fromkeys(names))


def _color(number: int) -> str:
    return COLORS[number % len(COLORS)]


def _short(value: float) -> str:
    """Three digits, or all before the point: 7.62, 41.1, 4,119."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"
