"""The settings of a pool at work: recycling, sizing, slow requests."""

import re
import signal
from pathlib import Path
from time import monotonic
from typing import Any

import pytest

from tests.support.clients.connections import Load, ask
from tests.support.programs.service import Service, script

pytestmark = pytest.mark.once  # nothing of it is the interpreter's

HOARDING = """
class Handler(Who):
    hoard = []
    def do_hoard(self):
        self.hoard.append(bytearray(os.urandom(1 << 20) * 64))
"""
LOGGING = """
class Telling(logging.Handler):
    def emit(self, record):
        tell("logged", message=record.msg)

logging.getLogger("prefork.supervisor").addHandler(Telling())
"""


@pytest.mark.parametrize("bases", ["PreForkingTCPServer", "PreForkingMixIn, ThreadingTCPServer"])
def test_max_requests(bases: str, tmp_path: Path) -> None:
    """A worker is replaced after max_requests, or up to a tenth fewer, with no request lost on the way."""
    with Service(tmp_path, script(bases=bases, max_children=2, max_requests=50)) as service:
        service.wait_ready(2)
        with Load(service.address, 3) as load:
            service.wait_pool(lambda pool: pool["exits"].get("max_requests", 0) >= 10)
        service.signal(signal.SIGTERM)
        assert service.wait_exit() == 0
        ended = service.wait("ended")
    assert load.tally.failures == 0
    assert ended["completed"] == load.tally.answered
    assert set(ended["exits"]) == {"max_requests", "drained"}
    assert ended["completed"] >= 45 * ended["exits"]["max_requests"]


@pytest.mark.timed
def test_max_lifetime(tmp_path: Path) -> None:
    """A worker is replaced after max_lifetime, up to a tenth earlier, idle or not; a request in hand is finished."""
    with Service(tmp_path, script(max_children=2, max_lifetime=1.0)) as service:
        service.wait_ready(2)
        with service.hold() as held:
            service.wait_ready(2, max_lifetime=1)
            assert int(held.ask(b"pid")) == held.pid
        service.wait_ready(2, max_lifetime=3)
        starts = [fact["at"] for fact in service.facts if fact["event"] == "worker_started"]
        assert service.statistics()["lost"] == 0
    assert starts[2] - starts[0] > 0.85


def test_max_memory(tmp_path: Path) -> None:
    """A worker whose private memory stays too large is replaced, never in the middle of a request."""
    with Service(tmp_path, script(HOARDING, max_children=1, max_memory=64 << 20)) as service:
        service.wait_ready(1)
        before = int(ask(service.address, b"hoard\n"))
        with Load(service.address, 1) as load:
            service.wait_ready(1, max_memory=1)
            load.wait_answered(1)
        assert load.tally.failures == 0
        assert service.workers() != [before]
        assert service.statistics()["lost"] == 0


def test_spare_children(tmp_path: Path) -> None:
    """The pool grows while fewer than min_spare_children are idle, to max_children, and shrinks to min_children."""
    settings: dict[str, Any] = {"min_children": 1, "max_children": 6, "min_spare_children": 1, "max_spare_children": 2}
    with Service(tmp_path, script(**settings)) as service:
        service.wait_pool(lambda pool: 1 <= pool["ready"] <= 2)
        held = [service.hold() for _ in range(6)]
        assert len({connection.pid for connection in held}) == 6
        service.wait_pool(lambda pool: pool["ready"] == 6 and pool["spawned"] == 6)
        for connection in held:
            connection.close()
        service.wait_pool(lambda pool: pool["exits"].get("scaled_down", 0) == 4 and pool["ready"] == 2)
        statistics = service.settled()
    assert statistics["exits"] == {"scaled_down": 4}
    assert statistics["completed"] == 6


@pytest.mark.timed
def test_saturation_is_answered_at_once(tmp_path: Path) -> None:
    """Without spare children a connection that finds everybody busy gets a new worker right away."""
    with Service(tmp_path, script(min_children=1, max_children=4)) as service:
        service.wait_ready(1)
        began = monotonic()
        held = [service.hold() for _ in range(4)]
        last = service.wait_ready(4)["at"]
        assert len({connection.pid for connection in held}) == 4
        for connection in held:
            connection.close()
    assert last - began < 1


def test_one_more_and_one_fewer(tmp_path: Path) -> None:
    """TTIN and TTOU move the pool by one, down to one worker and never to none."""
    with Service(tmp_path, script(max_children=2)) as service:
        service.wait_ready(2)
        service.signal(signal.SIGTTIN)
        service.wait_ready(3)
        for left in (2, 1):
            service.signal(signal.SIGTTOU)
            service.wait_ready(left, scaled_down=3 - left)
        service.signal(signal.SIGTTOU)
        assert service.statistics()["workers"]["idle"] == 1
        assert int(ask(service.address, b"pid\n"))


@pytest.mark.parametrize("bases", ["PreForkingTCPServer", "PreForkingMixIn, ThreadingTCPServer"])
def test_slow_requests_show_their_stacks(bases: str, tmp_path: Path) -> None:
    """Past slow_request_timeout the stack behind the request is logged, once, and the request goes on."""
    with Service(tmp_path, script(LOGGING, bases=bases, max_children=1, slow_request_timeout=0.2)) as service:
        service.wait_ready(1)
        with service.hold() as held:
            service.wait("logged", lambda fact: fact["message"] == "%s: stacks of its threads\n%s")
            assert int(held.ask(b"pid")) == held.pid
            service.statistics()
        assert service.statistics()["exits"] == {}
    assert service.log.count("longer than slow_request_timeout") == 1
    assert service.log.count(" in handle\n") == 1


@pytest.mark.timed
def test_request_timeout(tmp_path: Path) -> None:
    """A request past request_timeout is cut: its peer and stack in the log, its worker replaced, it is timed out."""
    with Service(tmp_path, script(max_children=2, request_timeout=0.5, control_allow="root")) as service:
        service.expect("a request has run for longer than request_timeout")
        service.wait_ready(2)
        with service.connect() as held:
            peer = ":".join(map(str, held.sock.getsockname()[:2]))
            cut = service.wait_ready(2, timeout=1)
            held.wait_end()
        statistics = service.statistics()
    assert statistics["timed_out"] == 1
    assert statistics["lost"] == 0
    assert f"a request has run for longer than request_timeout; peer {peer}\n" in service.log
    assert "control_allow has no effect: there is no control_socket\n" in service.log
    assert cut["spawned"] == 3
    assert " in handle\n" in service.log


def test_full_is_told(tmp_path: Path) -> None:
    """That no lane is idle and clients wait is a line in the log when it begins, and one when it ends."""
    with Service(tmp_path, script(LOGGING, max_children=1)) as service:
        service.wait_ready(1)
        with service.hold() as held, service.connect() as waiting:
            service.wait("logged", lambda fact: fact["message"].startswith("full: every lane is busy"))
            held.close()
            assert int(waiting.ask(b"pid")) == held.pid
            service.wait("logged", lambda fact: fact["message"].startswith("no longer full: clients waited for "))
    (waited,) = re.findall(r" full: every lane is busy, and clients have been waiting for ([0-9.]+)", service.log)
    assert float(waited) >= 1
    assert service.log.count("no longer full: clients waited for ") == 1


@pytest.mark.timed
def test_request_timeout_spares_the_other_threads(tmp_path: Path) -> None:
    """With threads the requests beside the one that is cut are finished, up to their own deadlines."""
    source = script(bases="PreForkingMixIn, ThreadingTCPServer", max_children=1, request_timeout=1.0)
    with Service(tmp_path, source) as service:
        service.expect("a request has run for longer than request_timeout")
        service.wait_ready(1)
        with service.hold() as cut, service.connect() as finishing:
            service.wait_pool(lambda pool: pool["draining"] == 1)
            late = int(finishing.ask(b"pid"))
            finishing.close()
            service.wait_ready(1, timeout=1)
            cut.wait_end()
        statistics = service.statistics()
    assert late
    assert statistics["timed_out"] == 1
    assert statistics["completed"] == 1
