"""The threads of a pool's workers: how many there may be, that requests are shared out among the workers, and that a
thread that stays is none that anybody could tell from a new one."""

import ast
import contextlib
import re
from collections import Counter
from pathlib import Path
from time import monotonic
from typing import Any

import pytest

from tests.support.clients.connections import ask
from tests.support.programs.service import HUNG, Service, script


def assert_shared_out(pids: list[int], each: int) -> None:
    """Among four. To the unit on an idle machine; one that it has not let run for a moment is passed over."""
    counts = Counter(pids).values()
    assert len(counts) == 4
    assert each / 2 < min(counts) <= max(counts) < each * 2, counts


FIRST = ("nice", "-n", "-20")  # before all else that the machine does: a worker that may not run gets nothing


def test_shared_out_without_a_limit(tmp_path: Path) -> None:
    """Of 60 slow requests each of four workers has 15; and max_threads = None is no limit, as everywhere."""
    bases = "PreForkingMixIn, socketserver.ThreadingTCPServer"
    with (
        Service(tmp_path, script(bases=bases, max_children=4, max_threads=None), before=FIRST) as service,
        contextlib.ExitStack() as held,
    ):
        service.wait_ready(4)
        begun: Counter[int] = Counter()
        until = monotonic() + HUNG
        with contextlib.ExitStack() as first:
            while len(begun) < 4 or min(begun.values()) < 3:  # READY is said a moment before the threads wait
                begun[first.enter_context(service.hold()).pid] += 1
                assert monotonic() < until, f"hung: none but {begun} serve"
        service.settled()
        pids = [held.enter_context(service.hold()).pid for _ in range(60)]
        assert_shared_out(pids, 15)
        pids += [held.enter_context(service.hold()).pid for _ in range(240)]
        assert_shared_out(pids, 75)
        statistics = service.statistics()
        assert statistics["in_flight"] == 300 <= statistics["lanes"] < 1000
        held.close()
        assert service.settled()["completed"] == 300 + begun.total()


def test_shared_out_where_the_pool_grows(tmp_path: Path) -> None:
    """A pool that may grow does so when every thread has a request, not before, and nobody is left waiting: its master
    waits for connections too, and workers that go to the back stand behind it."""
    bases = "PreForkingMixIn, ThreadingTCPServer"
    source = script(bases=bases, min_children=2, max_children=4, max_threads=3)
    with Service(tmp_path, source) as service, contextlib.ExitStack() as held:
        service.wait_ready(2)
        pids = [held.enter_context(service.hold()).pid for _ in range(5)]
        assert service.statistics()["spawned"] == 2 == len(set(pids))
        pids += [held.enter_context(service.hold()).pid for _ in range(7)]
        assert Counter(pids) == dict.fromkeys(set(pids), 3)
        assert service.statistics()["spawned"] == 4


LEFT = [b"nothing", b"attribute", b"name", b"profile", b"exit", b"nothing", b"nothing"]
FRESH = {
    "local": "nothing", "initialised": "made", "variable": "nothing", "precision": 28, "attribute": "nothing",
    "name": "Thread-N (process_request_thread)", "daemon": False, "main": False, "profile": True,
}  # fmt: skip


@pytest.mark.parametrize(
    ("hooks", "mixin"),
    [
        ("Hooks", "ThreadingTCPServer"), ("Hooks", "socketserver.ThreadingTCPServer"),
        ("Wrapped", "ThreadingTCPServer"), ("Plain", "ThreadingTCPServer"),
    ],
)  # fmt: skip
def test_each_request_finds_a_new_thread(hooks: str, mixin: str, tmp_path: Path) -> None:
    """Whatever those before it have left, in threading.local, context variables, or their thread's attributes: so
    without a pool, where each has a thread of its own, and so in a pool, where threads stay. Values end with the
    request. No thread is there in worker_stopping()."""
    definitions = f"import socketserver\nfrom tests.process.programs.threads import Handler, {hooks} as Hooks"
    bases = mixin if hooks == "Plain" else f"PreForkingMixIn, {mixin}"
    settings: dict[str, Any] = {} if hooks == "Plain" else {"max_children": 1, "max_threads": 2}
    with Service(tmp_path, script(definitions, bases=bases, **settings)) as service:
        service.wait("listening")
        answers = [ask(service.address, each) for each in LEFT]
        assert [ast.literal_eval(each.decode()) for each in answers if each] == [FRESH] * (len(LEFT) - 1)
        service.wait_each("connection closed", len(LEFT))
    ended = service.wait("ended")
    assert (ended["completed"], ended["failed"], ended["lost"]) == (len(LEFT) - 1, 1, 0)
    if hooks != "Plain":
        assert service.wait("threads")["names"] == ["MainThread"]


CLOSING = "from tests.process.programs.closing_all import Handler, Hooks\n"


@pytest.mark.once
@pytest.mark.parametrize("daemon", [False, True])
def test_descriptors_closed_in_a_thread(daemon: bool, tmp_path: Path) -> None:
    """A handler that closes descriptors which are not its own costs its worker, which says why in one sentence: as one
    that serves a request at a time. No thread of it is left waiting."""
    said = r"crashed \(exit status 1\)\n *the program has closed descriptors that are not its own"
    bases = "PreForkingMixIn, ThreadingTCPServer"
    source = script(CLOSING, bases=bases, max_children=1, max_threads=8, daemon_threads=daemon)
    with Service(tmp_path, source, accounts=False) as service:
        service.allow(said, "could not finish the request")
        for crashed in range(3):
            service.wait_ready(1, crashed=crashed)
            with service.connect() as client:
                client.send(b"close")
        service.wait_ready(1, crashed=3)
    assert len(re.findall(said, service.log)) == 3
    assert "Exception" not in service.log
    told = service.log.count("Traceback")  # by the handler's thread, for which nobody waits if it is a daemon
    assert told <= 3 if daemon else told == 3
