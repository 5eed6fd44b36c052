"""The benchmarks run, and their figures are sane in form. What they are is nobody's business here: that is read."""

import json
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from time import sleep
from typing import Any

import pytest

from tests.benchmarks import kept
from tests.benchmarks.__main__ import SECTIONS, pictures
from tests.benchmarks.contenders import CONTENDERS, started
from tests.benchmarks.edge import SETTINGS
from tests.benchmarks.latency import open_loop
from tests.benchmarks.servers.others import missing
from tests.benchmarks.traffic import LINE, TRAFFIC, drive

pytestmark = pytest.mark.once

ROOT = Path(__file__).parents[2]
HUNG = 120.0
STALL_S = 0.3


def benchmarks(tmp_path: Path, *argv: str) -> dict[str, Any]:
    """Run the command and return its figures."""
    command = [sys.executable, "-m", "tests.benchmarks", *argv, "--json", str(tmp_path / "figures.json")]
    done = subprocess.run(
        [*command, "--pictures", str(tmp_path)], cwd=ROOT, timeout=HUNG, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    found: dict[str, Any] = json.loads((tmp_path / "figures.json").read_text())
    for name in argv:
        assert name not in TRAFFIC or f"\n{name}, saturated" in done.stdout
    return found


def test_ratios(tmp_path: Path) -> None:
    """A short run gives each contender's cost under each load, with quartiles in order, and the bare loop's is one."""
    only = ("--contender", "pool", "--beside", str(ROOT))
    found = benchmarks(tmp_path, "--quick", "recv", "udp", *only, "--seconds", "1", "--burst", "0.01", "--workers", "2")
    rows = [row for row in found["requests"] if "to_bare" in row]
    names = ["bare loop", "pool", f"pool of {ROOT.name}", "standard"]
    assert [(row["traffic"], row["load"], row["contender"]) for row in rows] == [
        (traffic, load, name) for traffic in ("recv", "udp") for load in ("saturated", "sequential") for name in names
    ]
    for row in rows:
        assert row["rounds"] >= 2
        for each in (row["us"], row["to_bare"]):
            assert 0 < each["low"] <= each["median"] <= each["high"]
            assert each["least"] > 0
        assert (row["to_bare"]["median"] == row["to_bare"]["least"] == 1) or row["contender"] != "bare loop"
        assert (row["to_standard"] is not None) is (row["to_beside"] is not None or " of " in row["contender"])
    assert found["about"]["workers"] == 2


@pytest.mark.parametrize("traffic", TRAFFIC)
def test_every_contender_answers(traffic: str) -> None:
    """Each server of the table, where it is installed, answers what it is asked in each of its traffics."""
    there = [each for each in CONTENDERS if traffic in each.traffic and not each.idle and not missing(each.needs)]
    assert {"bare loop", "pool", "standard"} <= {each.name for each in there}
    with started(there, traffic, 1) as servers:
        for server in servers:
            assert drive(traffic, server.address, 0, 3) == 3
            assert server.meter.usage_ns(server.pid) > 0


@pytest.fixture
def stalling() -> Iterator[Any]:
    """A server that does nothing for a moment before it takes its hundredth connection."""
    with socket.create_server(("127.0.0.1", 0), backlog=1024) as listener:

        def serve() -> None:
            for number in range(1 << 30):
                connection, _ = listener.accept()
                if number == 100:
                    sleep(STALL_S)
                with connection:
                    if connection.recv(1024) != LINE:
                        return
                    connection.sendall(LINE)

        thread = threading.Thread(target=serve)
        thread.start()
        yield listener.getsockname()
        with socket.create_connection(listener.getsockname()):
            pass
        thread.join(HUNG)


def test_a_stall_counts_for_all_that_were_due(stalling: Any) -> None:
    """In an open loop a server that stalls once has made every request late that was due meanwhile, and by what was
    left of the stall: no coordinated omission."""
    took = open_loop(stalling, 500, 1.0, seed=1)
    late = sorted(each for each in took if each > STALL_S / 3)
    assert len(late) >= 500 * STALL_S / 3
    assert late[-1] >= STALL_S * 0.9
    assert len(took) > 400


def test_sections_print_what_they_measure(tmp_path: Path) -> None:
    """A section by its name alone: it has figures, and nothing else is measured."""
    found = benchmarks(tmp_path, "lifecycle", "--workers", "1")
    assert set(found) == {"about", "lifecycle"}
    assert {"bare loop", "pool"} <= {row["contender"] for row in found["lifecycle"]}
    assert all(row["start"] > 0 and row["stop"] > 0 for row in found["lifecycle"])
    assert not list(pictures({"lifecycle": found["lifecycle"]}))
    assert os.path.exists(tmp_path / "figures.json")
    assert set(SECTIONS) >= {"latency", "growth", "idle", "memory", "lifecycle", "reload", "scrape"}


def test_the_edge_is_measured_beside_the_same_pool(tmp_path: Path) -> None:
    """Each setting of the edge has a cost under each load, by clients that speak as it asks; the pool's is one."""
    found = benchmarks(tmp_path, "edge", "--seconds", "1", "--launches", "1", "--burst", "0.01", "--workers", "1")
    assert [(row["setting"], row["load"]) for row in found["edge"]] == [
        (name, load) for load in ("saturated", "sequential") for name in SETTINGS
    ]
    for row in found["edge"]:
        assert row["us"]["least"] > 0
        assert row["times"]["median"] > 0
        assert row["setting"] != "pool" or row["times"]["median"] == 1


def test_kept_connections_are_measured_beside_others() -> None:
    """Each pattern has who it is compared with; the idle ones cost something; nothing is lost by reloads; and a report
    has a line for each."""
    found = kept.measure(kept.Plan(1, rounds=2, idle=40, busy=5, rate=100, burst_s=0.1, kept=20, reloads=1))
    messages = [each for each in found if isinstance(each, kept.Message)]
    for pattern in kept.PATTERNS:
        names = [each.contender for each in messages if each.pattern == pattern]
        assert kept.POOL in names
        assert (kept.NO_MIXIN if pattern.startswith("fresh") else "asyncio, streams") in names
    assert all(each.us.least > 0 for each in messages)
    assert all(each.times.median == 1 for each in messages if each.contender in (kept.POOL, kept.POOL_HTTP))
    idle = [each for each in found if isinstance(each, kept.Idle)]
    assert {each.idle for each in idle} == {40, 8}
    (reloads,) = (each for each in found if isinstance(each, kept.Reloads))
    assert (reloads.lost, reloads.wrong, reloads.reloads) == (0, 0, 1)
    assert reloads.messages >= 40
    lines = "\n".join(kept.report(found))
    assert all(name in lines for name in {*(each.contender for each in messages), *(each.contender for each in idle)})
