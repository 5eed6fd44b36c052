"""Processes that are not ours: forked by handlers, kept by the program in the master, orphaned at our PID 1."""

import contextlib
import os
import re
import signal
import socket
from pathlib import Path

import psutil
import pytest

from tests.support.clients.connections import ask
from tests.support.programs.service import HUNG, Service, Watch, script
from tests.support.tools.figures import figure

# Each command has a process of its own serve a request as the handler's server would, and so count it there.
FORKING = "from tests.faults.programs.forking import Handler"
# A process that the program forks, in a handler or in the master, and that waits for signals; how each one ends it.
SIGNALLED = "from tests.faults.programs.signalled import Handler, Hooks"
FOREIGN = "from tests.faults.programs.foreign_children import Hooks"
FOREIGN_AND_FORKING = """
import subprocess

class Hooks:
    def process_request(self, request, client_address):
        child = subprocess.Popen(["sh", "-c", "exit 7"])
        super().process_request(request, client_address)
        tell("foreign", status=child.wait())
"""
INIT = "from tests.faults.programs.init import Handler, Hooks"

ENDS = (signal.SIGTERM, signal.SIGQUIT, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2)


@pytest.mark.quick_faults
@pytest.mark.parametrize("bases", ["PreForkingTCPServer", "PreForkingMixIn, ThreadingTCPServer"])
@pytest.mark.parametrize("word", ["fork", "multiprocessing"])
def test_a_handler_forks(word: str, bases: str, tmp_path: Path) -> None:
    """A process that a handler forks, and that serves there, changes no count of ours, and holds no listener."""
    with Service(tmp_path, script(FORKING, bases=bases, max_children=2)) as service:
        service.wait_ready(2)
        for _ in range(5):
            after = service.mark()
            assert ask(service.address, f"{word}\n".encode())
            assert service.wait("forked", after=after)["listens"] is False
        statistics = service.statistics()
        figure(f"{bases}, {word}: accepted and completed", [statistics["accepted"], statistics["completed"]], 5)
        assert statistics["accepted"] == 5
        assert {name: statistics[name] for name in ("failed", "handed_over", "rejected", "lost")} == dict.fromkeys(
            ("failed", "handed_over", "rejected", "lost"), 0
        )
        assert statistics["exits"] == {}


@pytest.mark.parametrize("where", ["master", "worker", "worker with threads"])
def test_signals_of_what_the_program_forks(where: str, tmp_path: Path) -> None:
    """A process that the program forks, in a handler or in the master, has none of our signal handlers: terminate()
    ends it, and so does every other signal that ends a process."""
    bases = "PreForkingMixIn, ThreadingTCPServer" if "threads" in where else "PreForkingTCPServer"
    with Service(tmp_path, script(SIGNALLED, bases=bases, max_children=1)) as service:
        service.wait_ready(1)
        if where == "master":
            (tmp_path / "ask").touch()
            service.statistics()
        else:
            assert ask(service.address, b"signals\n")
        codes = service.wait("signalled")["codes"]
    assert codes == {str(int(signum)): -signum for signum in ENDS}


@pytest.mark.parametrize("bases", ["PreForkingTCPServer", "PreForkingMixIn, ThreadingTCPServer", "ForkingTCPServer"])
def test_a_handler_runs_a_program(bases: str, tmp_path: Path) -> None:
    """A subprocess of a handler inherits no socket of ours, even with close_fds off, and its status is its own."""
    with Service(tmp_path, script(FORKING, bases=bases)) as service:
        assert int(ask(service.address, b"subprocess\n")) == 0
        assert int(ask(service.address, b"status\n")) == 7
        if bases == "ForkingTCPServer":
            service.signal(signal.SIGKILL)
            service.wait_exit()
            service.wait_gone()


@pytest.mark.quick_faults
def test_children_of_the_program(tmp_path: Path) -> None:
    """Children that the program in the master started keep their status for it, while workers come and go."""
    with Service(tmp_path, script(FOREIGN, max_children=2)) as service:
        service.wait_ready(2)
        service.signal(signal.SIGKILL, service.workers()[0])
        foreign = service.wait("foreign")
        service.wait_ready(2, killed=1)
        zombies = [p.pid for p in psutil.Process(service.pid).children() if p.status() == psutil.STATUS_ZOMBIE]
    figure("foreign children in the master: statuses", [foreign["early"], foreign["late"]], "7, 7")
    figure("foreign children in the master: zombies", len(zombies), 0)
    assert (foreign["early"], foreign["late"]) == (7, 7)
    assert zombies == []


def test_children_of_a_forking_program(tmp_path: Path) -> None:
    """ForkingMixIn alone reaps its own children, and never the program's."""
    with Service(tmp_path, script(FOREIGN_AND_FORKING, bases="ForkingTCPServer")) as service:
        for _ in range(5):
            assert int(ask(service.address, b"pid\n"))
        assert [fact["status"] for fact in service.wait_each("foreign", 5)] == [7] * 5
        service.wait_pool(lambda pool: pool["spawned"] == 5)
        assert ask(service.address, b"pid\n")  # one more turn: the others are reaped
        service.signal(signal.SIGKILL)
        service.wait_exit()
        service.wait_gone()


def test_pid_1_reaps_orphans(tmp_path: Path) -> None:
    """As PID 1 it reaps what its workers orphaned, leaves the program's child to it for 5 s, and TERM ends it."""
    before = ["unshare", "--pid", "--fork", "--mount-proc", "--kill-child"]
    with Service(tmp_path, script(INIT, max_children=1), before=before) as service:
        init = service.wait("init")
        service.wait_ready(1)
        assert (init["pid_here"], init["graceful"]) == (1, 8)
        assert service.wait("mine")["status"] == 7
        (master,) = psutil.Process(service.pid).children()
        mark = service.mark()
        for _ in range(3):
            ask(service.address, b"orphan\n")
        many = service.wait("zombies", lambda fact: fact["count"] >= 3, after=mark)
        none = service.wait("zombies", lambda fact: fact["count"] == 0, after=service.facts.index(many))
        service.signal(signal.SIGTERM, master.pid)
        assert service.wait_exit() == 0
    figure("PID 1: orphans reaped after", f"{none['at'] - many['at']:.1f} s", "5 s + 2 s")
    assert 3 < none["at"] - many["at"] < 7
    assert len(re.findall("reaped an orphan", service.log)) >= 3


def test_listener_is_not_left_to_strangers(tmp_path: Path) -> None:
    """With a handler's subprocess alive the service ends, and its port is refused at once."""
    with Service(tmp_path, script(FORKING, max_children=1)) as service:
        sleeper = int(ask(service.address, b"sleeper\n"))
        with Watch(sleeper) as watch:
            service.signal(signal.SIGTERM)
            assert service.wait_exit() == 0
            with pytest.raises(ConnectionRefusedError):
                socket.create_connection(service.address, HUNG)
            assert watch.alive() == [sleeper]
            service.signal(signal.SIGKILL, sleeper)
            watch.wait_dead()


STRAYING = "from tests.faults.programs.straying import Handler, Hooks"
OF_A_REQUEST = (
    "get_request",
    "verify_request",
    "process_request",
    "finish_request",
    "shutdown_request",
    "close_request",
)


STATUS = {"returns": 0, "raises": 1, "exits": 7}


def stray_ends(service: Service, hook: str, how: str) -> int:
    """Wait until the process that this hook has forked has ended as it should; return its parent, which does not reap
    it."""
    stray = service.wait("stray", lambda fact: fact["hook"] == hook)
    with contextlib.suppress(ProcessLookupError, FileNotFoundError):  # its parent has ended too
        with Watch(stray["pid"]) as watch:
            watch.wait_dead()
        fields = Path(f"/proc/{stray['pid']}/stat").read_text().rpartition(")")[2].split()
        assert os.waitstatus_to_exitcode(int(fields[49])) == STATUS[how]
    parent: int = stray["parent"]
    return parent


@pytest.mark.quick_faults
@pytest.mark.parametrize("how", ["returns", "raises", "exits"])
@pytest.mark.parametrize("bases", ["PreForkingTCPServer", "PreForkingMixIn, ThreadingTCPServer"])
def test_a_hook_forks(bases: str, how: str, tmp_path: Path) -> None:
    """A process that a hook forks, and that returns from it or raises there, ends there: the client is answered once,
    and nobody serves, supervises or counts in it."""
    for hook in ("worker_started", "worker_draining", "worker_stopping"):
        (tmp_path / hook).write_text(how)
    with Service(tmp_path, script(STRAYING, bases=bases, max_children=1)) as service:
        service.allow("of a stray in")
        service.expect("asked to raise")
        service.wait_ready(1)
        worker = stray_ends(service, "worker_started", how)
        for hook in (*OF_A_REQUEST, "handle_error"):
            (tmp_path / hook).write_text(how)
            with service.connect() as client:
                if hook == "handle_error":
                    client.send(b"raise")
                    client.wait_end()
                else:
                    assert int(client.ask(b"pid")) == worker
            assert stray_ends(service, hook, how) == worker
        (tmp_path / "service_actions").write_text(how)
        service.statistics()
        assert stray_ends(service, "service_actions", how) == service.pid
        statistics = service.settled()
        assert statistics["exits"] == {}
        assert (statistics["accepted"], statistics["completed"], statistics["failed"]) == (7, 6, 1)
        service.signal(signal.SIGTERM)
        assert service.wait_exit() == 0
        assert [stray_ends(service, hook, how) for hook in ("worker_draining", "worker_stopping")] == [worker, worker]
        assert service.wait("ended")["exits"] == {"drained": 1}
    assert service.log.count("of a stray in") >= (len(OF_A_REQUEST) + 5) * (how == "raises")
