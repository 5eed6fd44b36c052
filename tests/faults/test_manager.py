"""What a service manager relies on: the order of the notices, the watchdog, and a queue that survives the master."""

import os
import signal
import socket
from collections.abc import Sequence
from pathlib import Path
from time import monotonic

import pytest

from tests.support.clients.connections import ask_datagram, connect
from tests.support.hosts.manager import Manager, passing
from tests.support.programs.releases import AFTERWARDS, Released, numbered
from tests.support.programs.service import HUNG, ROOT, Service, script
from tests.support.tools.figures import figure

WAITING = 20  # connections
WATCHDOG_S = 0.4

HANGS = "from tests.faults.programs.hanging import Hooks"


@pytest.mark.quick_faults
@pytest.mark.parametrize("abstract", [False, True])
def test_order_of_notices(abstract: bool, tmp_path: Path) -> None:
    """READY, RELOADING with the time, READY, STOPPING: each once and in this order, from the same process over a
    reload; a reload that fails is over as well."""
    with Manager(tmp_path, abstract=abstract) as manager:
        with Released(tmp_path, max_children=2, env=manager.env()) as service:
            service.expect("(?s)reload failed: the rehearsal .*RuntimeError: broken")
            number = manager.wait("READY=1")
            service.release(numbered(2))
            before = monotonic()
            service.signal(signal.SIGHUP)
            number = manager.wait("RELOADING=1", after=number)
            assert monotonic_usec(manager.messages[number]) >= before - 1e-6
            number = manager.wait("READY=1", after=number)
            service.wait_reloads(ok=1)
            service.release("raise RuntimeError('broken')")
            service.signal(signal.SIGHUP)
            number = manager.wait("RELOADING=1", after=number)
            number = manager.wait("READY=1", after=number)
            service.signal(signal.SIGTERM)
            assert service.wait_exit() == 0
            states = manager.states
    figure("notices", " ".join(states))
    assert states == ["READY=1", "RELOADING=1", "READY=1", "RELOADING=1", "READY=1", "STOPPING=1"]


def test_degraded_is_told(tmp_path: Path) -> None:
    """A program that fails after the exec: the reload is over, the service is READY, and its status says degraded; its
    listener is kept until it ends."""
    with Manager(tmp_path) as manager:
        with Released(tmp_path, max_children=1, env=manager.env()) as service:
            service.expect("RuntimeError: afterwards", "reload failed: the program failed: RuntimeError: afterwards")
            number = manager.wait("READY=1")
            service.release(numbered(2, AFTERWARDS + "raise RuntimeError('afterwards')"))
            service.signal(signal.SIGHUP)
            number = manager.wait("READY=1", after=manager.wait("RELOADING=1", after=number))
            assert "STATUS=degraded: the program failed: RuntimeError: afterwards" in manager.messages[number]
            assert service.answering() == "r1"
            assert len(manager.kept) == 1
            service.signal(signal.SIGTERM)
            assert service.wait_exit() == 0
            assert manager.states[-1] == "STOPPING=1"
            assert manager.kept == {}  # taken back by whoever looks after the old generation


def monotonic_usec(message: str) -> float:
    """The time that a message gives, in seconds."""
    return int(message.partition("MONOTONIC_USEC=")[2].partition("\n")[0]) / 1e6


def test_watchdog_stops_with_the_loop(tmp_path: Path) -> None:
    """WATCHDOG=1 comes at half of WATCHDOG_USEC, and not at all while the master's loop is stuck."""
    os.mkfifo(tmp_path / "gate")
    with Manager(tmp_path) as manager:
        env = manager.env(watchdog_s=WATCHDOG_S)
        with Service(tmp_path, script(HANGS, max_children=1), env=env) as service:
            number = manager.wait("READY=1")
            for _ in range(6):
                number = manager.wait("WATCHDOG=1", after=number + 1)
            fed = [at for at, text in zip(manager.times, manager.messages, strict=True) if text == "WATCHDOG=1"]
            (tmp_path / "hang").touch()
            service.wait("hanging")
            before = manager.look()
            manager.nothing_for(3 * WATCHDOG_S)
            assert manager.look() == before
            with (tmp_path / "gate").open("w"):
                pass
            manager.wait("WATCHDOG=1", after=before)
    figure("watchdog of 0.4 s: fed every", f"{(fed[-1] - fed[0]) / (len(fed) - 1) * 1000:.0f} ms", "200 ms")
    assert (fed[-1] - fed[0]) / (len(fed) - 1) >= WATCHDOG_S / 2 * 0.9


@pytest.mark.quick_faults
@pytest.mark.parametrize("bases", ["PreForkingTCPServer", "PreForkingUnixStreamServer"])
def test_crashed_master_with_a_kept_listener(bases: str, tmp_path: Path) -> None:
    """Who waits in the queue when the service is killed is served by the next master, if the manager keeps the
    listener; without it nobody is."""
    address = "s" if "Unix" in bases else ("127.0.0.1", 0)
    source = script(bases=bases, address=address, max_children=1)
    for keeps in (True, False):
        folder = tmp_path / str(keeps)
        folder.mkdir()
        with Manager(folder) as manager:
            answered = crash(folder, source, manager, keeps=keeps)
        figure(f"{bases}, master killed with {WAITING} in the queue, kept={keeps}: answered", answered,
               WAITING if keeps else 0)  # fmt: skip
        assert answered == (WAITING if keeps else 0)


def crash(folder: Path, source: str, manager: Manager, *, keeps: bool) -> int:
    """Kill a master whose only worker is busy, with connections in the queue; how many the next one answers."""
    with Service(folder, source, env=manager.env(), accounts=False) as first:
        first.wait_ready(1)
        manager.wait("READY=1")
        (name,) = manager.kept
        held, address = first.hold(), first.address
        waiting = [first.connect() for _ in range(WAITING)]
        for connection in waiting:
            connection.send(b"pid")
            connection.sock.shutdown(socket.SHUT_WR)
        if not keeps:
            manager.drop(name)
        first.signal(signal.SIGKILL)
        first.signal(signal.SIGKILL, held.pid)  # as systemd does with what is left of the unit
        held.close()
        first.wait_gone()
        first.process.wait(HUNG)
    kept = manager.kept.get(name)
    before, fds = (passing((name, kept)), [kept]) if kept is not None else ([], [])
    with Service(folder, source, env=manager.env(), before=before, fds=fds) as second:
        second.wait_ready(1)
        assert second.address == address or not keeps
        answered = 0
        for connection in waiting:
            answer = connection.answer_or_end()  # reset with the listener
            assert answer is None or int(answer) in second.workers()
            answered += answer is not None
            connection.close()
    assert not (folder / "s").exists()  # the path of a Unix listener that was kept is as much its own to remove
    return answered


def test_crashed_master_with_several_kept_listeners(tmp_path: Path) -> None:
    """Each is kept by its own name, and the next master has each again, with who waits there; at a good end the manager
    is to keep none."""
    argv = ["-m", "tests.process.programs.several", "0", "max_children=1"]

    def service(before: Sequence[str] = (), fds: Sequence[int] = ()) -> Service:
        env = {**manager.env(), "PYTHONPATH": str(ROOT)}
        return Service(tmp_path, argv=argv, env=env, accounts=False, before=before, fds=fds)

    with Manager(tmp_path) as manager:
        with service() as first:
            first.wait_ready(1)
            manager.wait("READY=1")
            assert len(manager.kept) == 3
            path, udp = os.path.relpath(tmp_path / "s"), tuple(first.wait("also")["address"])
            held, address = first.hold(), first.address
            waiting = [connect(where) for where in (address, path)]
            for connection in waiting:
                connection.send(b"pid")
                connection.sock.shutdown(socket.SHUT_WR)
            first.signal(signal.SIGKILL)
            first.signal(signal.SIGKILL, held.pid)
            held.close()
            first.wait_gone()
            first.process.wait(HUNG)
        with service(passing(*manager.kept.items()), list(manager.kept.values())) as second:
            second.wait_ready(1)
            assert (second.address, tuple(second.wait("also")["address"])) == (address, udp)
            for connection in waiting:
                assert int(connection.answer()) in second.workers()
                connection.close()
            assert ask_datagram(udp, b"x") == b"X"
        manager.look()
        assert manager.kept == {}
    assert not (tmp_path / "s").exists()
