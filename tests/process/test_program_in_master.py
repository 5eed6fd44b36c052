"""What a program does in the master does not end the service, and what it leaves serve_forever() by drains first."""

import os
import re
import signal
import time
from pathlib import Path

import psutil
import pytest

from tests.support.clients.connections import ask
from tests.support.programs.releases import Released, numbered
from tests.support.programs.service import Service, script
from tests.support.tools.proc import nothing_for

A_WHILE = 0.2  # seconds, in which a service that does not drain has ended

LEAVES = "from tests.process.programs.leaving import Hooks"


@pytest.mark.parametrize(("signum", "status"), [(signal.SIGTERM, 5), (signal.SIGUSR2, 6)])
def test_service_actions_that_raises_and_an_exit(signum: int, status: int, tmp_path: Path) -> None:
    """An error of service_actions() is logged with its traceback, once in ten seconds, and the service goes on. A
    SystemExit, of the program's TERM handler or of service_actions(), has the pool drain first: what is in hand and
    what is queued is answered, and then it passes on."""
    with Service(tmp_path, script(LEAVES, max_children=2)) as service:
        service.wait_ready(2)
        service.expect(r"could not run service_actions\(\): .*(?s:.*)Traceback(?s:.*)of the kernel's",
                       r"could not run service_actions\(\): ValueError: of(?s:.*)Traceback")  # fmt: skip
        service.signal(signal.SIGUSR1)
        service.wait_each("raised", 6)
        service.signal(signal.SIGKILL, service.workers()[0])
        service.wait_ready(2, killed=1)
        with service.hold() as first, service.hold() as second, service.connect() as queued:
            queued.send(b"pid")
            service.signal(signum)
            if signum == signal.SIGTERM:
                for number in range(200):  # more of them cut nothing short, wherever the master is by then
                    time.sleep(number % 10 / 10_000)  # the sweep
                    service.signal(signum)
            nothing_for(A_WHILE, queued.sock)
            assert {int(first.ask(b"pid")), int(second.ask(b"pid"))} == {first.pid, second.pid}
            first.close()
            assert int(queued.answer()) == first.pid
        assert service.wait_exit() == status
        ended = service.wait("ended")
    assert ended["exits"] == {"killed": 1, "drained": 2}
    assert (ended["failed"], ended["lost"]) == (0, 0)
    assert len(re.findall(r"could not run service_actions", service.log)) == 2
    assert "the program leaves serve_forever() by SystemExit; draining first" in service.log


POLLED = "from tests.process.programs.polled import Hooks"


@pytest.mark.parametrize("base", ["PreForkingTCPServer", "ThreadingTCPServer"])
def test_statistics_while_the_server_closes(base: str, tmp_path: Path) -> None:
    """Threads that poll statistics() from before the first fork until after server_close() get an answer each time."""
    with Service(tmp_path, script(POLLED, bases=base)) as service:
        assert int(ask(service.address, b"pid\n"))
        service.signal(signal.SIGTERM)
        assert service.wait_exit() == 0
    assert not [fact for fact in service.facts if fact["event"] == "poll_raised"]


PRINTS = "import subprocess\nif rehearsing():\n    open('gate', 'w').close()\n    subprocess.run(['yes'])\n"


@pytest.mark.timed
def test_a_rehearsal_that_prints_without_end(tmp_path: Path) -> None:
    """The master reads a part of it in each turn: it replaces workers meanwhile, does not grow, and after boot_timeout
    says what became of the reload."""
    os.mkfifo(tmp_path / "gate")
    with Released(tmp_path, max_children=1, boot_timeout=1.5) as service:
        service.wait_ready(1)
        service.expect(r"reload failed: the rehearsal was not ready within 1\.5 s")
        service.release(numbered(2, PRINTS))
        before = psutil.Process(service.pid).memory_info().rss
        service.signal(signal.SIGHUP)
        with open(tmp_path / "gate"):  # which waits for the other end
            pass
        service.signal(signal.SIGKILL, *service.workers())
        service.wait_ready(1, killed=1)
        assert not service.statistics()["reloads"]["failed"], "the pool waited for the rehearsal's end"
        service.wait_reloads(failed=1)
        assert psutil.Process(service.pid).memory_info().rss - before < 4 << 20
        assert service.answering() == "r1"


SLEEPS = """
class Hooks:
    def service_actions(self):
        super().service_actions()
        time.sleep(0.7)
"""


@pytest.mark.timed
def test_service_actions_that_sleeps(tmp_path: Path) -> None:
    """The time that it always takes is no pause of the master's: deadlines do not move, and a request without end is
    killed at graceful_timeout, in the first turn after it."""
    with Service(tmp_path, script(SLEEPS, max_children=1, graceful_timeout=1.0)) as service:
        service.wait_ready(1)
        with service.hold():
            told = service.signal(signal.SIGTERM)
            assert service.wait_exit() == 0
        ended = service.wait("ended")
    assert ended["exits"] == {"killed": 1}
    assert ended["at"] - told < 1.0 + 4 * 0.7
    assert service.log.count("stopped or kept busy") <= 1, "only the first can be told from a pause by nobody"


WAITS = "from tests.process.programs.signals_its_own import Waits as Hooks"
LOOPS = "from tests.process.programs.signals_its_own import Loops as Hooks"


@pytest.mark.once
def test_signals_that_the_program_blocks(tmp_path: Path) -> None:
    """It waits for TERM in a thread of its own; its workers hear their master all the same, when it ends by that."""
    with Service(tmp_path, script(WAITS, max_children=2, graceful_timeout=3.0)) as service:
        service.wait_ready(2)
        service.signal(signal.SIGTERM)
        assert service.wait_exit() == 0
        assert service.wait("ended")["exits"] == {"drained": 2}


def test_an_event_loop_in_service_actions(tmp_path: Path) -> None:
    """It leaves TERM at its default action; the master takes it back, and drains."""
    with Service(tmp_path, script(LOOPS, max_children=1)) as service:
        service.wait_ready(1)
        service.wait("looped")
        service.signal(signal.SIGTERM)
        assert service.wait_exit() == 0
        assert service.wait("ended")["exits"] == {"drained": 1}
