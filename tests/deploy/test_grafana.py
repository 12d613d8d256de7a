"""The dashboard asks for what there is, in expressions that Prometheus can read.

Grafana itself is not asked: no package has it. What can be told without it is: that a panel has
what a person needs to read it, and that none lies upon another.
"""

import itertools
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.deploy.metric_names import COUNTERS, LABELS, PREFIX, SERIES
from tests.deploy.tools import DEPLOY, complaints

GRAFANA = DEPLOY / "grafana"
DASHBOARD: dict[str, Any] = json.loads((GRAFANA / "dashboard.json").read_text())
PANELS: list[dict[str, Any]] = DASHBOARD["panels"]
ROWS = ["Requests", "Latency", "Tokens", "KV and prefix cache", "Tapes"]

# What Grafana puts in before it asks.
VARIABLES = {"$__rate_interval": "1m", "$__range": "1h", "$model": ".*"}


def expressions() -> Iterator[str]:
    for panel in PANELS:
        for target in panel.get("targets", []):
            expression = target["expr"]
            for name, value in VARIABLES.items():
                expression = expression.replace(name, value)
            yield expression


def complaints_of_promtool(asked: list[str], folder: Path) -> str:
    """promtool reads expressions only from rules."""
    rules = [{"record": f"of_the_dashboard:{n}", "expr": text} for n, text in enumerate(asked)]
    file = folder / "rules.yml"
    file.write_text(yaml.safe_dump({"groups": [{"name": "dashboard", "rules": rules}]}))
    return complaints("promtool", "check", "rules", file)


def test_prometheus_can_read_every_expression(tmp_path: Path) -> None:
    asked = list(expressions())
    assert not [expression for expression in asked if "$" in expression]
    assert complaints_of_promtool(asked, tmp_path) == ""


def test_an_expression_that_is_none_would_be_found(tmp_path: Path) -> None:
    assert "parse error" in complaints_of_promtool(["sum(rate(a[1m])"], tmp_path)


def test_it_asks_for_metrics_that_exist_and_for_all_of_them() -> None:
    asked = set(re.findall(r"\btickertape:\w+", " ".join(expressions())))
    assert asked <= SERIES
    shown = {re.sub(r"_(bucket|sum|count)$", "", name) for name in asked}
    assert shown == {re.sub(r"_(bucket|sum|count)$", "", name) for name in SERIES}


def test_counters_are_read_as_rates() -> None:
    for expression in expressions():
        for name in re.findall(r"\btickertape:(\w+?)(?:_total)?\{", expression):
            if name in COUNTERS:
                assert re.search(rf"(rate|increase)\({PREFIX}{name}_total\{{", expression)


def test_labels_are_those_of_the_metrics() -> None:
    for panel in PANELS:
        for target in panel.get("targets", []):
            known = {"model_name", "le"}.union(
                *(
                    LABELS.get(name, set())
                    for name in COUNTERS
                    if f":{name}_total" in target["expr"]
                )
            )
            named = set(re.findall(r"(\w+)=~?\"", target["expr"]))
            for group in re.findall(r"by \(([^)]*)\)", target["expr"]):
                named |= set(group.replace(" ", "").split(","))
            named |= set(re.findall(r"\{\{(\w+)\}\}", target["legendFormat"]))
            assert named <= known


def test_quantiles_are_taken_over_replicas() -> None:
    """A quantile of each, added up or averaged, is the quantile of nothing."""
    quantiles = [expression for expression in expressions() if "quantile" in expression]
    assert quantiles
    for expression in quantiles:
        assert re.match(
            r"histogram_quantile\(0\.\d+, sum by \(le\) \(rate\(\S+_bucket\{", expression
        )


def test_rows_are_there_and_hold_panels() -> None:
    assert [panel["title"] for panel in PANELS if panel["type"] == "row"] == ROWS
    kinds = [panel["type"] for panel in PANELS] + ["row"]
    assert ("row", "row") not in list(itertools.pairwise(kinds))


def test_panels_neither_overlap_nor_share_an_id() -> None:
    ids = [panel["id"] for panel in PANELS]
    assert len(set(ids)) == len(ids)
    taken: set[tuple[int, int]] = set()
    for panel in PANELS:
        at = panel["gridPos"]
        cells = set(
            itertools.product(range(at["x"], at["x"] + at["w"]), range(at["y"], at["y"] + at["h"]))
        )
        assert at["x"] + at["w"] <= 24
        assert not cells & taken
        taken |= cells


@pytest.mark.parametrize("panel", PANELS, ids=lambda panel: panel["title"])
def test_a_panel_is_complete(panel: dict[str, Any]) -> None:
    if panel["type"] == "row":
        return
    assert panel["description"]
    assert panel["fieldConfig"]["defaults"]["unit"]
    assert panel["datasource"]["uid"] == "${datasource}"
    letters = [target["refId"] for target in panel["targets"]]
    assert letters == sorted(set(letters))
    for target in panel["targets"]:
        assert target["legendFormat"]
        assert "$model" in target["expr"]


def test_provisioning_finds_dashboard_and_prometheus() -> None:
    """What compose.yaml mounts there is checked in test_compose.py."""
    provisioning = GRAFANA / "provisioning"
    (source,) = yaml.safe_load((provisioning / "datasources" / "prometheus.yaml").read_text())[
        "datasources"
    ]
    assert (source["type"], source["url"]) == ("prometheus", "http://prometheus:9090")
    (provider,) = yaml.safe_load((provisioning / "dashboards" / "tickertape.yaml").read_text())[
        "providers"
    ]
    assert provider["type"] == "file"
