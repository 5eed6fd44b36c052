"""deploy/kubernetes: built by kustomize, valid to the API, and saying the same thing in every file."""

import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml

from prefork.pool import PreForkingTCPServer
from prefork.settings.fields import settings

HERE = Path(__file__).parents[2] / "deploy" / "kubernetes"
API = "1.37.0"

pytestmark = pytest.mark.skipif(
    shutil.which("kubectl") is None, reason="kubectl is not installed (Debian's package kubernetes-client has it)"
)


def build(folder: str) -> list[dict[str, Any]]:
    """What `kubectl apply -k` would send."""
    built = subprocess.run(["kubectl", "kustomize", str(HERE / folder)], capture_output=True, text=True, check=True)
    return list(yaml.safe_load_all(built.stdout))


def one(objects: list[dict[str, Any]], kind: str) -> dict[str, Any]:
    return next(each for each in objects if each["kind"] == kind)


FOLDERS = ("base", "overlays/example")


def test_the_page_applies_what_is_tested() -> None:
    """The folder of the page's command is one of those that are built here."""
    (folder,) = re.findall(r"^    kubectl apply -k deploy/kubernetes/(\S+)$", (HERE / "README.md").read_text(), re.M)
    assert folder in FOLDERS


@pytest.mark.parametrize("folder", FOLDERS)
def test_the_api_would_take_it(folder: str, tmp_path: Path) -> None:
    """Every object is valid to the published schemas, strictly; PodMonitor, the operator's own kind, has none there."""
    objects = [each for each in build(folder) if each["kind"] != "PodMonitor"]
    assert len(objects) == 6
    (tmp_path / "objects.yaml").write_text(yaml.safe_dump_all(objects))
    validate = [str(Path(sys.executable).parent / "kubernetes-validate"), "--strict", "-k", API, "objects.yaml"]
    found = subprocess.run(validate, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert found.returncode == 0, found.stdout + found.stderr
    assert found.stdout.count("passed") + found.stderr.count("passed") == len(objects), found.stdout + found.stderr


@pytest.mark.parametrize("folder", FOLDERS)
def test_every_selector_finds_the_pods(folder: str) -> None:
    """Service, budget, policy, monitor and autoscaler mean the pods of the Deployment, and ports have their names."""
    objects = build(folder)
    deployment = one(objects, "Deployment")
    template = deployment["spec"]["template"]
    labels = template["metadata"]["labels"].items()
    ports = {port["name"] for port in template["spec"]["containers"][0]["ports"]}
    selectors = [
        deployment["spec"]["selector"]["matchLabels"],
        one(objects, "Service")["spec"]["selector"],
        one(objects, "PodDisruptionBudget")["spec"]["selector"]["matchLabels"],
        one(objects, "NetworkPolicy")["spec"]["podSelector"]["matchLabels"],
        one(objects, "PodMonitor")["spec"]["selector"]["matchLabels"],
    ]
    for selector in selectors:
        assert selector
        assert selector.items() <= labels
    assert one(objects, "HorizontalPodAutoscaler")["spec"]["scaleTargetRef"]["name"] == deployment["metadata"]["name"]
    named = [port["targetPort"] for port in one(objects, "Service")["spec"]["ports"]]
    named += [each["port"] for each in one(objects, "PodMonitor")["spec"]["podMetricsEndpoints"]]
    named += [port["port"] for rule in one(objects, "NetworkPolicy")["spec"]["ingress"] for port in rule["ports"]]
    assert set(named) <= ports


@pytest.mark.parametrize("folder", FOLDERS)
def test_the_service_file_is_of_known_settings_and_fits_the_grace_period(folder: str) -> None:
    """Each name in service.toml is a setting; drain_delay and graceful_timeout fit before Kubernetes kills."""
    objects = build(folder)
    pod = one(objects, "Deployment")["spec"]["template"]["spec"]
    table = tomllib.loads(one(objects, "ConfigMap")["data"]["service.toml"])["prefork"]
    known = set(settings(PreForkingTCPServer)) | {"target", "bind", "metrics", "log_format"}
    assert set(table) <= known
    seconds = [int(table[name].removesuffix("s")) for name in ("drain_delay", "graceful_timeout")]
    assert sum(seconds) < pod["terminationGracePeriodSeconds"]
    mounted = {volume["configMap"]["name"] for volume in pod["volumes"] if "configMap" in volume}
    assert mounted == {one(objects, "ConfigMap")["metadata"]["name"]}


def test_the_autoscaler_asks_for_what_the_adapter_makes() -> None:
    """The metric's name stands in both files, and the adapter's rule is made of metrics that are served."""
    from prefork.metrics.collector import METRIC_TABLE

    asked = one(build("base"), "HorizontalPodAutoscaler")["spec"]["metrics"][0]["pods"]["metric"]["name"]
    rule = yaml.safe_load((HERE / "prometheus-adapter.yaml").read_text())["rules"]["custom"][0]
    assert rule["name"]["as"] == asked
    served = {row.name for row in METRIC_TABLE}
    used = {word for word in ("prefork_lanes_busy", "prefork_lanes") if word + "{" in rule["metricsQuery"]}
    assert used == {"prefork_lanes_busy", "prefork_lanes"} <= served


def test_the_pod_is_restricted() -> None:
    """The pod security standard `restricted`, and no more of the file system than it needs."""
    pod = one(build("base"), "Deployment")["spec"]["template"]["spec"]
    container = pod["containers"][0]["securityContext"]
    assert pod["securityContext"]["runAsNonRoot"]
    assert pod["securityContext"]["seccompProfile"]["type"] == "RuntimeDefault"
    assert container == {
        "allowPrivilegeEscalation": False, "readOnlyRootFilesystem": True, "capabilities": {"drop": ["ALL"]},
    }  # fmt: skip
