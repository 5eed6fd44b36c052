"""Services that a real Prometheus watches by the rules of deploy/prometheus, with minutes made seconds.

Runs in the test's process. A service under test is a script whose `Hooks` are MONITORED; it tells where its metrics
are.
"""

import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from tests.support.hosts.prometheus import scraping
from tests.support.programs.service import ROOT, Service, script

RULES = ROOT / "deploy" / "prometheus" / "rules"
INTERVAL = "500ms"
WINDOW = "6s"  # of every rate

MONITORED = "from tests.support.programs.watched import Hooks\n"


def monitored(definitions: str = "", **settings: Any) -> str:
    """The program of such a service. `definitions` may extend `Hooks`."""
    return script(MONITORED + definitions, metrics_address=("127.0.0.1", 0), **settings)


def quickened(text: str) -> str:
    """Rules or queries whose windows and offsets are a few seconds, and who wait for nothing."""
    text = re.sub(r"^ +for: .*\n", "", text, flags=re.MULTILINE)
    text = re.sub(r"\[[0-9]+[smh]\]", f"[{WINDOW}]", text)
    return re.sub(r"offset [0-9]+[smh]", f"offset {WINDOW}", text)


def target(name: str, service: Service) -> dict[str, object]:
    """The service as a target of Prometheus, which gives up a scrape that is late: the exporter notes that."""
    service.allow("DEBUG a scrape did not end well")
    host, port = service.wait("metrics")["address"]
    return {"labels": {"service": name}, "targets": [f"{host}:{port}"]}


def watching(folder: Path, targets: Iterable[dict[str, object]], **limits: float) -> dict[str, object]:
    """The configuration of a Prometheus in `folder` that scrapes these and evaluates the quickened rules.

    `limits` are the limits.yml of an operator: `request_timeout_seconds=2`.
    """
    for path in RULES.glob("*.yml"):
        text = quickened(path.read_text())
        for name, limit in limits.items():
            text = re.sub(rf"(record: service:prefork_{name}:limit\n.*\n.*\) \* ).*", rf"\g<1>{limit}", text)
        (folder / path.name).write_text(text)
    return scraping(*targets, interval=INTERVAL, rule_files=[path.name for path in RULES.glob("*.yml")])
