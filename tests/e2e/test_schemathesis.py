"""What /openapi.json says is so: Schemathesis asks what it allows and what it forbids, and looks
at every answer. With a key, and without.
"""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.server import RunningServer, running
from tests.tiny import TOOLS_TEMPLATE, tiny_llama

ROOT = Path(__file__).parents[2]
SCHEMATHESIS = Path(sys.executable).with_name("schemathesis")
ALL_PHASES_FROM = 50  # examples; with fewer, each phase runs once: here, or there
KEY = "a-key-of-this-server"

# All checks are on but one, for one operation: DELETE of a tape cancels it and leaves it readable,
# so that its readers learn of the end. That is no use after free.
# Links are followed as the document has them. Schemathesis would infer one from /v1/models to
# /v1/models/{model}, and follow no other because that one never fails.
# 408 answers a request whose own `timeout` has passed: the least that is allowed is a millisecond.
CONFIG = """
phases.stateful.inference.algorithms = []
checks.positive_data_acceptance.expected-statuses = [
    "2xx", "3xx", "401", "403", "404", "408", "409", "429", "5xx",
]

[[operations]]
include-operation-id = "read_tape"
checks.use_after_free.enabled = false
"""


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_llama(tmp_path_factory.mktemp("tiny"), TOOLS_TEMPLATE)


@pytest.fixture
def server(request: pytest.FixtureRequest, model: Path, tmp_path: Path) -> Iterator[RunningServer]:
    """With its flags; what it has to say is a warning."""
    keys = tmp_path / "keys"
    keys.write_text(f"{KEY}\n")
    locked = ("--api-key-file", str(keys)) if request.param else ()
    flags = ("--model", str(model), "--log-level", "warning", *locked)
    with running(tmp_path / "log", *flags) as server:
        yield server
        assert server.stop() == 0, server.log.read_text()


def schemathesis(server: RunningServer, folder: Path, *flags: str) -> str:
    """Its report. Fails where anything is not as the document says."""
    config = folder / "schemathesis.toml"
    config.write_text(CONFIG)
    command = [str(SCHEMATHESIS), "--config-file", str(config), "run"]
    common = ("--output-sanitize", "false", "--generation-database", "none")
    run = subprocess.run(
        [*command, f"{server.url}/openapi.json", *common, "--continue-on-failure", *flags],
        cwd=folder,
        env=os.environ
        | {"PYTHONPATH": str(ROOT), "SCHEMATHESIS_HOOKS": "tests.e2e.between_fields"},
        capture_output=True,
        text=True,
    )
    report: str = run.stdout
    assert run.returncode == 0, report + run.stderr
    return report


@pytest.mark.long
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("server", [False, True], indirect=True, ids=["open", "locked"])
def test_the_document_is_true(
    server: RunningServer, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    examples: int = request.config.getoption("examples")
    locked = "locked" in request.node.name
    flags = ["--max-examples", str(examples)]
    if examples < ALL_PHASES_FROM:
        flags += ["--phases", "coverage" if locked else "fuzzing,stateful"]
    if locked:
        flags += ["--header", f"Authorization: Bearer {KEY}"]
    report = schemathesis(server, tmp_path, *flags)
    print(report[report.index("= SUMMARY") :])
    assert "Tested: 22" in report
    health = server.health()
    assert health["engine"] == "ready"
