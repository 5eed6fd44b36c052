"""kill -9 of the process that serves: no orphan serves on or holds the port, whatever the workers were doing."""

import contextlib
import os
import select
import signal
import textwrap
import time
from pathlib import Path
from typing import Any

import psutil
import pytest

from prefork import BaseRequestHandler, BindError, PreForkingTCPServer, PreForkingUDPServer, PreForkingUnixStreamServer
from tests.support.clients.connections import Connection
from tests.support.programs.releases import Released
from tests.support.programs.service import HUNG, Service, Watch, readable, script
from tests.support.tools.figures import figure, ms

KINDS: dict[str, tuple[Any, Any]] = {
    "tcp": (PreForkingTCPServer, ("127.0.0.1", 0)),
    "unix": (PreForkingUnixStreamServer, "s"),
    "udp": (PreForkingUDPServer, ("127.0.0.1", 0)),
}
REUSABLE = 0.5  # seconds after the kill

FORKING = """
class Handler(Who):
    def do_fork(self):
        if (pid := os.fork()) == 0:
            signal.pause()
        return pid
"""
CALCULATING = """
import hashlib

class Handler(Who):
    def do_calculate(self, rounds):
        tell("calculating")
        hashlib.pbkdf2_hmac("sha256", b"", b"", int(rounds))
"""
FORKED_BY_MASTER = "from tests.faults.programs.forking_master import Hooks"


def reusable_at(address: Any, kind: Any = None) -> float:
    """When a server of ours can be bound there. The kernel tells nobody that a port is free, so this asks again."""
    kind = kind or (PreForkingUnixStreamServer if isinstance(address, str) else PreForkingTCPServer)
    deadline = time.monotonic() + HUNG
    while time.monotonic() < deadline:
        with contextlib.suppress(BindError), kind(address, BaseRequestHandler):
            return time.monotonic()
        select.select([], [], [], 0.002)
    raise AssertionError(f"hung: {address} is still taken")


def killed_beside(service: Service, held: Connection, worker: Watch) -> tuple[float, float]:
    """Kill the master while this worker computes for ever. The seconds until the address is reusable, and until the
    worker is gone."""
    held.send(b"spin")
    service.wait("spinning")
    killed_at = service.signal(signal.SIGKILL)
    reusable = reusable_at(service.address) - killed_at
    return reusable, worker.wait_dead() - killed_at


def paths(folder: Path, *names: str) -> list[str]:
    return [os.path.relpath(folder / name) for name in names]


def pool(tmp_path: Path, listening: str, definitions: str = "", **settings: Any) -> Service:
    settings = {"max_children": 2, "graceful_timeout": 5} | settings
    bases, address = KINDS[listening]
    return Service(tmp_path, script(definitions, bases=bases.__name__, address=address, **settings))


@pytest.mark.quick_faults
@pytest.mark.parametrize("listening", ["tcp", "unix", "udp"])
def test_idle(listening: str, tmp_path: Path) -> None:
    """Idle workers are gone and the port, or path, is reusable within half a second."""
    with pool(tmp_path, listening) as service:
        service.wait_ready(2)
        killed_at = service.signal(signal.SIGKILL)
        reusable = reusable_at(service.address, KINDS[listening][0]) - killed_at
        assert service.wait_exit() == -signal.SIGKILL
        service.wait_gone()
        gone = time.monotonic() - killed_at
    figure(f"{listening}, idle: reusable after", ms(reusable), ms(REUSABLE))
    figure(f"{listening}, idle: all gone after", ms(gone), ms(REUSABLE))
    assert reusable < REUSABLE
    assert gone < REUSABLE


@pytest.mark.parametrize("listening", ["tcp", "unix"])
def test_waiting_for_its_client(listening: str, tmp_path: Path) -> None:
    """A worker with a request in hand frees the port, and those of metrics and control, at once, finishes that request,
    and leaves."""
    with pool(tmp_path, listening, metrics_address="m", control_socket="c") as service:
        service.wait_ready(2)
        with service.hold() as held:
            killed_at = service.signal(signal.SIGKILL)
            reusable = max(reusable_at(each) for each in (service.address, *paths(tmp_path, "m", "c"))) - killed_at
            assert int(held.ask(b"pid")) == held.pid
        service.wait_exit()
        service.wait_gone()
    figure(f"{listening}, request in hand: reusable after", ms(reusable), ms(REUSABLE))
    assert reusable < REUSABLE


@pytest.mark.quick_faults
@pytest.mark.parametrize("bases", ["PreForkingTCPServer", "PreForkingMixIn, ThreadingTCPServer"])
def test_busy_in_python(bases: str, tmp_path: Path) -> None:
    """A handler that computes for ever neither keeps the port nor outlives graceful_timeout."""
    with Service(tmp_path, script(bases=bases, max_children=2, graceful_timeout=1)) as service:
        service.wait_ready(2)
        with service.hold() as held, Watch(held.pid) as worker:
            reusable, gone = killed_beside(service, held, worker)
        service.wait_exit()
        service.wait_gone()
    figure(f"{bases}, busy in Python: reusable after", ms(reusable), ms(REUSABLE))
    figure(f"{bases}, busy in Python: gone after", ms(gone), "graceful_timeout 1 s + 0.6 s")
    assert reusable < REUSABLE
    assert 0.9 < gone < 1.6


def test_busy_in_one_long_c_call(tmp_path: Path) -> None:
    """A worker inside one C call frees the port when that returns, and no later; the others at once."""
    import hashlib

    began = time.monotonic()
    hashlib.pbkdf2_hmac("sha256", b"", b"", 100_000)
    rounds = int(100_000 * 1.0 / (time.monotonic() - began))
    with pool(tmp_path, "tcp", CALCULATING) as service:
        service.wait_ready(2)
        with service.hold() as held, Watch(*(set(service.workers()) - {held.pid})) as others:
            held.send(b"calculate %d" % rounds)
            service.wait("calculating")
            killed_at = service.signal(signal.SIGKILL)
            others_gone = others.wait_dead() - killed_at
            assert int(held.answer()) == held.pid
            returned_at = time.monotonic()
            reusable_at_ = reusable_at(service.address)
        service.wait_exit()
        service.wait_gone()
    figure("busy in one C call: the others gone after", ms(others_gone), ms(REUSABLE))
    figure("busy in one C call: it returned after", ms(returned_at - killed_at))
    figure("busy in one C call: reusable after its return", ms(reusable_at_ - returned_at), ms(REUSABLE))
    assert others_gone < REUSABLE
    assert reusable_at_ - returned_at < REUSABLE


@pytest.mark.parametrize("bases", ["PreForkingTCPServer", "PreForkingMixIn, ThreadingTCPServer"])
def test_child_that_a_handler_forked(bases: str, tmp_path: Path) -> None:
    """A process that user code forked in a worker outlives us, and holds neither the port nor the worker back."""
    with Service(tmp_path, script(FORKING, bases=bases, max_children=2)) as service:
        service.wait_ready(2)
        with service.connect() as connection:
            stranger = int(connection.ask(b"fork"))
        with Watch(stranger) as watch, Watch(*service.workers()) as workers:
            killed_at = service.signal(signal.SIGKILL)
            gone = workers.wait_dead() - killed_at
            reusable = reusable_at(service.address) - killed_at
            assert watch.alive() == [stranger]
            service.signal(signal.SIGTERM, stranger)
            watch.wait_dead()
        service.wait_exit()
        service.wait_gone()
    figure(f"{bases}, a handler's child lives: reusable after", ms(reusable), ms(REUSABLE))
    assert gone < REUSABLE
    assert reusable < REUSABLE


def test_child_that_the_master_s_user_code_forked(tmp_path: Path) -> None:
    """A process that user code forked in the master does not hold the port, and TERM ends it."""
    with pool(tmp_path, "tcp", FORKED_BY_MASTER) as service:
        service.wait_ready(2)
        stranger = service.wait("stranger")["stranger"]
        with Watch(stranger) as watch:
            killed_at = service.signal(signal.SIGKILL)
            reusable = reusable_at(service.address) - killed_at
            assert watch.alive() == [stranger]
            service.signal(signal.SIGTERM, stranger)
            watch.wait_dead()
        service.wait_exit()
        service.wait_gone()
    figure("the master's own child lives: reusable after", ms(reusable), ms(REUSABLE))
    assert reusable < REUSABLE


@pytest.mark.parametrize("delay_ms", range(0, 26, 5))
def test_killed_while_workers_start(delay_ms: int, tmp_path: Path) -> None:
    """The master killed 0 to 25 ms after its first fork leaves no worker, READY or not."""
    at_fork = 'os.register_at_fork(after_in_child=lambda: tell("forked"))'
    with pool(tmp_path, "tcp", at_fork, max_children=4) as service:
        service.wait("forked")
        time.sleep(delay_ms / 1000)
        killed_at = service.signal(signal.SIGKILL)
        service.wait_exit()
        service.wait_gone()
        gone = time.monotonic() - killed_at
    figure(f"killed {delay_ms} ms after the first fork: all gone after", ms(gone), ms(REUSABLE))
    assert gone < REUSABLE


def test_forking_server_alone(tmp_path: Path) -> None:
    """A plain ForkingTCPServer: the child finishes its request and does not hold the port meanwhile."""
    with Service(tmp_path, script(bases="ForkingTCPServer", allow_reuse_address=True)) as service:
        with service.hold() as held:
            killed_at = service.signal(signal.SIGKILL)
            service.wait_exit()
            reusable = reusable_at(service.address) - killed_at
            assert int(held.ask(b"pid")) == held.pid
        service.wait_gone()
    figure("ForkingTCPServer, request in hand: reusable after", ms(reusable), ms(REUSABLE))
    assert reusable < REUSABLE


GIVES_UP_ROOT = """
class Hooks:
    def worker_started(self):
        super().worker_started()
        os.setgroups([])
        os.setgid(65534)
        os.setuid(65534)
"""


@pytest.mark.skipif(os.getuid() != 0, reason="only root can give up root")
@pytest.mark.parametrize("how", ["worker_started", "user"])
def test_workers_that_gave_up_root(how: str, tmp_path: Path) -> None:
    """A worker that changed its user, by the setting or in worker_started(), which clears PDEATHSIG, is told all the
    same: busy in Python, it frees the port at once and goes at graceful_timeout."""
    definitions, ids = (GIVES_UP_ROOT, {}) if how == "worker_started" else ("", {"user": "65534", "group": "65534"})
    with pool(tmp_path, "tcp", definitions, max_children=1, graceful_timeout=1, **ids) as service:
        service.wait_ready(1)
        with service.hold() as held, Watch(held.pid) as worker:
            assert psutil.Process(held.pid).uids().effective == 65534
            reusable, gone = killed_beside(service, held, worker)
        service.wait_exit()
        service.wait_gone()
    figure("root given up, busy in Python: reusable after", ms(reusable), ms(REUSABLE))
    figure("root given up, busy in Python: gone after", ms(gone), "graceful_timeout 1 s + 0.6 s")
    assert reusable < REUSABLE
    assert 0.9 < gone < 1.6


TELLS_AND_HANGS = """\
gate = open("gate", "w")
print("x", file=gate, flush=True)
while True: __import__("time").sleep(60)
"""
REHEARSED = {
    "imports": TELLS_AND_HANGS,
    "boots its worker": "class Hooks:\n    def worker_started(self):\n" + textwrap.indent(TELLS_AND_HANGS, " " * 8),
}


@pytest.mark.parametrize("what", REHEARSED)
def test_rehearsal(what: str, tmp_path: Path) -> None:
    """The rehearsal of a reload, and its worker, neither outlive the master nor hold its port."""
    os.mkfifo(tmp_path / "gate")
    with Released(tmp_path, max_children=1, graceful_timeout=1) as service, contextlib.ExitStack() as stack:
        service.wait_ready(1)
        address = service.address
        service.release(REHEARSED[what])
        gate = stack.enter_context(readable(os.open(tmp_path / "gate", os.O_RDONLY | os.O_NONBLOCK)))
        service.signal(signal.SIGHUP)
        assert select.select([gate], [], [], HUNG)[0], "hung: it is not rehearsed"
        assert os.read(gate, 100) == b"x\n"
        killed_at = service.signal(signal.SIGKILL)
        reusable = reusable_at(address) - killed_at
        assert select.select([gate], [], [], HUNG)[0], "hung: the rehearsal does not end"
        gone = time.monotonic() - killed_at
        service.wait_exit()
        service.wait_gone()
    figure(f"a rehearsal that {what}: reusable after", ms(reusable), ms(REUSABLE))
    figure(f"a rehearsal that {what}: gone after", ms(gone), "graceful_timeout 1 s + 0.6 s")
    assert reusable < REUSABLE
    assert gone < 1.6
