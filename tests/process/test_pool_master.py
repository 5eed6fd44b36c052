"""The master seen from its program: signals, titles, garbage collector, service_actions, threads, the terminal."""

import os
import pty
import signal
import socketserver
import sys
import time
from pathlib import Path
from typing import Any

import psutil
import pytest

import prefork
from tests.support.clients.connections import ask
from tests.support.programs.service import HUNG, Service, script

OWN_HANDLER = """
class Hooks:
    def serve_forever(self, *args):
        signal.signal(signal.SIGTERM, lambda *args: (tell("mine"), self.shutdown()))
        super().serve_forever(*args)
"""
FORGETFUL = """
class Hooks(Told):
    def service_actions(self):
        tell("turn", zombies=0)

class Told:
    pass
"""
COUNTING_TURNS = """
class Hooks:
    def serve_forever(self):
        PreForkingTCPServer.serve_forever(self, 0.05)
    def service_actions(self):
        super().service_actions()
        tell("turn")
"""


def test_wrong_order_is_refused() -> None:
    """A class in which a server class hides the mix-in is refused where it is defined, with what to do."""
    with pytest.raises(TypeError, match="write the mix-in first"):

        class Wrong(prefork.TCPServer, prefork.PreForkingMixIn):
            pass

    with pytest.raises(TypeError, match="write the mix-in first"):

        class Wrong2(socketserver.TCPServer, prefork.PreForkingMixIn):  # type: ignore[misc]
            pass

    class Right(socketserver.ThreadingMixIn, prefork.PreForkingMixIn, prefork.TCPServer):
        pass


@pytest.mark.parametrize("mixin", [prefork.PreForkingMixIn, prefork.ForkingMixIn, prefork.ThreadingMixIn])
@pytest.mark.parametrize("base", [object, prefork.BaseServer, socketserver.BaseServer])
def test_hooks_before_the_mixin_hide_nothing(mixin: Any, base: type) -> None:
    """A class of hooks comes before the mix-in, also one that derives from BaseServer; a server class whose
    `serve_forever` comes first is refused, be it its own or that of BaseServer."""

    class Hooks(base):  # type: ignore[misc]
        def finish_request(self, request: Any, client_address: Any) -> None:
            raise AssertionError("only defined here")

    class Loop(base):  # type: ignore[misc]
        def serve_forever(self, poll_interval: float = 0.5) -> None:
            raise AssertionError("only defined here")

    below = socketserver.TCPServer if base is socketserver.BaseServer else prefork.TCPServer
    server: Any = type("Server", (Hooks, mixin, below), {})
    assert server.finish_request is Hooks.finish_request
    assert server.serve_forever is mixin.serve_forever
    if base is object:  # it extends what comes next
        looping: Any = type("Server", (Loop, mixin, below), {})
        assert looping.serve_forever is Loop.serve_forever
        return
    with pytest.raises(TypeError, match=r"Loop comes before the mix-in and would hide it; write the mix-in first"):
        type("Server", (Loop, mixin, below), {})
    with pytest.raises(TypeError, match=rf"{below.__name__} comes before the mix-in"):
        type("Server", (below, mixin), {})


SERVERS = [
    socketserver.BaseServer, socketserver.TCPServer, socketserver.UDPServer, socketserver.ThreadingTCPServer,
    prefork.TCPServer, prefork.UnixStreamServer, prefork.UnixDatagramServer,
]  # fmt: skip


@pytest.mark.parametrize("mixin", [prefork.PreForkingMixIn, prefork.ForkingMixIn, prefork.ThreadingMixIn])
@pytest.mark.parametrize("server", SERVERS)
@pytest.mark.parametrize("shape", ["alone", "derived", "behind hooks", "behind a class", "behind a mix-in"])
def test_a_server_class_before_the_mixin(shape: str, server: Any, mixin: Any) -> None:
    """The class that comes before the mix-in is named, whatever stands before it."""
    hooks = type("Hooks", (socketserver.BaseServer,), {"verify_request": lambda self, *args: True})
    other = prefork.ForkingMixIn if mixin is not prefork.ForkingMixIn else prefork.PreForkingMixIn
    mine = type("Mine", (server,), {"process_request": lambda self, *args: None})
    bases, named = {
        "alone": ((server, mixin), server.__name__),
        "derived": ((type("Mine", (mine,), {"timeout": 1}), mixin), "Mine"),
        "behind hooks": ((hooks, server, mixin), "Hooks|" + server.__name__),
        "behind a class": ((type("Names", (), {"timeout": 1}), server, mixin), server.__name__),
        "behind a mix-in": ((other, server, mixin), server.__name__),
    }[shape]
    if server is socketserver.BaseServer and shape in ("derived", "behind hooks"):
        accepted: Any = type("Server", bases, {})
        assert accepted.service_actions is prefork.SupervisedMixIn.service_actions
        return
    with pytest.raises(TypeError, match=f"^could not define Server: ({named}) comes before the mix-in and would hide"):
        type("Server", bases, {})


@pytest.mark.parametrize("base", [prefork.ForkingTCPServer, prefork.ThreadingTCPServer, prefork.PreForkingTCPServer])
def test_classes_over_one_with_hooks(base: Any) -> None:
    """A class with hooks first can be derived from, also by one that extends ours, and by the command line."""
    hooks = type("Hooks", (socketserver.BaseServer,), {"verify_request": lambda self, *args: True})
    first: Any = type("First", (hooks, base), {})

    class Second(first):  # type: ignore[misc]
        def server_close(self) -> None:
            super().server_close()

    assert first.server_close is base.server_close
    assert not issubclass(first, prefork.PreForkingMixIn) or Second.serve_forever is base.serve_forever
    if not issubclass(first, prefork.PreForkingMixIn):
        pool: Any = type("First", (prefork.PreForkingMixIn, Second), {})
        assert pool.serve_forever is prefork.PreForkingMixIn.serve_forever
    with pytest.raises(TypeError, match=r"^could not define Extending: Hooks comes before the mix-in"):

        class Extending(hooks, base):  # type: ignore[misc, valid-type]
            def server_close(self) -> None:
                super().server_close()


@pytest.mark.parametrize("freeze", [True, False])
def test_everything_is_put_back(freeze: bool, tmp_path: Path) -> None:
    """After serve_forever() signals, wake-up fd, mask, title, collector and listener are what they were before."""
    argv = ["-m", "tests.process.programs.put_back", "freeze" if freeze else "thaw"]
    with Service(tmp_path, argv=argv) as service:
        assert int(ask(service.address, b"pid\n"))
        assert psutil.Process(service.pid).cmdline()[0].startswith("prefork: master __main__:S")
        service.signal(signal.SIGTERM)
        assert service.wait_exit() == 0
        before, after = service.wait("before"), service.wait("after")
        frozen = [fact["count"] for fact in service.wait_each("frozen", 2)]
        assert (service.wait("in_worker")["frozen"] > frozen[0] + 1000) is freeze
        assert frozen[1] <= frozen[0]
    for fact in (before, after):
        del fact["at"], fact["event"]
    assert before == after


def test_titles(tmp_path: Path) -> None:
    """Workers are numbered from 1; one that is started instead of another takes its number."""
    with Service(tmp_path, script(max_children=3)) as service:
        service.wait_ready(3)
        titles = {pid: psutil.Process(pid).cmdline()[0] for pid in service.workers()}
        assert sorted(titles.values()) == [f"prefork: worker {number}" for number in (1, 2, 3)]
        with service.hold() as held:
            service.signal(signal.SIGQUIT, next(pid for pid in titles if pid != held.pid))
            service.wait_ready(3, stopped=1)
        again = {psutil.Process(pid).cmdline()[0] for pid in service.workers()}
    assert again == set(titles.values())


def test_signals_that_the_program_handles(tmp_path: Path) -> None:
    """A signal with a handler of the program's stays the program's; shutdown() from it drains; the log says so once."""
    with Service(tmp_path, script(OWN_HANDLER, max_children=1)) as service:
        service.wait_ready(1)
        service.signal(signal.SIGTERM)
        service.wait("mine")
        assert service.wait_exit() == 0
        assert service.wait("ended")["exits"] == {"drained": 1}
    assert service.log.count("the program handles SIGTERM itself") == 1


def test_serving_in_a_thread(tmp_path: Path) -> None:
    """serve_forever() in a thread takes no signals, supervises all the same, and shutdown() ends it and waits."""
    with Service(tmp_path, argv=["-m", "tests.process.programs.in_a_thread"]) as service:
        service.wait_ready(2)
        service.signal(signal.SIGKILL, service.workers()[0])
        service.wait_ready(2, killed=1)
        assert int(ask(service.address, b"pid\n"))
        service.signal(signal.SIGUSR1)
        assert service.wait("shut_down")["drained"] == {"killed": 1, "drained": 2}
        assert service.wait_exit() == 0


@pytest.mark.timed
def test_overridden_service_actions(tmp_path: Path) -> None:
    """An override is called in the master, at least every poll_interval."""
    with Service(tmp_path, script(COUNTING_TURNS, max_children=1)) as service:
        turns = service.wait_each("turn", 20)
        assert {fact["pid"] for fact in turns} == {service.pid}
    assert 8 * 0.05 < turns[-1]["at"] - turns[4]["at"] < 16 * 0.05 + 0.5


def test_forgotten_super_in_service_actions(tmp_path: Path) -> None:
    """An override that forgets super() leaks no zombie: the dead are reaped and replaced."""
    with Service(tmp_path, script(FORGETFUL, max_children=2)) as service:
        first = {fact["pid"] for fact in service.wait_each("worker_started", 2)}
        for pid in first:
            service.signal(signal.SIGKILL, pid)
        second = {fact["pid"] for fact in service.wait_each("worker_started", 4)[2:]}
        service.wait("turn", after=service.mark())
        assert set(service.workers()) == second
        assert {process.pid for process in psutil.Process(service.pid).children()} == second


@pytest.mark.timed
def test_ctrl_c_in_a_terminal(tmp_path: Path) -> None:
    """Ctrl-C reaches the whole foreground group: it ends within a second, with 0, and no traceback on the screen."""
    program = tmp_path / "program.py"
    program.write_text(script(max_children=3))
    pid, terminal = pty.fork()
    if pid == 0:
        os.chdir(tmp_path)
        os.environ["PYTHONPATH"] = str(Path(__file__).parents[2])
        os.execv(sys.executable, [sys.executable, str(program)])
    screen = b""
    while screen.count(b": ready") < 3:
        screen += os.read(terminal, 4096)
    pressed = time.monotonic()
    os.write(terminal, b"\x03")
    try:
        while data := os.read(terminal, 4096):
            screen += data
    except OSError:  # EIO: nobody has the terminal any more
        pass
    took = time.monotonic() - pressed
    _, status = os.waitpid(pid, 0)
    os.close(terminal)
    assert os.waitstatus_to_exitcode(status) == 0, screen.decode()
    assert b"Traceback" not in screen
    assert took < min(1.0, HUNG)


AGAIN = """
if __name__ == "__main__":
    server = type("S", (Told, PreForkingTCPServer), {"max_children": 2})(("127.0.0.1", 0), Who)
    with server:
        for _ in range(2):
            server.serve_forever()
    sys.exit(0)
"""


def test_serving_again(tmp_path: Path) -> None:
    """After shutdown serve_forever() may be called again: same address, and the books go on."""
    with Service(tmp_path, script(AGAIN)) as service:
        service.wait_ready(2)
        assert int(ask(service.address, b"pid\n"))
        service.signal(signal.SIGTERM)
        service.wait("ended")
        service.wait_each("listening", 2)
        service.wait_pool(lambda pool: pool["ready"] == 2 and pool["spawned"] == 4)
        assert int(ask(service.address, b"pid\n"))
        service.signal(signal.SIGTERM)
        assert service.wait_exit() == 0
        assert service.wait_each("ended", 2)[1]["completed"] == 2


@pytest.mark.timed
def test_stop_wins_over_drain(tmp_path: Path) -> None:
    """INT during a drain that waits for a request ends it now; the request is counted as lost."""
    with Service(tmp_path, script(max_children=2)) as service:
        service.wait_ready(2)
        with service.hold() as held:
            service.signal(signal.SIGTERM)
            service.wait_pool(lambda pool: pool["draining"] == 1 and pool["exits"].get("drained"))
            sent_at = service.signal(signal.SIGINT)
            assert service.wait_exit() == 0
            held.wait_end()
        ended = service.wait("ended")
    assert ended["exits"] == {"drained": 1, "stopped": 1}
    assert ended["lost"] == 1
    assert ended["at"] - sent_at < 1.5
