"""What a service tells of connections that are kept: on the control socket, in its statistics and in the access log."""

import json
import os
import re
import signal
from pathlib import Path
from time import monotonic
from typing import Any

import pytest

from tests.support.clients.controlling import asked, ctl, looked_at, until
from tests.support.clients.keeping import definitions, holder, keeping, stay, staying, wait_counted
from tests.support.clients.scraping import get, total
from tests.support.programs.service import HUNG, Service, script
from tests.support.tools.certificates import CERTIFICATE, KEY, make_certificate

pytestmark = pytest.mark.once  # nothing of it is the interpreter's

IDLE, MOST = 5, 8


def balanced(found: dict[str, Any]) -> bool:
    """Whether every connection is somewhere."""
    there = sum(found[where] for where in ("active", "lingering", "held", "queued"))
    return bool(found["opened"] == there + sum(found["closed"].values()))


def test_status_and_workers(tmp_path: Path) -> None:
    """Each connection is where the client has left it, and each that has ended ended as it did; the holder has a row
    with what it has and may have. The statistics and the metrics say the same."""
    with keeping(tmp_path, control_socket=str(tmp_path / "c"), max_idle_connections=MOST) as service:
        service.wait_ready(2)
        with staying(service.address, IDLE) as clients:
            for client in clients:
                assert client.say()
            wait_counted(service, held=IDLE)
            with stay(service.address) as busy:
                busy.send(b"wait")
                service.wait("waiting")
                before = asked(tmp_path / "c", "status")
                rows = until(looked_at, lambda: asked(tmp_path / "c", "workers"))
                shown = [ctl(tmp_path / "c", verb).stdout for verb in ("status", "workers")]
                (tmp_path / "go on").touch()
                busy.heard()
                busy.say(b"close")
        wait_counted(service, held=0, client=IDLE, handler=1)
        after = asked(tmp_path / "c", "status")
        statistics = service.settled()
        metrics = get(os.path.relpath(tmp_path / "m")).samples
    found = before["connections"]
    assert balanced(found)
    assert (found["opened"], found["active"], found["lingering"], found["held"], found["queued"]) == (6, 1, 0, IDLE, 0)
    assert before["listeners"][0]["connections"] == found
    (row,) = rows["holders"]
    assert (row["state"], row["held"], row["held_limit"]) == ("running", IDLE, MOST)
    assert row["rss_bytes"] > 1 << 20
    assert sorted(worker["connections"] for worker in rows["workers"]) == [0, 1]
    assert f"kept       6 open: 1 active, 0 lingering, {IDLE} held of {MOST}, 0 queued\nended      none\n" in shown[0]
    assert re.search(rf"\n *{row['pid']} +1 +running +\S+ +{IDLE} +{MOST} ", shown[1])
    ended = after["connections"]
    assert balanced(ended)
    assert {why: count for why, count in ended["closed"].items() if count} == {"client": IDLE, "handler": 1}
    assert statistics["connections_opened"] == ended["opened"] == IDLE + 1
    assert statistics["connections_closed"] == {"client": IDLE, "handler": 1}
    assert statistics["connections"] == {"active": 0, "lingering": 0, "held": 0, "queued": 0}
    assert statistics["connection_moves"] == ended["moves"] == total(metrics, "prefork_connection_moves_total")
    assert statistics["accepted"] == statistics["completed"] == IDLE + 2
    assert total(metrics, "prefork_connections_opened_total") == IDLE + 1


def test_no_holder_runs(tmp_path: Path) -> None:
    """Which the status says, and the connections that went with it."""
    with keeping(tmp_path, control_socket=str(tmp_path / "c")) as service, staying(service.address, IDLE) as clients:
        service.allow("holder", "kept connections that ended with it")
        for client in clients:
            client.say()
        wait_counted(service, held=IDLE)
        deadline = monotonic() + HUNG
        while (found := asked(tmp_path / "c", "status"))["holders"]:
            assert monotonic() < deadline, "hung: it never waits to be started again"
            service.signal(signal.SIGKILL, holder(service))
        assert "no holder runs\n" in ctl(tmp_path / "c", "status").stdout or asked(tmp_path / "c", "status")["holders"]
    assert found["connections"]["closed"]["lost"] == IDLE
    assert balanced(found["connections"])


@pytest.mark.parametrize("settings", [{}, {"tls_certificate": CERTIFICATE, "tls_key": KEY}], ids=["plain", "tls"])
def test_a_service_that_keeps_none(settings: dict[str, Any], tmp_path: Path) -> None:
    """It says nothing of any: a class that would keep none, and one that cannot, under TLS."""
    make_certificate(tmp_path)
    handler = definitions() if settings else ""
    source = script(handler, max_children=1, control_socket=str(tmp_path / "c"), metrics_address="m", **settings)
    with Service(tmp_path, source) as service:
        service.wait_ready(1)
        status, metrics = asked(tmp_path / "c", "status"), get(os.path.relpath(tmp_path / "m")).samples
    assert (status["connections"], status["holders"]) == (None, None)
    of_kept = re.compile("prefork_(connections{|connections_opened|connections_closed|connection_moves|holder|held)")
    assert not list(filter(of_kept.match, metrics))


LINES = (b"say x", b"say a longer one", b"pid", b"close")


def access(service: Service, count: int) -> list[str]:
    """That many records of requests, as they stand in the log."""
    deadline = monotonic() + HUNG
    while len(found := [line for line in service.log.splitlines() if "prefork.access" in line]) < count:
        assert monotonic() < deadline, f"hung: {service.log}"
        service.statistics()
    return found


def request_number(record: str) -> int:
    """By which they are put in order: a client may have its answer, and the next from another worker, before the first
    has written its record."""
    found = re.search(r"\brequest_number\W+(\d+)", record)
    assert found is not None
    return int(found[1])


@pytest.mark.parametrize("format", ["text", "json"])
def test_the_access_log(format: str, tmp_path: Path) -> None:
    """A record for each request, by whichever worker: its number on its connection, its own bytes, and for none but
    the first a wait in the kernel's queue; the last field in both formats."""
    argv = ["-m", "prefork", "run", "program:Server", "--bind", "127.0.0.1:0", "--max-children", "2", "--access-log",
            "yes", "--log-format", format]  # fmt: skip
    with Service(tmp_path, script(definitions()), argv=argv, accounts=False) as service:
        with stay(service.address) as client, stay(service.address) as other:
            peer = "{}:{}".format(*client.sock.getsockname())
            answers = [client.say(line) for line in LINES]
            other.say()
            found = sorted((line for line in access(service, len(LINES) + 1) if peer in line), key=request_number)
    assert len(found) == len(LINES)
    for number, (line, sent, answer) in enumerate(zip(found, LINES, answers, strict=True), 1):
        wanted = {"received": len(sent) + 1, "sent": len(f"{number} ") + len(answer) + 1, "request_number": number}
        if format == "json":
            record = json.loads(line)
            assert {name: record[name] for name in wanted} == wanted
            assert (record["outcome"], record["queue_wait_ms"] is None or number == 1) == ("ok", True)
            assert list(record)[-2:] == ["request_number", "message"]
        else:
            bytes_of_it = f"received={wanted['received']} sent={wanted['sent']}"
            rest = rf" outcome=ok duration_ms=[\d.]+ {bytes_of_it} queue_wait_ms=(-|\d+) request_number={number}$"
            assert re.search(rest, line)


def test_requests_that_were_read_ahead(tmp_path: Path) -> None:
    """Each of a pipeline has its number; their bytes add up to those of the connection."""
    argv = ["-m", "prefork", "run", "program:Server", "--bind", "127.0.0.1:0", "--max-children", "2", "--access-log",
            "yes", "--log-format", "json"]  # fmt: skip
    count, line = 30, b"say x\n"
    with Service(tmp_path, script(definitions()), argv=argv, accounts=False) as service:
        with stay(service.address) as client:
            client.sock.sendall(line * count)
            for number in range(1, count + 1):
                assert client.heard(number) == b"x"
            found = [json.loads(line) for line in access(service, count)]
    assert sorted(each["request_number"] for each in found) == list(range(1, count + 1))
    assert sum(each["received"] for each in found) == len(line) * count
    assert sum(each["sent"] for each in found) == sum(len(f"{number} x\n") for number in range(1, count + 1))
