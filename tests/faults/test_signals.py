"""Signals at the worst moment: 0 to 25 ms after a fork, to either process; and dispositions inherited as ignored."""

import signal
import sys
import time
from pathlib import Path

import pytest

from tests.support.programs.service import Fact, Service, Watch, script
from tests.support.tools.figures import figure, ms

DELAYS = range(25)  # milliseconds
AT_FORK = 'os.register_at_fork(after_in_child=lambda: tell("forked"))'
TO_MASTER = (signal.SIGTERM, signal.SIGINT, signal.SIGQUIT, signal.SIGTTIN, signal.SIGTTOU, signal.SIGUSR2)
TO_CHILD = (
    signal.SIGTERM, signal.SIGQUIT, signal.SIGKILL, signal.SIGUSR1,
    signal.SIGINT, signal.SIGHUP, signal.SIGUSR2, signal.SIGTTIN, signal.SIGTTOU,
)  # fmt: skip
ENDS_A_WORKER = {signal.SIGTERM: "replaced", signal.SIGQUIT: "stopped", signal.SIGKILL: "killed"}
IGNORED = "import os,signal,sys\nfor s in sys.argv[1].split(): signal.signal(int(s), signal.SIG_IGN)\n"
IGNORED += "os.execvp(sys.argv[2], sys.argv[2:])"


def wait_after(fact: Fact, delay_ms: int) -> None:
    """The swept delay: until so long after this fact."""
    time.sleep(max(0.0, fact["at"] + delay_ms / 1000 - time.monotonic()))


def sent_to_the_master(signum: int, delay_ms: int, tmp_path: Path) -> None:
    """Start a service, send the signal this long after its first fork, and hold it to what it means."""
    with Service(tmp_path, script(AT_FORK, max_children=2)) as service:
        wait_after(service.wait("forked"), delay_ms)
        service.signal(signum)
        if signum in (signal.SIGTERM, signal.SIGINT, signal.SIGQUIT):
            assert service.wait_exit() == 0
            exits = service.wait("ended")["exits"]
            assert set(exits) <= ({"drained"} if signum == signal.SIGTERM else {"stopped"}), exits
            return
        if signum == signal.SIGUSR2:
            service.wait_ready(2, replaced=2)
        else:
            target = 3 if signum == signal.SIGTTIN else 1
            service.wait_pool(lambda pool: pool["ready"] == target and not pool["starting"] and not pool["draining"])
            started = [fact["pid"] for fact in service.facts if fact["event"] == "forked"]
            assert len(started) == max(2, target), "a worker felt it"
        with service.connect() as connection:
            assert int(connection.ask(b"pid")) in service.workers()


@pytest.mark.quick_faults
def test_any_signal_to_the_master(tmp_path: Path) -> None:
    """A signal to the master 0 to 25 ms after a fork acts, on every try, and no worker feels it."""
    for delay_ms in DELAYS:
        sent_to_the_master(TO_MASTER[delay_ms % len(TO_MASTER)], delay_ms, tmp_path)
    figure("signals to the master after a fork that acted", f"{len(DELAYS)} of {len(DELAYS)}")


@pytest.mark.quick_faults
def test_any_signal_to_a_child(tmp_path: Path) -> None:
    """A signal to a worker 0 to 25 ms after its fork ends it, or does nothing there; the master feels nothing."""
    expected = dict.fromkeys(ENDS_A_WORKER.values(), 0)
    with Service(tmp_path, script(AT_FORK, max_children=2)) as service:
        for delay_ms in DELAYS:
            service.wait_ready(2, **expected)
            mark = service.mark()
            service.signal(signal.SIGKILL, service.workers()[0])
            expected["killed"] += 1
            child = service.wait("forked", after=mark)
            wait_after(child, delay_ms)
            signum = TO_CHILD[delay_ms % len(TO_CHILD)]
            service.signal(signum, child["pid"])
            if signum in ENDS_A_WORKER:
                expected[ENDS_A_WORKER[signum]] += 1
            service.wait_ready(2, **expected)
            assert (child["pid"] in service.workers()) is (signum not in ENDS_A_WORKER)
        assert service.statistics()["exits"] == {reason: count for reason, count in expected.items() if count}
    assert service.log.count("most recent call first") >= len([d for d in DELAYS if TO_CHILD[d % 9] == signal.SIGUSR1])
    assert "command:" not in service.log.partition("command: drain")[0]
    figure("signals to a child after its fork that acted", f"{len(DELAYS)} of {len(DELAYS)}")


def test_any_moment_in_a_request_s_child(tmp_path: Path) -> None:
    """ForkingMixIn alone: TERM to a child 0 to 25 ms after its fork ends that child, and nothing else."""
    with Service(tmp_path, script(AT_FORK, bases="ForkingTCPServer")) as service:
        for delay_ms in DELAYS:
            mark = service.mark()
            with service.connect() as connection:
                child = service.wait("forked", after=mark)
                with Watch(child["pid"]) as watch:
                    wait_after(child, delay_ms)
                    service.signal(signal.SIGTERM, child["pid"])
                    watch.wait_dead()
                connection.wait_end()
        with service.connect() as connection, Watch(int(connection.ask(b"pid"))) as watch:
            connection.close()
            watch.wait_dead()
        service.wait_pool(lambda pool: pool["spawned"] == len(DELAYS) + 1)
        assert service.statistics()["lost"] == len(DELAYS)
        service.signal(signal.SIGTERM)  # a plain server takes no signals
        assert service.wait_exit() == -signal.SIGTERM
    figure("children of a ForkingTCPServer ended by TERM", f"{len(DELAYS)} of {len(DELAYS)}")


@pytest.mark.parametrize("last", [signal.SIGINT, signal.SIGTERM])
def test_inherited_as_ignored(last: int, tmp_path: Path) -> None:
    """Started with SIGCHLD, INT and HUP ignored, as by nohup: statuses are read, INT still stops it."""
    ignored = " ".join(str(int(s)) for s in (signal.SIGCHLD, signal.SIGINT, signal.SIGHUP))
    with Service(tmp_path, script(max_children=2), before=[sys.executable, "-c", IGNORED, ignored]) as service:
        service.expect(r"exited \(exit status 3\)")
        service.allow("reload failed: the service is about to end")
        service.wait_ready(2)
        service.signal(signal.SIGHUP)
        service.signal(signal.SIGKILL, service.workers()[0])
        service.wait_ready(2, killed=1)
        with service.connect() as connection:
            connection.send(b"exit 3")
            connection.wait_end()
        service.wait_ready(2, killed=1, exited=1)
        sent_at = service.signal(last)
        assert service.wait_exit() == 0
        ended = service.wait("ended")
    figure(f"{signal.Signals(last).name} inherited as ignored: ended after", ms(ended["at"] - sent_at))
    assert ended["exits"] == {"killed": 1, "exited": 1, "stopped" if last == signal.SIGINT else "drained": 2}


def test_inherited_as_ignored_by_a_forking_server(tmp_path: Path) -> None:
    """ForkingMixIn alone with SIGCHLD inherited as ignored: requests are answered and counted."""
    ignored = str(int(signal.SIGCHLD))
    source = script(bases="ForkingTCPServer")
    with Service(tmp_path, source, before=[sys.executable, "-c", IGNORED, ignored]) as service:
        for _ in range(10):
            with service.connect() as connection:
                assert int(connection.ask(b"pid"))
        statistics = service.statistics()
        service.signal(signal.SIGKILL)
        service.wait_exit()
        service.wait_gone()
    assert statistics["accepted"] == 10
    assert statistics["lost"] == 0
