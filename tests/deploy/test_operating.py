"""docs/operating.md tells of the metrics that there are, and of options that there are."""

import re

from app.settings import ClusterSettings, Settings
from tests.deploy.metric_names import COUNTERS, FAMILIES, GAUGES, LABELS, PREFIX
from tests.deploy.tools import ROOT

TEXT = (ROOT / "docs" / "operating.md").read_text()
ROWS = dict(re.findall(r"^\| `(tickertape:\w+)` \| (\w+) \|", TEXT, re.MULTILINE))

# Of other programs.
NOT_OURS = {"--appendonly", "--cpus", "--cpuset-cpus", "--stop-timeout"}


def test_every_metric_has_a_row() -> None:
    assert set(ROWS) == FAMILIES


def test_a_row_says_which_kind_it_is() -> None:
    kinds = {f"{PREFIX}{name}": "gauge" for name in GAUGES}
    kinds |= {f"{PREFIX}{name}_total": "counter" for name in COUNTERS}
    assert {name: kinds.get(name, "histogram") for name in FAMILIES} == ROWS


def test_a_row_names_the_labels() -> None:
    for name, labels in LABELS.items():
        (row,) = re.findall(rf"^\| `{PREFIX}{name}_total` .*", TEXT, re.MULTILINE)
        assert labels <= set(re.findall(r"`(\w+)`", row))


def test_options_are_those_of_the_server() -> None:
    named = set(re.findall(r"`(--[a-z-]+)", TEXT)) - NOT_OURS
    assert named
    ours = Settings.model_fields.keys() | ClusterSettings.model_fields.keys()
    assert named <= {f"--{name.replace('_', '-')}" for name in ours}
