"""A real Prometheus, started for a test and asked what it saw.

Runs in the test's process; owns the Prometheus and the folder it writes to.
"""

import json
import shutil
import subprocess
import urllib.parse
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from threading import Event
from time import monotonic
from typing import Any

import pytest

from tests.support.clients.connections import HUNG, free_port

ASK_AGAIN_S = 0.1  # a Prometheus tells nobody when it has seen something

needs_prometheus = pytest.mark.skipif(
    shutil.which("prometheus") is None or shutil.which("promtool") is None,
    reason="prometheus and promtool are not installed (Debian's package prometheus has both)",
)


class Prometheus:
    """The API of one that runs."""

    def __init__(self, port: int) -> None:
        self.url = f"http://127.0.0.1:{port}"

    def get(self, path: str, **query: str) -> Any:
        with urllib.request.urlopen(f"{self.url}{path}?{urllib.parse.urlencode(query)}", timeout=HUNG) as answer:
            return json.load(answer)["data"]

    def series(self, expression: str) -> list[Any]:
        """Each series that the expression gives now: its labels and its value."""
        found: list[Any] = self.get("/api/v1/query", query=expression)["result"]
        return found

    def query(self, expression: str) -> list[float]:
        """The value of each series that the expression gives now."""
        return [float(series["value"][1]) for series in self.series(expression)]

    def wait_for(self, expression: str) -> list[Any]:
        """Until the expression gives something; what it gives."""
        deadline = monotonic() + HUNG
        while True:
            try:
                if found := self.series(expression):
                    return found
            except OSError:
                pass  # it is still starting
            assert monotonic() < deadline, f"hung: waited {HUNG} s for {expression}"
            Event().wait(ASK_AGAIN_S)


@contextmanager
def prometheus(folder: Path, config: Mapping[str, Any]) -> Iterator[Prometheus]:
    """One with this configuration."""
    (folder / "prometheus.yml").write_text(json.dumps(config))  # JSON is YAML
    port = free_port()
    with (folder / "prometheus.log").open("w") as log:
        process = subprocess.Popen(
            ["prometheus", "--config.file=prometheus.yml", "--storage.tsdb.path=data",
             f"--web.listen-address=127.0.0.1:{port}"], cwd=folder, stdout=log, stderr=log,
        )  # fmt: skip
        try:
            yield Prometheus(port)
        finally:
            process.kill()
            process.wait(HUNG)


def scraping(*targets: Mapping[str, Any], interval: str = "1s", **more: Any) -> dict[str, Any]:
    """A configuration with a job `prefork` of these targets: static_configs as Prometheus has them."""
    jobs = [{"job_name": "prefork", "static_configs": list(targets)}]
    timing = {"scrape_interval": interval, "scrape_timeout": interval, "evaluation_interval": interval}
    return {"global": timing, "scrape_configs": jobs, **more}
