"""deploy/prometheus as files: promtool finds no fault, the rules do what their tests say, every alert has its page."""

import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from prefork.metrics.collector import TABLE
from tests.support.prometheus import needs_prometheus
from tests.support.service import HUNG, ROOT

FOLDER = ROOT / "deploy" / "prometheus"
SCRAPING = ("prometheus/prometheus.yml", "container/prometheus.yml")
RULES = sorted((FOLDER / "rules").glob("*.yml"))
SUFFIXES = {"gauge": ("",), "counter": ("_total",), "histogram": ("_bucket", "_sum", "_count")}
SERVED = {row.name + suffix for row in TABLE for suffix in SUFFIXES[row.kind]}
# Not served until there is TLS. A rule for a metric that is absent is silent.
NOT_SERVED = {"prefork_tls_certificate_expiry_timestamp_seconds"}
# What must have an alert that looks at it, directly or by a recording rule.
ALERTED = NOT_SERVED | {
    "prefork_control_requests_total",
    "prefork_reloads_total", "prefork_last_reload_successful", "prefork_log_messages_dropped_total",
    "prefork_workers", "prefork_workers_min", "prefork_lanes", "prefork_lanes_busy", "prefork_saturated_seconds_total",
    "prefork_listen_queue_length", "prefork_listen_queue_limit", "prefork_netns_listen_overflows_total",
    "prefork_netns_listen_drops_total", "prefork_datagram_receive_drops_total", "prefork_connections_accepted_total",
    "prefork_connections_rejected_total", "prefork_accept_errors_total", "prefork_requests_total",
    "prefork_request_duration_seconds_bucket", "prefork_queue_wait_seconds_bucket",
    "prefork_oldest_request_age_seconds", "prefork_worker_exits_total", "prefork_worker_signal_deaths_total",
    "prefork_fork_failures_total", "prefork_worker_boot_seconds_bucket", "prefork_worker_backoff",
    "prefork_worker_private_memory_bytes", "prefork_worker_open_fds_max", "prefork_worker_fds_limit",
    "prefork_master_loop_delay_seconds_bucket", "prefork_application_series_dropped_total",
    "prefork_slot_words_rejected_total", "up",
}  # fmt: skip


def rules(kind: str) -> Iterator[dict[str, Any]]:
    """Every rule that has this key: alert or record."""
    for path in RULES:
        for group in yaml.safe_load(path.read_text())["groups"]:
            yield from (rule for rule in group["rules"] if kind in rule)


def names(expression: str) -> set[str]:
    """What looks like one of our metrics, or a recorded one."""
    return set(re.findall(r"(?:(?:instance|service):)?prefork_[a-z0-9_:]+|\bup\b", expression))


def metrics_behind(expression: str) -> set[str]:
    recorded = {rule["record"]: rule["expr"] for rule in rules("record")}
    found = set()
    for name in names(expression):
        found |= metrics_behind(recorded[name]) if name in recorded else {name}
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
    known = SERVED | NOT_SERVED | recorded | {"up"}
    assert {name for text in texts for name in names(text)} - known == set()


def test_every_metric_that_wants_an_alert_has_one() -> None:
    """Nothing an operator must know is only on a dashboard."""
    assert ALERTED - set().union(*(metrics_behind(rule["expr"]) for rule in rules("alert"))) == set()


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
