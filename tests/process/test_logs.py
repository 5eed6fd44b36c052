"""The log of `prefork run`: what a record of a request says, and a level that can be changed while it runs."""

import contextlib
import json
import os
import signal
import socket
from collections import Counter
from pathlib import Path
from time import monotonic
from typing import Any

import pytest

from tests.support.clients.connections import ask
from tests.support.programs.service import HUNG, Service, script


def run(tmp_path: Path, definitions: str, *options: str, bind: str = "127.0.0.1:0", bases: str = "PreForkingTCPServer"
        ) -> Service:  # fmt: skip
    argv = ["-m", "prefork", "run", "program:Server", "--bind", bind, "--max-children", "1", "--log-format", "json"]
    return Service(tmp_path, script(definitions, bases=bases), argv=[*argv, *options], accounts=False)


def events(service: Service, name: str) -> list[dict[str, Any]]:
    """A line that is no JSON object is a failure."""
    return [found for line in service.log.splitlines() if (found := json.loads(line))["event"] == name]


def wait_events(service: Service, name: str, count: int) -> list[dict[str, Any]]:
    deadline = monotonic() + HUNG
    while len(found := events(service, name)) < count:
        assert monotonic() < deadline, f"hung: {len(found)} of {count} events {name!r}"
        service.statistics()
    return found


OUTCOMES = """\
class Hooks:
    refuse = False
    def verify_request(self, request, client_address):
        return not os.path.exists("refuse")
"""


def test_each_outcome_has_a_record(tmp_path: Path) -> None:
    """A request that is finished, fails, or is refused has one record, with its bytes, times, peer and worker; one
    that dies with its worker is told by the master."""
    with run(tmp_path, OUTCOMES, "--access-log", "yes") as service:
        service.expect("RuntimeError.*asked to raise")
        assert ask(service.address, b"pid\npid\n")
        ask(service.address, b"raise\n")
        (tmp_path / "refuse").touch()
        ask(service.address, b"")
        (tmp_path / "refuse").unlink()
        service.settled()
        ok, error, rejected = wait_events(service, "request", 3)
        with service.hold() as held:
            service.signal(signal.SIGKILL, held.pid)
            held.wait_end()
            service.wait_ready(1, killed=1)
        (died,) = wait_events(service, "requests_died", 1)
    assert [each["outcome"] for each in (ok, error, rejected)] == ["ok", "error", "rejected"]
    assert (ok["slot"], ok["gen"], ok["pid"]) == (1, 1, ok["process"])
    assert (ok["received"], ok["sent"]) == (8, 2 * len(f"{ok['pid']}\n"))
    assert ok["listener"] == "{}:{}".format(*service.address)
    assert ok["peer"].startswith("127.0.0.1:")
    assert 0 < ok["duration_ms"] < HUNG * 1000
    assert ok["queue_wait_ms"] >= 0
    assert (died["outcome"], died["requests"], died["slot"]) == ("lost", 1, 1)


def test_threads_have_records(tmp_path: Path) -> None:
    """In a threading pool each request has one record too."""
    with run(tmp_path, "", "--access-log", "yes", bases="ThreadingMixIn, PreForkingTCPServer") as service:
        for _ in range(20):
            assert int(ask(service.address, b"pid\n"))
        found = wait_events(service, "request", 20)
        service.settled()
    assert len(found) == 20
    assert {each["outcome"] for each in found} == {"ok"}


OWN_WAYS = "from tests.process.programs.own_ways import Handler, Hooks"
WAYS = ("wrapped", "shed", "dropped", "thread", "body", "raised")


@pytest.mark.parametrize(("bases", "ways"), [("PreForkingTCPServer", WAYS),
                                             ("PreForkingMixIn, ThreadingTCPServer", (*WAYS, "executor"))])  # fmt: skip
def test_the_outcome_is_that_of_the_metrics(bases: str, ways: tuple[str, ...], tmp_path: Path) -> None:
    """However the program processes a request, even if it raises after it has handed it on: it is counted once, and
    has one record, with the same outcome."""
    with run(tmp_path, OWN_WAYS, "--access-log", "yes", bases=bases) as service:
        service.allow("RuntimeError.*raised after it was handed on", "could not finish the request")
        for way in ways * 2:
            with contextlib.suppress(OSError):
                ask(service.address, way.encode())
        records = wait_events(service, "request", 2 * len(ways))
        counts = service.settled()
    assert counts["accepted"] == len(records) == 2 * len(ways)
    found = Counter(record["outcome"] for record in records)
    outcomes = {"ok": "completed", "error": "failed", "rejected": "rejected", "handed_over": "handed_over"}
    assert {name: found[name] for name in outcomes} == {name: counts[word] for name, word in outcomes.items()}
    assert found["ok"] >= 2
    assert {record["peer"][:10] for record in records} == {"127.0.0.1:"}


def test_no_record_without_asking(tmp_path: Path) -> None:
    """Without `access_log` nothing stands around the hooks of a worker and nothing is logged."""
    with run(tmp_path, "class Handler(Who):\n    def do_hooks(self): return sorted(vars(self.server))") as service:
        hooks = ask(service.address, b"hooks\n").decode()
        service.settled()
        assert events(service, "request") == []
    assert "finish_request" in hooks  # of lanes.py
    assert "verify_request" not in hooks


LEVEL = "from tests.process.programs.logging_app import Handler, Levelled as Hooks"


def test_the_level_changes_in_living_workers(tmp_path: Path) -> None:
    """A level set in the master is in force there at once and in a living worker within its next requests."""
    with run(tmp_path, LEVEL) as service:
        ask(service.address, b"log\n")
        service.settled()
        assert events(service, "asked_for") == []
        (tmp_path / "level").touch()
        service.statistics()
        deadline = monotonic() + HUNG
        while not events(service, "asked_for"):
            assert monotonic() < deadline, "hung: the worker does not take the level over"
            ask(service.address, b"log\n")
        (seen, *_) = events(service, "asked_for")
        assert service.settled()["exits"] == {}
    assert (seen["client"], seen["level"], seen["slot"]) == ("a\nb", "debug", 1)


def test_a_unix_peer_is_its_process(tmp_path: Path) -> None:
    """The client of a Unix socket is named by its path, or by its process; what is unknown is null in JSON."""
    with run(tmp_path, "", "--access-log", "yes", bind="unix:s", bases="PreForkingUnixStreamServer") as service:
        assert int(ask(service.address, b"pid\n"))
        with socket.socket(socket.AF_UNIX) as named:
            named.bind("\0" + f"prefork-test-{os.getpid()}\n")
            named.connect(service.address)
        (found, other) = wait_events(service, "request", 2)
        service.settled()
    assert [found[name] for name in ("received", "sent", "queue_wait_ms")] == [None] * 3
    assert found["peer"] == f"pid={os.getpid()} uid={os.getuid()}"
    assert other["peer"] == f"@prefork-test-{os.getpid()}\n"
    assert found["listener"] == "s"


def test_a_log_file_that_cannot_be_opened(tmp_path: Path) -> None:
    """A log file that cannot be opened is one sentence with exit status 2, before anything is bound."""
    service = Service(tmp_path, script(), argv=["-m", "prefork", "run", "program:Server", "--log-file", "no/such/file"])
    try:
        assert service.wait_exit() == 2
        assert service.log == "prefork: could not open the log file no/such/file: no such file or directory\n"
    finally:
        service.__exit__(AssertionError, None, None)


CHANGED = "from tests.process.programs.logging_changed import Handler"


@pytest.mark.parametrize("bases", ["PreForkingTCPServer", "ThreadingMixIn, PreForkingTCPServer"])
def test_the_programs_configuration_of_logging(tmp_path: Path, bases: str) -> None:
    """What the program sets on loggers while it serves is in force for the very next record, and for none when it is
    taken away: filters, a factory of records, what is disabled, handlers."""
    with run(tmp_path, CHANGED, "--access-log", "yes", bases=bases) as service:

        def records(*words: str) -> list[dict[str, Any]]:
            before = len(events(service, "request"))
            for word in words:
                ask(service.address, f"{word}\n".encode())
                service.settled()
            return events(service, "request")[before:]

        assert len(records("pid", "pid")) == 2
        assert records("filter", "pid") == []
        assert len(records("unfilter", "pid")) == 2
        assert records("quiet", "pid") == []
        assert len(records("loud", "pid")) == 2
        assert [record.get("trace") for record in records("pid", "factory", "pid")] == [None, "t-1", "t-1"]
        assert len(records("handler", "pid")) == 2
    assert (tmp_path / "theirs").read_text().count("request listener=") == 2
