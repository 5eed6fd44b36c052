"""deploy/grafana: a dashboard that Grafana can load, and every query in it, and in the recording rules, gives data."""

import json
import math
import re
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.deploy.test_rules import SERVED, names, rules
from tests.support.clients.connections import Load, ask_datagram
from tests.support.clients.keeping import stay
from tests.support.hosts.prometheus import Prometheus, needs_prometheus, prometheus
from tests.support.programs.monitored import WINDOW, monitored, target, watching
from tests.support.programs.served import RELOADS
from tests.support.programs.service import ROOT, Service
from tests.support.tools.figures import figure

FOLDER = ROOT / "deploy" / "grafana"
DASHBOARD: dict[str, Any] = json.loads((FOLDER / "prefork.json").read_text())
QUESTIONS = ["Is it up?", "Is it full?", "Is it slow?", "Is it losing?", "What changed?"]
KILLS = 12
# Everything a service can have: a control socket, and the log written by prefork.
WHOLE = "from prefork import logs\nlogging.getLogger().handlers.clear()\nlogs.set_up()\n"
KEPT = "from tests.support.programs.kept import Handler\n"
ECHO = "class Handler(DatagramRequestHandler):\n    def handle(self):\n        self.wfile.write(self.rfile.read())\n"


def panels() -> list[dict[str, Any]]:
    return [panel for panel in DASHBOARD["panels"] if panel["type"] != "row"]


def queries() -> Iterator[tuple[str, str]]:
    """Where it stands, and what Prometheus is asked."""
    for panel in panels():
        yield from ((panel["title"], entry["expr"]) for entry in panel["targets"])
    yield from ((f"annotation: {entry['name']}", entry["expr"]) for entry in DASHBOARD["annotations"]["list"])


def filled_in(query: str) -> str:
    """As Grafana sends it when everything is selected."""
    query = re.sub(r"\$(job|service|instance)\b", ".*", query).replace("$__rate_interval", WINDOW)
    return re.sub(r"\[1h\]", f"[{WINDOW}]", query)


def has_data(server: Prometheus, query: str) -> bool:
    return any(not math.isnan(value) for value in server.query(query))


def test_the_questions_in_their_order() -> None:
    """One row a question, as an operator asks them."""
    assert [panel["title"] for panel in DASHBOARD["panels"] if panel["type"] == "row"] == QUESTIONS


def test_nothing_overlaps() -> None:
    """Panels have ids of their own, stand on Grafana's 24 columns and on nobody else."""
    taken: set[tuple[int, int]] = set()
    for panel in DASHBOARD["panels"]:
        at = panel["gridPos"]
        assert at["x"] + at["w"] <= 24, panel["title"]
        cells = {(x, y) for x in range(at["x"], at["x"] + at["w"]) for y in range(at["y"], at["y"] + at["h"])}
        assert not cells & taken, panel["title"]
        taken |= cells
    ids = [panel["id"] for panel in DASHBOARD["panels"]]
    assert len(ids) == len(set(ids))


def test_every_query_obeys_the_selection() -> None:
    """Each metric is selected by job, service and instance, and each panel says what it shows."""
    selection = "job=~'$job',service=~'$service',instance=~'$instance'}"
    for where, query in queries():
        assert len(re.findall(r"\{", query)) == query.count(selection) == len(re.findall(r"\w\{", query)), where
    assert [panel["title"] for panel in panels() if not panel["description"].endswith(".")] == []
    assert {entry["name"] for entry in DASHBOARD["templating"]["list"]} == {"datasource", "job", "service", "instance"}


def test_every_axis_has_a_unit() -> None:
    """Only a number that stands alone has none. A share has an axis to its whole, which no query of it exceeds."""
    units = {panel["title"]: panel["fieldConfig"]["defaults"]["unit"] for panel in panels() if panel["type"] != "stat"}
    assert [title for title, unit in units.items() if unit in ("none", "short")] == []
    shares = [panel for panel in panels() if panel["fieldConfig"]["defaults"]["unit"] == "percentunit"]
    assert {panel["fieldConfig"]["defaults"].get("max") for panel in shares} == {1}
    rates = [entry["expr"] for panel in shares for entry in panel["targets"] if "rate(" in entry["expr"]]
    assert [query for query in rates if "clamp_max(" not in query] == []


def test_legends_say_what_differs() -> None:
    """A legend has no part that is the same for each line of a service: its instance, or what the title says."""
    for panel in panels():
        legends = [entry["legendFormat"] for entry in panel["targets"]]
        assert [legend for legend in legends if "{{instance}}" in legend or legend == panel["title"]] == []
        assert len(set(legends)) == len(legends)
        parts = [set(re.findall(r"{{(\w+)}}", legend)) for legend in legends]
        for part, entry in zip(parts, panel["targets"], strict=True):
            assert part <= set(re.findall(r"\w+", " ".join(re.findall(r"by \(([^)]*)\)", entry["expr"])))), panel[
                "title"
            ]


def test_every_metric_is_served_and_shown() -> None:
    """The dashboard names no metric that prefork does not have."""
    found = set().union(*(names(query) for _, query in queries()))
    assert found - SERVED - {"up"} == set()


@pytest.mark.parametrize("path", sorted(FOLDER.rglob("*.yml")), ids=lambda path: path.stem)
def test_provisioning(path: Path) -> None:
    """The provisioning files are of the version and kind that Grafana reads, and agree with the scrape interval."""
    config = yaml.safe_load(path.read_text())
    assert config["apiVersion"] == 1
    for source in config.get("datasources", ()):
        assert (source["type"], source["access"]) == ("prometheus", "proxy")
        scrape = yaml.safe_load((ROOT / "deploy/prometheus/prometheus.yml").read_text())["global"]["scrape_interval"]
        assert source["jsonData"]["timeInterval"] == scrape
    for provider in config.get("providers", ()):
        assert provider["type"] == "file"
        assert provider["options"]["path"]


@needs_prometheus
def test_every_query_gives_data(tmp_path: Path) -> None:
    """After a short run of a TCP and a UDP pool under load and kills, and of one with a client that stays, no panel and
    no recorded series is empty."""
    for name in ("tcp", "udp", "kept"):
        (tmp_path / name).mkdir()
    with (
        Service(tmp_path / "tcp", monitored(WHOLE, max_children=3, control_socket="c"), env={RELOADS: "1"}) as tcp,
        Service(tmp_path / "udp", monitored(ECHO, bases="PreForkingUDPServer", max_children=2)) as udp,
        Service(tmp_path / "kept", monitored(KEPT, max_children=1)) as kept,
        stay(kept.address) as client,
        prometheus(
            tmp_path, watching(tmp_path, [target("tcp", tcp), target("udp", udp), target("kept", kept)])
        ) as server,
    ):
        server.wait_for("count(up == 1) == 3")
        assert client.say(b"say x") == b"x"
        server.wait_for('prefork_connections{state="held"} == 1')
        with Load(tcp.address, 2):
            for kills in range(1, KILLS + 1):
                assert ask_datagram(udp.address, b"x") == b"x"
                tcp.signal(signal.SIGKILL, tcp.workers()[0])
                tcp.wait_ready(3, killed=kills)
                if kills == KILLS // 2:
                    tcp.signal(signal.SIGHUP)
                server.wait_for(f'prefork_worker_exits_total{{service="tcp",reason="killed"}} >= {kills}')
            exported = set(server.get("/api/v1/label/__name__/values"))
            asked = [(where, query) for where, query in queries() if not names(query) - exported - {"up"}]
            left_out = {name for _, query in queries() for name in names(query) - exported}
            empty = [(where, query) for where, query in asked if not has_data(server, filled_in(query))]
            recorded = [rule["record"] for rule in rules("record")]
            empty += [("recorded", name) for name in recorded if not has_data(server, name)]
    figure("queries with data", len(asked) + len(recorded))
    assert left_out == set()
    started = "annotation: started"  # nobody was started again
    assert [(where, query) for where, query in empty if where != started] == []
