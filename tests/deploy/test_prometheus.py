"""Prometheus takes the configuration; alerts fire when they should, and say what to do then."""

import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.deploy.metric_names import SERIES
from tests.deploy.tools import DEPLOY, ROOT, complaints

PROMETHEUS = DEPLOY / "prometheus"
TESTS = ["alerts_test.yml", "alerts_day_test.yml"]
RULES: list[dict[str, Any]] = yaml.safe_load((PROMETHEUS / "alerts.yml").read_text())["groups"][0][
    "rules"
]


def anchors(document: Path) -> set[str]:
    """What a link's fragment may name: the headings, as GitHub spells them."""
    headings = re.findall(r"^#+ (.+)$", document.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading).lower().replace(" ", "-") for heading in headings}


def test_prometheus_takes_the_configuration() -> None:
    assert complaints("promtool", "check", "config", PROMETHEUS / "prometheus.yml") == ""


def test_alerts_fire_when_they_should() -> None:
    assert complaints("promtool", "test", "rules", *TESTS, cwd=PROMETHEUS) == ""


def test_wrong_alerts_would_be_found(tmp_path: Path) -> None:
    """The negative control, all mistakes at once: to run promtool takes long."""
    mistakes = {
        "TickertapeEngineDown": ("engine_up == 0", "engine_up == 1"),
        "TickertapeEngineRestarts": ("restarts_total[15m]) > 2", "restarts_total[15m]) > 1"),
        "TickertapeQueueGrows": ("and deriv(", "and rate("),
        "TickertapeRefusals": ("> 0.05", "> 0.5"),
        "TickertapeTokensRegressed": ("> 2 * histogram", "> 20 * histogram"),
        "TickertapeKVCacheFull": ("> 0.95", "> 1"),
        "TickertapeErrorEnds": ('finished_reason="error"', 'finished_reason="stop"'),
    }
    rules = (PROMETHEUS / "alerts.yml").read_text()
    for right, wrong in mistakes.values():
        assert right in rules
        rules = rules.replace(right, wrong)
    (tmp_path / "alerts.yml").write_text(rules)
    for file in TESTS:
        shutil.copy(PROMETHEUS / file, tmp_path)
    said = complaints("promtool", "test", "rules", *TESTS, cwd=tmp_path)
    assert set(mistakes) <= set(re.findall(r"alertname: (\w+)", said))


def test_an_alert_that_cannot_be_read_would_be_found(tmp_path: Path) -> None:
    rules = (PROMETHEUS / "alerts.yml").read_text()
    (tmp_path / "alerts.yml").write_text(rules.replace("engine_up == 0", "engine_up == = 0"))
    assert "parse error" in complaints("promtool", "check", "rules", tmp_path / "alerts.yml")


def test_every_alert_is_tested_both_ways() -> None:
    cases = [
        case for file in TESTS for case in yaml.safe_load((PROMETHEUS / file).read_text())["tests"]
    ]
    checks = [check for case in cases for check in case.get("alert_rule_test", [])]
    assert {check["alertname"] for check in checks if check["exp_alerts"]} == {
        rule["alert"] for rule in RULES
    }
    # The one case in which nothing at all may fire.
    assert any(
        "ALERTS" in check["expr"] for case in cases for check in case.get("promql_expr_test", [])
    )


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule["alert"])
def test_an_alert_says_what_to_do(rule: dict[str, Any]) -> None:
    assert rule["annotations"]["summary"]
    assert rule["labels"]["severity"] in {"warning", "critical"}
    link = re.match(r"See (\S+)#([\w-]+): ", rule["annotations"]["runbook"])
    assert link
    assert link[2] == rule["alert"].lower()
    assert link[2] in anchors(ROOT / link[1])


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule["alert"])
def test_an_alert_names_metrics_that_exist(rule: dict[str, Any]) -> None:
    assert set(re.findall(r"\btickertape:\w+", rule["expr"])) <= SERIES
