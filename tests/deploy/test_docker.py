"""The Dockerfile and compose.yaml: read by hadolint and by the schema of Compose, and at one with
the settings. No image is built here: there is no Docker."""

import json
import os
import re
import subprocess
import sys
import threading
import tomllib
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest
import yaml

from app.guard.hosts import own_names
from app.settings import Settings
from tests.deploy.tools import ROOT, complaints
from tests.speed import patience

DOCKERFILE = ROOT / "Dockerfile"
COMPOSE = ROOT / "compose.yaml"
VARIABLES = {f"TICKERTAPE_{name.upper()}" for name in Settings.model_fields}

# What a server needs beyond --shutdown-grace to be gone; tests/e2e/test_shutdown.py proves it.
FLUSH = 2


def instructions(name: str) -> list[str]:
    """What follows each `name` in the Dockerfile, its lines joined."""
    joined = DOCKERFILE.read_text().replace("\\\n", "")
    return re.findall(rf"^{name} +(.*)$", joined, re.MULTILINE)


def service(name: str) -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load(COMPOSE.read_text())["services"][name]
    return found


def test_hadolint_has_nothing_to_say() -> None:
    assert complaints("hadolint", DOCKERFILE) == ""


@pytest.mark.parametrize(
    ("right", "wrong", "rule"),
    [
        ("python:${PYTHON}-slim-bookworm AS", "python AS", "DL3006"),
        ("apt-get install -y", "apt-get install", "DL3014"),
        ('ENTRYPOINT ["tini", "--", "tickertape", "serve"]', "ENTRYPOINT tickertape", "DL3025"),
        ("WORKDIR /src", "WORKDIR src", "DL3000"),
        ("COPY . ./", "COPY . /one /two", "DL3021"),
    ],
)
def test_a_broken_dockerfile_would_be_found(
    tmp_path: Path, right: str, wrong: str, rule: str
) -> None:
    text = DOCKERFILE.read_text()
    assert right in text
    broken = tmp_path / "Dockerfile"
    broken.write_text(text.replace(right, wrong))
    assert rule in complaints("hadolint", broken)


def test_the_image_runs_as_somebody_without_rights() -> None:
    """By number: Kubernetes cannot tell whether a name is root's."""
    (user,) = instructions("USER")
    assert re.fullmatch(r"[1-9]\d*:[1-9]\d*", user)
    assert DOCKERFILE.read_text().index("\nUSER ") > DOCKERFILE.read_text().rindex("\nFROM ")


def test_the_image_sets_what_there_is_to_set() -> None:
    (environment, *_) = [text for text in instructions("ENV") if "TICKERTAPE_" in text]
    assert set(re.findall(r"TICKERTAPE_\w+", environment)) <= VARIABLES


def test_the_image_has_the_model_of_the_makefile() -> None:
    (package,) = re.findall(r"^ARG MODEL_PACKAGE=(.+)$", DOCKERFILE.read_text(), re.MULTILINE)
    assert f"install --no-deps {package}\n" in (ROOT / "Makefile").read_text()


def test_every_package_gets_into_the_image() -> None:
    allowed = re.findall(r"^!(.+)$", (ROOT / ".dockerignore").read_text(), re.MULTILINE)
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    packages = project["tool"]["setuptools"]["packages"]["find"]["include"]
    needed = {package.rstrip("*") for package in packages} | {
        *project["project"]["license-files"],
        project["project"]["readme"],
        "pyproject.toml",
        "constraints.txt",
    }
    assert set(allowed) == needed
    assert all((ROOT / name).exists() for name in needed)


def test_docker_does_not_kill_a_server_that_drains() -> None:
    """Docker waits for 10 seconds."""
    assert Settings.model_fields["shutdown_grace"].default + FLUSH < 10
    assert instructions("STOPSIGNAL") == ["SIGTERM"]


def install_torch(folder: Path, torch: str, index: str) -> str | None:
    """What the Dockerfile would have pip install, or None where it stops the build."""
    (script,) = [run for run in instructions("RUN") if "TORCH_INDEX" in run]
    asked = folder / "asked"
    for name in ("pip", "python"):
        program = folder / name
        program.write_text(f'#!/bin/sh\necho "{name} $@" >>"{asked}"\n')
        program.chmod(0o755)
    script = script.removeprefix("--mount=type=cache,target=/root/.cache/pip")
    script = script.replace("/opt/tickertape/bin", str(folder))
    environment = os.environ | {"TORCH": torch, "TORCH_INDEX": index}
    done = subprocess.run(["sh", "-c", script], cwd=ROOT, env=environment, capture_output=True)
    return asked.read_text() if done.returncode == 0 else None


def test_torch_is_the_one_that_was_asked_for(tmp_path: Path) -> None:
    index = "https://wheels.example/cpu"
    (pinned,) = re.findall(r"^torch==.*$", (ROOT / "constraints.txt").read_text(), re.MULTILINE)
    for torch, given, wanted in (
        ("cpu", index, f"--extra-index-url {index} {pinned}\npython "),
        ("cuda", "", f"constraints.txt {pinned}\n"),
    ):
        folder = tmp_path / torch
        folder.mkdir()
        asked = install_torch(folder, torch, given)
        assert asked is not None
        assert wanted in asked
        assert ("version.cuda" in asked) == (torch == "cpu")  # what came is looked at


@pytest.mark.parametrize("torch", ["cpu", "gpu", ""])
def test_no_torch_is_taken_by_chance(tmp_path: Path, torch: str) -> None:
    assert install_torch(tmp_path, torch, "") is None


@contextmanager
def answering(status: int) -> Iterator[int]:
    """A server that answers /health with `status`, and nothing else; its port."""

    class Health(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(status if self.path == "/health" else 404)
            self.end_headers()

        def log_message(self, format: str, *args: object) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Health) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield server.server_port
        server.shutdown()
        thread.join()


def check_health(port: int) -> int:
    """The exit code of the Dockerfile's own HEALTHCHECK."""
    (check,) = instructions("HEALTHCHECK")
    program, *arguments = json.loads(check.partition("CMD ")[2])
    assert program == "python"
    # A proxy that is not there: one must not be asked.
    environment = {"TICKERTAPE_PORT": str(port), "http_proxy": "http://127.0.0.1:9"}
    command = [sys.executable, "-S", *arguments]
    return subprocess.run(
        command, env=environment, capture_output=True, timeout=patience(30)
    ).returncode


def test_the_health_check_tells_well_from_ill() -> None:
    with answering(200) as port:
        assert check_health(port) == 0
    assert check_health(port) == 1  # nobody listens any more
    with answering(500) as port:
        assert check_health(port) == 1


def schema_complaints(file: Path) -> str:
    return complaints("check-jsonschema", "--builtin-schema", "vendor.compose-spec", file)


def test_compose_can_read_it() -> None:
    assert schema_complaints(COMPOSE) == ""


@pytest.mark.parametrize(
    ("right", "wrong"),
    [
        ("restart: unless-stopped", "restrat: unless-stopped"),
        ("      - models:/models", "      models: /models"),
        ("read_only: true", "read_only: 1.5"),
        ("stop_grace_period: 45s", "stop_grace_period: [45]"),
    ],
)
def test_a_broken_compose_file_would_be_found(tmp_path: Path, right: str, wrong: str) -> None:
    text = COMPOSE.read_text()
    assert right in text
    broken = tmp_path / "compose.yaml"
    broken.write_text(text.replace(right, wrong, 1))
    assert schema_complaints(broken)


@pytest.mark.parametrize("name", ["server", "redis", "prometheus", "grafana"])
def test_a_service_is_pinned_and_kept_to_this_machine(name: str) -> None:
    assert re.fullmatch(r"[a-z/]+:v?\d+\.\d+\.\d+", service(name)["image"])
    for port in service(name).get("ports", []):
        assert port.startswith("127.0.0.1:")


@pytest.mark.parametrize("name", ["server", "redis", "prometheus", "grafana"])
def test_what_is_mounted_exists(name: str) -> None:
    volumes = yaml.safe_load(COMPOSE.read_text())["volumes"]
    for mount in service(name).get("volumes", []):
        source = mount.split(":")[0]
        assert (ROOT / source).exists() if source.startswith(".") else source in volumes


def test_everything_is_of_one_version() -> None:
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    chart = yaml.safe_load((ROOT / "deploy/helm/tickertape/Chart.yaml").read_text())
    assert str(chart["appVersion"]) == version
    assert service("server")["image"] == f"tickertape:{version}"


def test_compose_sets_what_there_is_to_set() -> None:
    ours = {name for name in service("server")["environment"] if name.startswith("TICKERTAPE_")}
    assert ours <= VARIABLES


def test_compose_does_not_kill_a_server_that_drains() -> None:
    server = service("server")
    grace = server["environment"]["TICKERTAPE_SHUTDOWN_GRACE"]
    assert int(server["stop_grace_period"].rstrip("s")) > grace + FLUSH


def test_prometheus_may_ask_the_server() -> None:
    """By the name of the service, which the server must answer to."""
    file = ROOT / "deploy" / "prometheus" / "prometheus.yml"
    (job,) = yaml.safe_load(file.read_text())["scrape_configs"]
    ((target,),) = [static["targets"] for static in job["static_configs"]]
    host, _, port = target.partition(":")
    server = service("server")
    names = own_names("0.0.0.0", server["environment"]["TICKERTAPE_ALLOWED_HOSTS"].split(","))
    assert names is not None
    assert host in names
    assert host in yaml.safe_load(COMPOSE.read_text())["services"]
    assert f"TICKERTAPE_PORT={port} " in " ".join(instructions("ENV")) + " "


def test_grafana_finds_its_dashboard() -> None:
    (provider,) = yaml.safe_load(
        (ROOT / "deploy/grafana/provisioning/dashboards/tickertape.yaml").read_text()
    )["providers"]
    grafana = service("grafana")
    targets = dict(mount.split(":")[:2] for mount in grafana["volumes"])
    mounted = targets["./deploy/grafana/dashboard.json"]
    assert Path(mounted).parent == Path(provider["options"]["path"])
    assert grafana["environment"]["GF_DASHBOARDS_DEFAULT_HOME_DASHBOARD_PATH"] == mounted
