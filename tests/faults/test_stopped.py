"""Processes that do not react: deaf to TERM, stopped, or the clock on the wall moved under them."""

import contextlib
import shutil
import signal
import time
from pathlib import Path
from typing import Any

import psutil
import pytest

from prefork.master.policy import ROUSE_S, TICK_S
from prefork.workers.signals import DRAIN_SIGNAL
from tests.support.clients.connections import Load, ask, dial
from tests.support.clients.scraping import HUNG, Scraper, get, read_answer
from tests.support.programs.service import Service, Watch, script
from tests.support.tools.figures import figure, ms

GRACEFUL = 1.0
SLACK = 0.6  # seconds beyond a deadline

DEAF = """
class Hooks:
    def worker_started(self):
        %s
        super().worker_started()
"""
IGNORES, BLOCKS = "signal.signal(signal.%s, signal.SIG_IGN)", "signal.pthread_sigmask(0, signal.valid_signals())"
SITECUSTOMIZE = Path(__file__).parent / "programs" / "shifted_clock.py"
CLOCK = """
class Handler(Who):
    def do_clock(self):
        return time.time()
"""


@pytest.mark.quick_faults
@pytest.mark.parametrize("bases", ["PreForkingTCPServer", "PreForkingMixIn, ThreadingTCPServer"])
def test_busy_worker_that_ignores_term(bases: str, tmp_path: Path) -> None:
    """On USR2 a worker that computes for ever is killed at graceful_timeout, reason killed, its request lost."""
    with Service(tmp_path, script(bases=bases, max_children=2, graceful_timeout=GRACEFUL)) as service:
        service.wait_ready(2)
        with service.hold() as held:
            held.send(b"spin")
            service.wait("spinning")
            service.signal(signal.SIGUSR2)
            draining = service.wait_pool(lambda pool: pool["ready"] == 2 and pool["exits"].get("replaced"))
            killed = service.wait_ready(2, replaced=1, killed=1)
        took = killed["at"] - draining["at"]
        assert service.statistics()["lost"] == 1
    figure(f"{bases}, busy worker that ignores TERM: killed after", ms(took), ms(GRACEFUL + SLACK))
    assert GRACEFUL / 2 < took < GRACEFUL + SLACK  # it may have been told before the other was replaced


def test_service_with_a_worker_that_ignores_term(tmp_path: Path) -> None:
    """TERM to the master ends the service within graceful_timeout although a worker computes on."""
    with Service(tmp_path, script(max_children=2, graceful_timeout=GRACEFUL)) as service:
        service.wait_ready(2)
        with service.hold() as held:
            held.send(b"spin")
            service.wait("spinning")
            sent_at = service.signal(signal.SIGTERM)
            assert service.wait_exit() == 0
        ended = service.wait("ended")
    took = ended["at"] - sent_at
    assert "in state draining; it has 1 request in hand" in service.log
    figure("service with a worker that ignores TERM: ended after", ms(took), ms(GRACEFUL + SLACK))
    assert ended["exits"] == {"drained": 1, "killed": 1}
    assert GRACEFUL <= took < GRACEFUL + SLACK


@pytest.mark.parametrize(
    ("deaf", "graceful", "end", "after"),
    [
        (IGNORES % "SIGTERM", GRACEFUL, "drained", 0.0),
        (IGNORES % DRAIN_SIGNAL.name, 30.0, "drained", ROUSE_S),
        (BLOCKS, GRACEFUL, "killed", GRACEFUL),
    ],
    ids=["ignore TERM", "ignore the master's signal", "block all"],
)
def test_idle_workers_that_are_deaf(deaf: str, graceful: float, end: str, after: float, tmp_path: Path) -> None:
    """User code that ignores TERM changes nothing; where it ignores the master's own signal an idle worker learns a
    second later that it is to leave; one that blocks all of them is killed at the deadline, and the log says why."""
    with Service(tmp_path, script(DEAF % deaf, max_children=2, graceful_timeout=graceful)) as service:
        service.wait_ready(2)
        sent_at = service.signal(signal.SIGTERM)
        assert service.wait_exit() == 0
        ended = service.wait("ended")
    took = ended["at"] - sent_at
    figure(f"idle workers with {deaf}: ended after", ms(took), ms(after + SLACK))
    assert ended["exits"] == {end: 2}
    assert after <= took < after + TICK_S + SLACK
    assert service.log.count(f"in state draining; it blocks {DRAIN_SIGNAL.name}") == 2 * (end == "killed")


@pytest.mark.quick_faults
def test_idle_worker_stopped(tmp_path: Path) -> None:
    """With an idle worker in SIGSTOP every connection is still answered; after CONT it is as good as the others."""
    with Service(tmp_path, script(max_children=2)) as service:
        service.wait_ready(2)
        stopped, other = service.workers()
        service.signal(signal.SIGSTOP, stopped)
        slowest = 0.0
        for _ in range(100):
            began = time.monotonic()
            assert int(ask(service.address, b"pid\n")) == other
            slowest = max(slowest, time.monotonic() - began)
        service.signal(signal.SIGCONT, stopped)
        with service.hold() as first, service.hold() as second:
            assert {first.pid, second.pid} == {stopped, other}
        assert service.statistics()["exits"] == {}
    figure("idle worker stopped: slowest answer", ms(slowest), "1200 ms")
    assert slowest < 1.2


@pytest.mark.quick_faults
def test_whoever_is_told_to_leave_is_continued(tmp_path: Path) -> None:
    """Workers and companions in SIGSTOP leave when they are replaced and when the service drains, within a second or
    two and not at graceful_timeout; so does one that is stopped after it was told."""
    accompanied = "from tests.process.programs.accompanied import *\nclass Hooks: companions = {'steady': steady}"
    with Service(tmp_path, script(accompanied, max_children=2)) as service:
        service.wait_ready(2)
        companion = service.wait("begun")["pid"]
        began = time.monotonic()
        for pid in (*service.workers(), companion):
            service.signal(signal.SIGSTOP, pid)
        mark = service.mark()
        service.signal(signal.SIGUSR2)
        replaced = service.wait_ready(2, replaced=2)["at"]
        companion = service.wait("begun", after=mark)["pid"]
        service.signal(signal.SIGSTOP, companion)
        with service.hold() as held, Watch(held.pid) as watch:
            service.signal(signal.SIGTERM)
            service.wait_pool(lambda pool: pool["draining"] > 0)
            service.signal(signal.SIGSTOP, held.pid)
            stopped = time.monotonic()
            held.close()
            roused = watch.wait_dead() - stopped
        assert service.wait_exit() == 0
        assert service.wait("ended")["exits"] == {"replaced": 2, "drained": 2}
    figure("all stopped: replaced after", ms(replaced - began), "2 s")
    figure("stopped while draining: gone after", ms(roused), ms(ROUSE_S + TICK_S + SLACK))
    assert roused < ROUSE_S + TICK_S + SLACK
    assert "killed after" not in service.log


@pytest.mark.quick_faults
@pytest.mark.parametrize("bases", ["PreForkingTCPServer", "PreForkingMixIn, ThreadingTCPServer"])
def test_busy_worker_stopped(bases: str, tmp_path: Path) -> None:
    """A worker stopped in mid-request is replaced, reason timeout, its stack in the log, while traffic goes on."""
    settings: dict[str, Any] = {"max_children": 2, "request_timeout": 1.0, "graceful_timeout": 5}
    with Service(tmp_path, script(bases=bases, **settings)) as service:
        service.expect("a request has run for longer than request_timeout")
        service.wait_ready(2)
        with service.hold() as held, Load(service.address, 2) as load:
            began = time.monotonic()
            service.signal(signal.SIGSTOP, held.pid)
            service.wait_pool(lambda pool: pool["draining"] == 1)  # told by TERM, before it is killed
            replaced = service.wait_ready(2, timeout=1)
            held.wait_end()
        statistics = service.statistics()
    took = replaced["at"] - began
    figure(f"{bases}, busy worker stopped: replaced after", ms(took), "1 to 2.5 s")
    figure(f"{bases}, traffic meanwhile", f"{load.tally.answered} answered, {load.tally.failures} failed")
    assert 0.9 < took < 2.5
    assert load.tally.failures == 0
    assert statistics["timed_out"] == 1
    assert " in handle\n" in service.log


def test_master_stopped(tmp_path: Path) -> None:
    """The master in SIGSTOP for three timeouts kills nobody when it is back, busy or told to leave, suspects no
    request, and says that it was away; the deadlines that it had come as much later."""
    timeout = 1.0
    settings: dict[str, Any] = {"max_children": 3}
    settings |= {"request_timeout": timeout, "graceful_timeout": timeout, "boot_timeout": timeout}
    with Service(tmp_path, script(**settings)) as service:
        service.expect("a request has run for longer than request_timeout")
        service.wait_ready(3)
        with contextlib.ExitStack() as stack, Watch(*service.workers()) as watch:
            held = [stack.enter_context(service.hold()) for _ in range(3)]
            service.signal(signal.SIGTTOU)
            service.wait_pool(lambda pool: pool["draining"] == 1)
            service.signal(signal.SIGSTOP)
            time.sleep(3 * timeout)  # an input: how long it is gone
            assert [int(each.ask(b"pid")) for each in held] == [each.pid for each in held]
            back_at = service.signal(signal.SIGCONT)
            service.statistics()  # told at the end of the turn in which it was stopped
            statistics = service.statistics()
            assert [int(each.ask(b"pid")) for each in held] == [each.pid for each in held]
            log = service.log
            ended = watch.wait_dead() - back_at
    assert statistics["exits"] == {}
    assert "this process was stopped or kept busy for" in log
    assert "longer than request_timeout" not in log
    figure("master stopped for three timeouts: killed", 0, 0)
    figure("and its deadlines came after", ms(ended), "0.3 s to 1.6 s")
    assert 0.3 < ended < timeout + SLACK


def test_wall_clock_moved(tmp_path: Path) -> None:
    """The wall clock an hour on, and an hour back: nothing is restarted and no deadline moves."""
    shift = tmp_path / "shift"
    shift.write_text("0")
    shutil.copy(SITECUSTOMIZE, tmp_path / "sitecustomize.py")
    settings: dict[str, Any] = {
        "max_children": 2, "request_timeout": 600, "slow_request_timeout": 300, "max_lifetime": 1800,
        "boot_timeout": 300, "graceful_timeout": 1,
    }  # fmt: skip
    with Service(tmp_path, script(CLOCK, **settings), env={"SHIFT_FILE": str(shift)}) as service:
        service.wait_ready(2)
        before = set(service.workers())
        with service.hold() as held:
            for seconds in (3600, -3600):
                shift.write_text(str(seconds))
                assert abs(float(held.ask(b"clock")) - time.time() - seconds) < 60
                statistics = service.statistics()
                assert statistics["exits"] == {}
                assert statistics["in_flight"] == 1
            with Watch(held.pid) as worker:
                sent_at = service.signal(signal.SIGTERM)
                drained = worker.wait_dead() - sent_at
        assert service.wait_exit() == 0
        assert before == {fact["pid"] for fact in service.facts if fact["event"] == "worker_started"}
    figure("wall clock moved by an hour: restarted", 0, 0)
    figure("wall clock moved: the deadline of a drain came after", ms(drained), "1 s + 0.6 s")
    assert 0.9 < drained < 1 + SLACK


# With metrics.


def _measured(folder: Path) -> Service:
    """Its metrics are at the Unix path `m` in this folder."""
    return Service(folder, script(max_children=2, metrics_address=str(folder / "m")))


def _exporter(master: int) -> psutil.Process:
    return next(each for each in psutil.Process(master).children() if each.cmdline()[:1] == ["prefork: exporter"])


def test_healthy_is_red_while_the_master_stands_still(tmp_path: Path) -> None:
    """A master that is stopped for more than 5 s is not healthy; the exporter says so, and that it is again."""
    with _measured(tmp_path) as service:
        service.wait_ready(2)
        with Scraper(str(tmp_path / "m")) as scraper:
            assert get(str(tmp_path / "m"), "/-/healthy").status == 200
            before = time.monotonic()
            for _ in range(2):
                service.statistics()  # told in a turn: the second one began after `before`
            stopped = service.signal(signal.SIGSTOP)
            try:
                red = _wait_status(str(tmp_path / "m"), "/-/healthy", 503)
            finally:
                service.signal(signal.SIGCONT)
            _wait_status(str(tmp_path / "m"), "/-/healthy", 200)
    figure("healthy red after a stop of the master", ms(red - stopped), "5 s to 7 s after its last turn")
    assert red - before >= 5
    assert red - stopped < 7
    assert scraper.failed == []
    assert scraper.falls == []


def _wait_status(address: str, path: str, status: int) -> float:
    deadline = time.monotonic() + HUNG
    while get(address, path).status != status:
        assert time.monotonic() < deadline, f"hung: {path} does not become {status}"
    return time.monotonic()


def test_wedged_exporter_is_replaced(tmp_path: Path) -> None:
    """One that takes no connection for some seconds is killed and restarted; requests are served all the while."""
    with _measured(tmp_path) as service:
        service.wait_ready(2)
        assert get(str(tmp_path / "m")).status == 200
        process = _exporter(service.pid)
        stopped = service.signal(signal.SIGSTOP, process.pid)
        with Watch(process.pid) as watch, dial(str(tmp_path / "m")) as waiting:
            waiting.sendall(b"GET /-/ready HTTP/1.0\r\n\r\n")
            assert int(ask(service.address, b"pid\n"))
            killed = watch.wait_dead() - stopped
            assert read_answer(waiting).status == 200  # the one that found it wedged is answered by the next
            answered = time.monotonic() - stopped
        assert get(str(tmp_path / "m")).status == 200
        assert _exporter(service.pid).pid != process.pid
        assert "it takes no connections; killing it" in service.log
    figure("a wedged exporter is killed, and replaced, after", f"{ms(killed)}, {ms(answered)}", "3 to 4 s, 5 s")
    assert killed > 2.9  # after the scrape before, which it took
    assert answered < 5
