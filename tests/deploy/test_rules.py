"""deploy/prometheus as files: promtool finds no fault, the rules do what their tests say, every alert has its page."""

import re
import shutil
import signal
import subprocess
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml

from prefork.metrics.board import SIGNAL_DEATHS
from prefork.metrics.collector import METRIC_TABLE, Spec, families
from tests.support.hosts.prometheus import needs_prometheus
from tests.support.programs.service import HUNG, ROOT
from tests.unit.test_collector import whole_scrape

FOLDER = ROOT / "deploy" / "prometheus"
SCRAPING = ("prometheus/prometheus.yml", "container/prometheus.yml")
RULES = sorted((FOLDER / "rules").glob("*.yml"))
SUFFIXES = {"gauge": ("",), "counter": ("_total",), "histogram": ("_bucket", "_sum", "_count")}
SERVED = {row.name + suffix for row in METRIC_TABLE for suffix in SUFFIXES[row.kind]}
SELECTED = re.compile(r"(prefork_[a-z_]+)\{([^}]*)\}")
LABEL = re.compile(r"""(\w+)=~?["']([^"']*)["']""")


@cache
def _every_rule() -> list[dict[str, Any]]:
    return [rule for path in RULES for group in yaml.safe_load(path.read_text())["groups"] for rule in group["rules"]]


def rules(kind: str) -> Iterator[dict[str, Any]]:
    """Every rule that has this key: alert or record."""
    return (rule for rule in _every_rule() if kind in rule)


def names(expression: str) -> set[str]:
    """What looks like one of our metrics, or a recorded one."""
    return set(re.findall(r"(?:(?:instance|service):)?prefork_[a-z0-9_:]+|\bup\b", expression))


def metrics_behind(expression: str) -> set[str]:
    recorded = {rule["record"]: rule["expr"] for rule in rules("record")}
    found = set()
    for name in names(expression):
        found |= metrics_behind(recorded[name]) if name in recorded else {name}
    return found


def alerts_behind(names_of_series: set[str]) -> set[str]:
    """The alerts that look at one of these, directly or by a recording rule. A limit is a number, whatever it is of."""
    recorded = {rule["record"]: rule["expr"] for rule in rules("record")}
    constant = {name for name in recorded if name.endswith(":limit")}
    found = set()
    for rule in rules("alert"):
        seen = set().union(*map(metrics_behind, names(rule["expr"]) - constant))
        found |= {rule["alert"]} if seen & names_of_series else set()
    return found


def promtool(*args: str) -> None:
    done = subprocess.run(["promtool", *args], cwd=FOLDER, capture_output=True, text=True, timeout=HUNG)
    assert done.returncode == 0, done.stdout + done.stderr


@needs_prometheus
def test_promtool_checks() -> None:
    """The configuration and every rule file are sound."""
    promtool("check", "config", "prometheus.yml")
    promtool("check", "rules", "--lint=all", "--lint-fatal", *map(str, RULES))


@needs_prometheus
def test_rules_by_their_own_tests() -> None:
    """Every alert fires where it must and nowhere else: tests/alerts.yml, by promtool."""
    promtool("test", "rules", "tests/alerts.yml")


def test_every_alert_is_tested() -> None:
    """tests/alerts.yml expects each alert to fire."""
    text = (FOLDER / "tests" / "alerts.yml").read_text()
    assert [rule["alert"] for rule in rules("alert") if f'alertname="{rule["alert"]}"' not in text] == []


def test_every_metric_is_served() -> None:
    """The rules and their tests name no metric that prefork does not have."""
    texts = [path.read_text() for path in (*RULES, FOLDER / "tests" / "alerts.yml")]
    recorded = {rule["record"] for rule in rules("record")}
    assert {name for text in texts for name in names(text)} - SERVED - recorded - {"up"} == set()


def test_every_label_selected_is_served() -> None:
    """What the rules and their tests select by a label (a reason, an outcome) is a value that the label can have."""
    told: dict[tuple[str, str], set[str]] = {}
    scrape = whole_scrape()
    for signum in signal.Signals:
        scrape.snapshot.words[SIGNAL_DEATHS + signum] = 1
    for family in families(scrape):
        for sample in family.samples:
            for label, value in sample.labels.items():
                told.setdefault((sample.name, label), set()).add(value)
    selected = [
        (name, label, value)
        for path in (*RULES, FOLDER / "tests" / "alerts.yml")
        for name, selection in SELECTED.findall(path.read_text())
        for label, values in LABEL.findall(selection)
        for value in values.split("|")
        if label not in ("service", "instance", "listener", "companion", "job", "le")
    ]
    assert ("prefork_requests_total", "outcome", "lost") in selected
    assert [each for each in selected if each[2] not in told.get(each[:2], ())] == []


@pytest.mark.parametrize("row", METRIC_TABLE, ids=lambda row: row.name)
def test_every_metric_has_the_alerts_that_the_reference_says(row: Spec) -> None:
    """Of each metric of the table: those alerts look at it that stand beside it there, and no other."""
    assert alerts_behind({row.name + suffix for suffix in SUFFIXES[row.kind]}) == set(row.alerts)


def test_every_alert_stands_beside_a_metric() -> None:
    """Nothing fires of which the reference does not tell, but for a target that cannot be scraped."""
    told = {each for row in METRIC_TABLE for each in row.alerts}
    assert {rule["alert"] for rule in rules("alert")} - told == {"PreforkDown"}


@pytest.mark.parametrize("rule", list(rules("alert")), ids=lambda rule: rule["alert"])
def test_every_alert_says_what_to_do(rule: dict[str, Any]) -> None:
    """Severity, summary, description, what to do, and a section of the runbook that is there."""
    assert rule["labels"]["severity"] in ("warning", "critical")
    assert set(rule["annotations"]) == {"summary", "description", "action", "runbook"}
    assert "{{ $labels." in rule["annotations"]["summary"]
    page, _, anchor = rule["annotations"]["runbook"].partition("#")
    assert anchor in [line.removeprefix("### ").lower() for line in (FOLDER / page).read_text().splitlines()]


def test_the_runbook_has_nothing_else() -> None:
    """Every section of the runbook is about an alert, and every link in it leads somewhere."""
    text = (FOLDER / "runbook.md").read_text()
    sections = re.findall(r"^### (\w+)$", text, re.MULTILINE)
    assert sorted(sections) == sorted(rule["alert"] for rule in rules("alert"))
    assert set(re.findall(r"\(#(\w+)\)", text)) <= {section.lower() for section in sections}


def test_paths_are_inside() -> None:
    """The folder can be copied to anywhere: what it names is in it."""
    config = yaml.safe_load((FOLDER / "prometheus.yml").read_text())
    patterns = [*config["rule_files"]]
    patterns += [name for job in config["scrape_configs"] for sd in job["file_sd_configs"] for name in sd["files"]]
    assert [pattern for pattern in patterns if not list(FOLDER.glob(pattern))] == []


def test_the_container_finds_the_rules(tmp_path: Path) -> None:
    """compose mounts this folder where the Prometheus of the compose file looks for rules, and promtool reads both."""
    folder = ROOT / "deploy" / "container"
    compose = yaml.safe_load((folder / "compose.yaml").read_text())
    mounts = [volume.split(":")[:2] for volume in compose["services"]["prometheus"]["volumes"]]
    at = next(inside for outside, inside in mounts if (folder / outside).resolve() == FOLDER)
    text = (folder / "prometheus.yml").read_text()
    for pattern in yaml.safe_load(text)["rule_files"]:
        assert pattern.startswith(f"{at}/")
        assert sorted(FOLDER.glob(pattern.removeprefix(f"{at}/"))) == RULES
    if shutil.which("promtool") is not None:
        (tmp_path / "prometheus.yml").write_text(text.replace(at, str(FOLDER)))
        promtool("check", "config", str(tmp_path / "prometheus.yml"))


def test_every_target_has_the_labels_that_the_rules_print() -> None:
    """Whatever scrapes it, plain files, compose or the operator: `service` is set, `job` is what alerts look for."""
    plain, compose = (yaml.safe_load((ROOT / "deploy" / name).read_text())["scrape_configs"] for name in SCRAPING)
    assert [job["job_name"] for job in plain + compose] == ["prefork", "prefork"]
    targets = [each for job in compose for each in job["static_configs"]]
    for pattern in (name for job in plain for found in job["file_sd_configs"] for name in found["files"]):
        targets += [each for path in FOLDER.glob(pattern) for each in yaml.safe_load(path.read_text())]
    assert len(targets) == 2
    assert all(each["targets"] and each["labels"]["service"] for each in targets)
    monitor = yaml.safe_load((ROOT / "deploy/kubernetes/base/podmonitor.yaml").read_text())
    for endpoint in monitor["spec"]["podMetricsEndpoints"]:
        relabelled = {each.pop("targetLabel"): each for each in endpoint["relabelings"]}
        assert relabelled["job"] == {"replacement": "prefork"}
        (source,) = relabelled["service"]["sourceLabels"]
        # How Prometheus writes the label by which every selector in that folder finds the pods.
        (label,) = monitor["spec"]["selector"]["matchLabels"]
        assert source == "__meta_kubernetes_pod_label_" + re.sub(r"\W", "_", label)
