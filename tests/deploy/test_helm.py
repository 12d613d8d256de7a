"""The chart, rendered by Helm and held against the schemas of Kubernetes.

A ServiceMonitor is not Kubernetes' own and has no schema here; no cluster takes any of it.
"""

import base64
import json
import shutil
import tomllib
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml

from app.settings import Settings
from tests.deploy.helm import Values, findings, rendered
from tests.deploy.metric_names import GAUGES, PREFIX
from tests.deploy.test_docker import FLUSH, instructions
from tests.deploy.tools import DEPLOY

CHART = DEPLOY / "helm" / "tickertape"
SCHEMA = json.loads((CHART / "values.schema.json").read_text())
DEFAULTS: Values = yaml.safe_load((CHART / "values.yaml").read_text())

# The oldest that Chart.yaml allows, and the newest that there is a schema of.
VERSIONS = ["1.30.0", kubernetes_validate.latest_version()]
_STRICT = True

EVERYTHING: Values = {
    "image": {"repository": "registry.example.org/tickertape", "tag": "1.2.3"},
    "imagePullSecrets": [{"name": "registry"}],
    "settings": {
        "model": "org/a-name",
        "kv_cache_memory": 2**33,
        "max_num_seqs": 32,
        "queue_timeout": 2.5,
        "prefix_cache": False,
        "cors_origins": "https://a.example, https://b.example",
    },
    "shutdownGraceSeconds": 120,
    "preStopSeconds": 10,
    "apiKeys": {"keys": ["one", "two"]},
    "models": {"existingClaim": "models"},
    "resources": {"limits": {"nvidia.com/gpu": 1}},
    "extraEnv": [{"name": "HF_TOKEN", "valueFrom": {"secretKeyRef": {"name": "a", "key": "b"}}}],
    "podAnnotations": {"a": "b"},
    "podLabels": {"team": "c"},
    "nodeSelector": {"gpu": "yes"},
    "tolerations": [{"key": "gpu", "operator": "Exists", "effect": "NoSchedule"}],
    "affinity": {"podAntiAffinity": {}},
    "topologySpreadConstraints": [
        {"maxSkew": 1, "topologyKey": "zone", "whenUnsatisfiable": "ScheduleAnyway"}
    ],
    "runtimeClassName": "nvidia",
    "service": {"type": "LoadBalancer", "port": 80, "sessionAffinity": "None"},
    "ingress": {"enabled": True, "tlsSecret": "tls"},
    "autoscaling": {"enabled": True, "waitingRequests": {"target": 4}},
    "podDisruptionBudget": {"maxUnavailable": "50%"},
    "serviceMonitor": {"enabled": True, "labels": {"release": "prometheus"}},
}
# What is only there, or only not there, in one of them is asked of this one.
QUEUE_ONLY: Values = {
    "apiKeys": {"existingSecret": "mine"},
    "autoscaling": {
        "enabled": True,
        "targetCPUUtilizationPercentage": 0,
        "waitingRequests": {"target": 4},
    },
    "podDisruptionBudget": {"enabled": False},
}

WRONG: list[Values] = [
    {"replicas": 2},
    {"replicaCount": -1},
    {"settings": {"port": 80}},
    {"settings": {"api_key_file": "/a"}},
    {"settings": {"max-num-seqs": 4}},
    {"settings": {"max_num_seqs": [4]}},
    {"apiKeys": {"keys": ["with a space"]}},
    {"service": {"sessionAffinity": "Cookie"}},
    {"autoscaling": {"enabled": True, "targetCPUUtilizationPercentage": 0}},
    {"podDisruptionBudget": {"maxUnavailable": "half"}},
]

Manifests = dict[str, dict[str, Any]]


@pytest.fixture(scope="module")
def releases() -> dict[str, Manifests]:
    """The manifests by kind, of three releases."""
    asked = {"defaults": {}, "everything": EVERYTHING, "queue only": QUEUE_ONLY}
    answers = rendered(CHART, *asked.values())
    found: dict[str, Manifests] = {}
    for name, answer in zip(asked, answers, strict=True):
        assert isinstance(answer, dict), answer
        files = [text for file, text in answer.items() if file.endswith(".yaml")]
        parsed = [document for text in files if (document := yaml.safe_load(text))]
        found[name] = {document["kind"]: document for document in parsed}
    return found


def pod(manifests: Manifests) -> dict[str, Any]:
    spec: dict[str, Any] = manifests["Deployment"]["spec"]["template"]["spec"]
    return spec


def container(manifests: Manifests) -> dict[str, Any]:
    (found,) = pod(manifests)["containers"]
    return dict(found)


def test_helm_has_nothing_to_say() -> None:
    assert findings(CHART) == []


@pytest.mark.parametrize(
    ("file", "right", "wrong"),
    [
        ("Chart.yaml", "version: 0.1.0", "version: one"),
        ("templates/service.yaml", "{{ .Values.service.type }}", "{{ .Values.service.type }"),
        ("templates/service.yaml", '"tickertape.selector"', '"tickertape.select"'),
        ("values.yaml", "replicaCount: 1", "replicaCount: one"),
    ],
)
def test_a_broken_chart_would_be_found(tmp_path: Path, file: str, right: str, wrong: str) -> None:
    chart = tmp_path / "tickertape"
    shutil.copytree(CHART, chart)
    text = (chart / file).read_text()
    assert right in text
    (chart / file).write_text(text.replace(right, wrong, 1))
    assert findings(chart)


def test_what_is_made_by_default_and_when_asked(releases: dict[str, Manifests]) -> None:
    always = {"ConfigMap", "Deployment", "Service"}
    assert set(releases["defaults"]) == always | {"PodDisruptionBudget"}
    assert set(releases["queue only"]) == always | {"HorizontalPodAutoscaler"}
    assert set(releases["everything"]) == always | {
        *("HorizontalPodAutoscaler", "Ingress", "PodDisruptionBudget", "Secret", "ServiceMonitor"),
    }


@pytest.mark.parametrize("version", VERSIONS)
def test_kubernetes_knows_every_field(releases: dict[str, Manifests], version: str) -> None:
    for manifests in releases.values():
        for kind, manifest in manifests.items():
            if kind != "ServiceMonitor":
                kubernetes_validate.validate(manifest, version, _STRICT)


@pytest.mark.parametrize(
    ("kind", "path", "wrong"),
    [
        ("Deployment", ("spec", "template", "spec", "enableServiceLink"), False),
        ("Deployment", ("spec", "replicas"), "two"),
        ("HorizontalPodAutoscaler", ("spec", "metrics", 0, "type"), 1),
        ("PodDisruptionBudget", ("spec", "maxUnavailble"), 1),
    ],
)
def test_a_field_that_is_none_would_be_found(
    releases: dict[str, Manifests], kind: str, path: tuple[str | int, ...], wrong: object
) -> None:
    manifest = json.loads(json.dumps(releases["everything"][kind]))
    *way, last = path
    part = manifest
    for step in way:
        part = part[step]
    part[last] = wrong
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(manifest, VERSIONS[-1], _STRICT)


@pytest.fixture(scope="module")
def refusals() -> list[dict[str, str] | str]:
    """What Helm says to WRONG, one after the other; to start it takes long."""
    return rendered(CHART, *WRONG)


@pytest.mark.parametrize("number", range(len(WRONG)), ids=map(json.dumps, WRONG))
def test_values_that_are_wrong_are_refused(
    refusals: list[dict[str, str] | str], number: int
) -> None:
    assert "don't meet the specifications of the schema" in refusals[number]


def test_every_value_is_in_the_schema() -> None:
    def compare(values: Values, schema: dict[str, Any]) -> None:
        if "properties" in schema:
            assert set(values) == set(schema["properties"]) - {"global"}  # Helm's own
            for key, value in values.items():
                if isinstance(value, dict):
                    compare(value, schema["properties"][key])

    compare(DEFAULTS, SCHEMA)


@pytest.mark.parametrize("name", ["defaults", "everything"])
def test_settings_are_those_of_the_server(releases: dict[str, Manifests], name: str) -> None:
    """It would not start with a key that it does not know."""
    told = tomllib.loads(releases[name]["ConfigMap"]["data"]["tickertape.toml"])
    settings = Settings(**told)
    values = DEFAULTS | (EVERYTHING if name == "everything" else {})
    for key, value in values["settings"].items():
        assert told[key] == value
    assert settings.shutdown_grace == values["shutdownGraceSeconds"]


def test_changed_settings_make_new_pods(releases: dict[str, Manifests]) -> None:
    sums = {
        manifests["Deployment"]["spec"]["template"]["metadata"]["annotations"]["checksum/settings"]
        for manifests in (releases["defaults"], releases["everything"])
    }
    assert len(sums) == 2


@pytest.mark.parametrize("name", ["defaults", "everything"])
def test_a_pod_is_not_killed_while_it_drains(releases: dict[str, Manifests], name: str) -> None:
    spec = pod(releases[name])
    stop = container(releases[name])["lifecycle"]["preStop"]["sleep"]["seconds"]
    grace = tomllib.loads(releases[name]["ConfigMap"]["data"]["tickertape.toml"])["shutdown_grace"]
    assert stop > 0
    assert spec["terminationGracePeriodSeconds"] > stop + grace + FLUSH


def test_probes_ask_what_they_are_for(releases: dict[str, Manifests]) -> None:
    server = container(releases["defaults"])
    for probe, path in (("startup", "/ready"), ("readiness", "/ready"), ("liveness", "/health")):
        asked = server[f"{probe}Probe"]["httpGet"]
        assert (asked["path"], asked["port"]) == (path, "http")
        # The kubelet would otherwise ask for the pod's address, and get 421 with --allowed-hosts.
        assert asked["httpHeaders"] == [{"name": "Host", "value": "localhost"}]
    startup = server["startupProbe"]
    assert startup["failureThreshold"] * startup["periodSeconds"] == DEFAULTS["startupSeconds"]


def test_no_variable_of_kubernetes_is_taken_for_one_of_ours(
    releases: dict[str, Manifests],
) -> None:
    """It sets TICKERTAPE_PORT=tcp://... in a pod beside a Service named tickertape."""
    assert pod(releases["defaults"])["enableServiceLinks"] is False
    ours = {variable["name"] for variable in container(releases["everything"])["env"]}
    assert {name for name in ours if name.startswith("TICKERTAPE_")} <= {
        f"TICKERTAPE_{name.upper()}" for name in Settings.model_fields
    }


def test_the_pod_may_do_little_and_write_where_it_must(releases: dict[str, Manifests]) -> None:
    for manifests in releases.values():
        outer, inner = pod(manifests)["securityContext"], container(manifests)["securityContext"]
        assert instructions("USER") == [f"{outer['runAsUser']}:{outer['runAsGroup']}"]
        assert outer["runAsNonRoot"] is True
        assert inner["readOnlyRootFilesystem"] is True
        assert inner["allowPrivilegeEscalation"] is False
        assert inner["capabilities"] == {"drop": ["ALL"]}
        mounts = {mount["mountPath"]: mount for mount in container(manifests)["volumeMounts"]}
        writable = {path for path, mount in mounts.items() if not mount.get("readOnly")}
        (volumes,) = instructions("VOLUME")
        assert writable == {*json.loads(volumes), "/tmp"}
        assert instructions("WORKDIR")[-1] in mounts  # tickertape.toml is looked for there
        sources = {volume["name"] for volume in pod(manifests)["volumes"]}
        assert {mount["name"] for mount in mounts.values()} == sources


def test_keys_are_a_file_that_can_change(releases: dict[str, Manifests]) -> None:
    """A Secret's own folder is swapped when it changes; a subPath would stay as it was."""
    for name, secret in (("everything", "demo-tickertape-api-keys"), ("queue only", "mine")):
        (volume,) = [v for v in pod(releases[name])["volumes"] if v["name"] == "api-keys"]
        assert volume["secret"]["secretName"] == secret
        server = container(releases[name])
        (mount,) = [m for m in server["volumeMounts"] if m["name"] == "api-keys"]
        assert "subPath" not in mount
        (path,) = [v["value"] for v in server["env"] if v["name"] == "TICKERTAPE_API_KEY_FILE"]
        assert path == f"{mount['mountPath']}/{volume['secret']['items'][0]['path']}"
    data = releases["everything"]["Secret"]["data"]["api-keys"]
    assert base64.b64decode(data).split() == [b"one", b"two"]
    assert "api-keys" not in {v["name"] for v in pod(releases["defaults"])["volumes"]}


def test_everything_finds_the_pods(releases: dict[str, Manifests]) -> None:
    made = releases["everything"]
    labels = made["Deployment"]["spec"]["template"]["metadata"]["labels"].items()
    assert made["Deployment"]["spec"]["selector"]["matchLabels"].items() <= labels
    assert made["PodDisruptionBudget"]["spec"]["selector"]["matchLabels"].items() <= labels
    service = made["Service"]
    assert service["spec"]["selector"].items() <= labels
    monitored = made["ServiceMonitor"]["spec"]
    assert monitored["selector"]["matchLabels"].items() <= service["metadata"]["labels"].items()
    (endpoint,) = monitored["endpoints"]
    assert endpoint == {"port": "http", "path": "/metrics", "interval": "15s"}
    ports = {port["name"]: port["targetPort"] for port in service["spec"]["ports"]}
    assert ports == {"http": "http"}
    assert [port["name"] for port in container(made)["ports"]] == ["http"]
    (rule,) = made["Ingress"]["spec"]["rules"]
    backend = rule["http"]["paths"][0]["backend"]["service"]
    assert backend == {"name": service["metadata"]["name"], "port": {"name": "http"}}
    target = made["HorizontalPodAutoscaler"]["spec"]["scaleTargetRef"]
    assert (target["kind"], target["name"]) == (
        "Deployment",
        made["Deployment"]["metadata"]["name"],
    )


def test_scaling(releases: dict[str, Manifests]) -> None:
    assert releases["defaults"]["Deployment"]["spec"]["replicas"] == 1
    for name, kinds in (("everything", ["Resource", "Pods"]), ("queue only", ["Pods"])):
        assert "replicas" not in releases[name]["Deployment"]["spec"]  # the autoscaler's own
        metrics = releases[name]["HorizontalPodAutoscaler"]["spec"]["metrics"]
        assert [metric["type"] for metric in metrics] == kinds
        metric = metrics[-1]["pods"]["metric"]["name"]
        assert metric in {PREFIX + gauge for gauge in GAUGES}


def test_the_ingress_buffers_nothing(releases: dict[str, Manifests]) -> None:
    annotations = releases["everything"]["Ingress"]["metadata"]["annotations"]
    assert annotations["nginx.ingress.kubernetes.io/proxy-buffering"] == "off"
