"""Processes that are not ours: forked by handlers, kept by the program in the master, orphaned at our PID 1."""

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
FORKING = """
import multiprocessing, subprocess

SHOW = "import os; print(*[os.readlink(f.path) for f in os.scandir('/proc/self/fd') if os.path.lexists(f.path)])"

def listens():
    for name in os.listdir("/proc/self/fd"):
        try:
            with socket.socket(fileno=os.dup(int(name))) as sock:
                if sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
                    return True
        except OSError:
            pass
    return False

class Quiet(BaseRequestHandler):
    def handle(self):
        pass

def serve_one(server):
    ours, theirs = socket.socketpair()
    server.RequestHandlerClass = Quiet
    server.finish_request(ours, "elsewhere")
    server.process_request(theirs, "elsewhere")
    tell("forked", listens=listens())

class Handler(Who):
    def do_fork(self):
        pid = os.fork()
        if pid == 0:
            serve_one(self.server)
            os._exit(0)
        os.waitpid(pid, 0)

    def do_multiprocessing(self):
        process = multiprocessing.get_context("fork").Process(target=serve_one, args=(self.server,))
        process.start()
        process.join()
        return process.exitcode

    def do_subprocess(self):
        done = subprocess.run([sys.executable, "-c", SHOW], capture_output=True, text=True, close_fds=False)
        return done.stdout.count("socket:")

    def do_sleeper(self):
        return subprocess.Popen(["sleep", "60"], close_fds=False).pid

    def do_status(self):
        return subprocess.run(["sh", "-c", "exit 7"]).returncode
"""
# A process that the program forks, in a handler or in the master, and that waits for signals; how each one ends it.
SIGNALLED = """
import multiprocessing
ENDS = [signal.SIGTERM, signal.SIGQUIT, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2]

def wait_for_signals(ready):
    ready.close()
    while True:
        signal.pause()

def ended_by(signum):
    reading, writing = multiprocessing.Pipe(False)
    process = multiprocessing.get_context("fork").Process(target=wait_for_signals, args=(writing,))
    process.start()
    writing.close()
    reading.poll(None)
    reading.close()
    os.kill(process.pid, signum)
    process.join(5)
    code = process.exitcode
    process.kill()
    process.join()
    return code

def end_each():
    return {int(signum): ended_by(signum) for signum in ENDS}

class Handler(Who):
    def do_signals(self):
        tell("signalled", codes=end_each())

class Hooks:
    asked = False
    def service_actions(self):
        super().service_actions()
        if os.path.exists("ask") and not self.asked:
            self.asked = True
            tell("signalled", codes=end_each())
"""
FOREIGN = """
import subprocess

early = subprocess.Popen(["sh", "-c", "exit 7"])
late = subprocess.Popen(["sh", "-c", "read line; exit 7"], stdin=subprocess.PIPE)

class Hooks:
    def service_actions(self):
        super().service_actions()
        if self.statistics().exits and not late.stdin.closed:
            late.stdin.write(b"\\n")
            late.stdin.close()
            tell("foreign", early=early.wait(), late=late.wait())
"""
FOREIGN_AND_FORKING = """
import subprocess

class Hooks:
    def process_request(self, request, client_address):
        child = subprocess.Popen(["sh", "-c", "exit 7"])
        super().process_request(request, client_address)
        tell("foreign", status=child.wait())
"""
INIT = """
import psutil, subprocess

class Hooks:
    zombies = -1
    def service_actions(self):
        super().service_actions()
        if self.statistics().workers["idle"] and mine.returncode is None:
            tell("mine", status=mine.wait())
        zombies = sum(p.status() == psutil.STATUS_ZOMBIE for p in psutil.Process().children())
        if zombies != self.zombies:
            self.zombies = zombies
            tell("zombies", count=zombies)

class Handler(Who):
    def do_orphan(self):
        subprocess.run(["sh", "-c", "(read line; exit 0) <&0 &"], stdin=subprocess.DEVNULL)

mine = subprocess.Popen(["sh", "-c", "exit 7"], stdin=subprocess.DEVNULL)
tell("init", pid_here=os.getpid(), graceful=PreForkingTCPServer.graceful_timeout)
"""

ENDS = (signal.SIGTERM, signal.SIGQUIT, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2)


@pytest.mark.quick_faults
@pytest.mark.parametrize("bases", ["PreForkingTCPServer", "PreForkingMixIn, ThreadingTCPServer"])
@pytest.mark.parametrize("word", ["fork", "multiprocessing"])
def test_a_handler_forks(word: str, bases: str, tmp_path: Path) -> None:
    """A process that a handler forks, and that serves there, changes no count of ours, and holds no listener."""
    with Service(tmp_path, script(FORKING, bases=bases, max_children=2)) as service:
        service.wait_ready(2)
        for _ in range(5):
            assert ask(service.address, f"{word}\n".encode())
            assert service.wait("forked", after=service.mark() - 1)["listens"] is False
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
