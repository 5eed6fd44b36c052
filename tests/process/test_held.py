"""The holder and the queues of kept connections in a service: who has which, over reloads of any kind, and at the end.

What becomes of the connections is in test_kept_connections.py, and the holder as a process in test_holder.py.
"""

import contextlib
import os
import signal
import socket
from collections.abc import Iterator
from pathlib import Path
from time import monotonic, sleep
from typing import Any

import psutil
import pytest

from tests.support.hosts.users import dropped, seen
from tests.support.programs.releases import AFTERWARDS, Released
from tests.support.programs.service import HUNG, Service, Watch, script

pytestmark = pytest.mark.once  # nothing of it is the interpreter's

WORKERS = 2
ANY = "with open('release.py') as file: exec(compile(file.read(), 'release.py', 'exec'))\n"
KEPT = "from tests.process.programs.held import Handler\n"
PLAIN = "Handler = Who\n"
FORKS = "from tests.process.programs.held import Forking as Hooks\n"


class Client:
    """Counts the bytes that it has sent on a connection, and is told as many."""

    def __init__(self, address: object) -> None:
        self.sock = socket.socket(socket.AF_INET if isinstance(address, tuple) else socket.AF_UNIX)
        self.sock.settimeout(HUNG)
        self.sock.connect(address)  # type: ignore[arg-type]
        self._file = self.sock.makefile("rb")
        self.sent = 0

    def ask(self) -> None:
        self.sock.sendall(b"12345\n")
        self.sent += 6
        assert int(self._file.readline()) == self.sent

    def ended(self) -> bool:
        """Wait for the end of the connection."""
        return self.sock.recv(1) == b""

    def close(self) -> None:
        self._file.close()
        self.sock.close()


@contextlib.contextmanager
def clients(service: Service, count: int) -> Iterator[list[Client]]:
    """So many clients, each of which has asked once."""
    found = [Client(service.address) for _ in range(count)]
    try:
        for each in found:
            each.ask()
        yield found
    finally:
        for each in found:
            each.close()


def titled(service: Service, title: str) -> list[int]:
    found = []
    for child in psutil.Process(service.pid).children():
        with contextlib.suppress(psutil.Error, IndexError):
            if child.cmdline()[0].startswith(f"prefork: {title}"):
                found.append(child.pid)
    return found


def one_holder(service: Service, *, but: int = 0) -> int:
    """The pid of the only holder, as soon as that is another one."""
    until = monotonic() + HUNG
    while len(found := titled(service, "holder")) != 1 or but in found:
        assert monotonic() < until, f"hung: the holders are {found}"
        sleep(0.005)
    return found[0]


def wait_held(service: Service, **counts: int) -> dict[str, int]:
    """The statistics of connections, once these are so."""
    until = monotonic() + HUNG
    while True:
        statistics = service.statistics()
        found = {**statistics["connections"], **statistics["connections_closed"]}
        if all(found.get(name, 0) == count for name, count in counts.items()):
            return found
        assert monotonic() < until, f"hung: {found}, not {counts}"


def queue_ends(pid: int) -> set[str]:
    """The sockets of the queues' kind that a process has open, by inode."""
    kind = {}
    for line in Path(f"/proc/{pid}/net/unix").read_bytes().splitlines()[1:]:  # others have names of any bytes there
        if len(fields := line.split()) > 6:
            kind[f"socket:[{fields[6].decode(errors='replace')}]"] = fields[4]
    links = set()
    for entry in Path(f"/proc/{pid}/fd").iterdir():
        with contextlib.suppress(OSError):
            links.add(os.readlink(entry))
    return {link for link in links if kind.get(link) == b"0005"}


def wait_ends(pid: int, ends: set[str], count: int) -> None:
    """Until a process has so many of these: after the fork it has all that its parent has."""
    until = monotonic() + HUNG
    while len(found := queue_ends(pid) & ends) != count:
        assert monotonic() < until, f"hung: it has {found}"
        sleep(0.005)


def test_who_has_which_ends(tmp_path: Path) -> None:
    """A worker has those by which it parks and takes, the holder the other two and the one by which it parks for its
    successor; nobody else has any, nor a process that the program forks."""
    settings: dict[str, Any] = {"metrics_address": ("127.0.0.1", 0), "max_children": WORKERS}
    with Service(tmp_path, script(KEPT + FORKS, **settings)) as service:
        service.wait_ready(WORKERS)
        forked = service.wait("forked")["child"]
        with clients(service, 1):
            wait_held(service, held=1)  # the holder runs, and has closed what it has not
            # The exporter's and the master's ends of what the exporter is told by are none of them.
            ends = queue_ends(service.pid) & queue_ends(titled(service, "worker")[0])
            ends |= queue_ends(one_holder(service))
            assert len(ends) == 4
            for worker in titled(service, "worker"):
                wait_ends(worker, ends, 2)
            wait_ends(one_holder(service), ends, 3)
            holder = psutil.Process(one_holder(service))
            inet = getattr(holder, "net_connections", None) or holder.connections  # before psutil 6
            assert not inet("inet")[1:]  # but the one that it has
            for other in (*titled(service, "exporter"), forked):
                wait_ends(other, ends, 0)
        os.kill(forked, signal.SIGKILL)


def test_no_queues_where_nothing_is_kept(tmp_path: Path) -> None:
    """No server keeps connections: there is no holder, and no descriptor of a queue."""
    with Service(tmp_path, script(max_children=1)) as service:
        service.wait_ready(1)
        assert queue_ends(service.pid) == set()
        assert titled(service, "holder") == []


def test_over_reloads(tmp_path: Path) -> None:
    """The connections that are idle are there after each of several reloads, each with a holder of its own."""
    with Released(tmp_path, KEPT, script(ANY, max_children=WORKERS)) as service:
        service.wait_ready(WORKERS)
        with clients(service, 30) as all_of_them:
            for number in range(1, 4):
                wait_held(service, held=30, lingering=0)
                before = one_holder(service)
                service.signal(signal.SIGHUP)
                service.wait_reloads(ok=number)
                one_holder(service, but=before)
                for client in all_of_them:
                    client.ask()
            found = wait_held(service, held=30, lingering=0)
            assert found.get("lost", 0) == 0
        wait_held(service, held=0, client=30)
        statistics = service.settled()
    assert (statistics["accepted"], statistics["completed"]) == (120, 120)
    assert (statistics["connections_opened"], statistics["lost"]) == (30, 0)
    assert "was sent TERM" not in service.log


def test_a_reload_to_a_program_that_keeps_none(tmp_path: Path) -> None:
    """Its connections are closed when the last worker that could serve them has left, and counted; the holder goes, and
    none is started. A program that keeps them again has a holder again."""
    with Released(tmp_path, KEPT, script(ANY, max_children=WORKERS)) as service:
        service.wait_ready(WORKERS)
        with clients(service, 10) as all_of_them:
            wait_held(service, held=10)
            with Watch(one_holder(service)) as holder:
                service.release(PLAIN)
                service.signal(signal.SIGHUP)
                holder.wait_dead()
            for client in all_of_them:
                assert client.ended()
            wait_held(service, held=0, queued=0, drained=10)
        service.wait_ready(WORKERS, replaced=WORKERS)
        with service.connect() as connection:
            assert connection.ask(b"pid").isdigit()
        assert titled(service, "holder") == []
        service.release(KEPT)
        service.signal(signal.SIGHUP)
        service.wait_ready(WORKERS, replaced=2 * WORKERS)
        with clients(service, 10):
            wait_held(service, held=10)
            assert one_holder(service)


def test_a_reload_to_a_program_that_begins_to_keep_them(tmp_path: Path) -> None:
    """The queues are made by the image that first keeps some."""
    with Released(tmp_path, PLAIN, script(ANY, max_children=WORKERS)) as service:
        service.wait_ready(WORKERS)
        service.release(KEPT)
        service.signal(signal.SIGHUP)
        service.wait_ready(WORKERS, replaced=WORKERS)
        with clients(service, 10) as all_of_them:
            wait_held(service, held=10)
            service.signal(signal.SIGHUP)
            service.wait_ready(WORKERS, replaced=2 * WORKERS)
            for client in all_of_them:
                client.ask()


CLOSES = "from tests.support.programs.served import FACTS; facts = int(os.environ[FACTS])\n    "
CLOSES += "os.closerange(3, facts); os.closerange(facts + 1, 256)\n    "


@pytest.mark.parametrize("closes", ["", CLOSES], ids=["alone", "closing"])
def test_the_program_fails_after_the_exec(closes: str, tmp_path: Path) -> None:
    """The old workers and the old holder serve on, also where the program has closed what it has not opened; a holder
    that dies then has a successor; and the next reload has all that is idle."""
    with Released(tmp_path, KEPT, script(ANY, max_children=WORKERS)) as service:
        service.wait_ready(WORKERS)
        service.expect(r"Error", r"reload failed")  # its file may be among what it closes
        with clients(service, 10) as all_of_them:
            wait_held(service, held=10)
            before = one_holder(service)
            service.release(KEPT + AFTERWARDS + closes + "raise RuntimeError\n")
            service.signal(signal.SIGHUP)
            service.wait_degraded()
            for client in all_of_them:
                client.ask()
            assert one_holder(service) == before
            service.signal(signal.SIGTERM, before)
            one_holder(service, but=before)
            for client in all_of_them:
                client.ask()
            service.release(KEPT)
            service.signal(signal.SIGHUP)
            service.wait_ready(WORKERS, replaced=WORKERS)
            for client in all_of_them:
                client.ask()
            assert wait_held(service, held=10, lingering=0).get("lost", 0) == 0


@pytest.mark.once
@pytest.mark.skipif(os.getuid() != 0, reason="only root can change the user of a process")
def test_rights_after_the_program_failed(tmp_path: Path) -> None:
    """A holder, and an exporter, that a master without its program starts have given up what those before had."""
    rights: dict[str, Any] = {
        "user": "54321",
        "group": "54322",
        "no_new_privs": True,
        "metrics_address": ("127.0.0.1", 0),
    }
    nobody = dropped(54321, 54322, no_new=1)
    with Released(tmp_path, KEPT, script(ANY, max_children=WORKERS, **rights)) as service:
        service.wait_ready(WORKERS)
        service.expect(r"Error", r"reload failed")
        first = one_holder(service)
        service.release(KEPT + AFTERWARDS + "raise RuntimeError\n")
        service.signal(signal.SIGHUP)
        service.wait_degraded()
        before = {first, *titled(service, "exporter")}
        for pid in before:
            service.signal(signal.SIGKILL, pid)
        one_holder(service, but=first)
        until = monotonic() + HUNG
        while not (after := {*titled(service, "holder"), *titled(service, "exporter")} - before) or len(after) < 2:
            assert monotonic() < until, f"hung: there are only {after}"
            sleep(0.005)
        while {seen(pid) for pid in after} != {nobody}:
            assert monotonic() < until, "hung: one has not given up its rights"
            sleep(0.005)


def test_a_rehearsal_that_fails(tmp_path: Path) -> None:
    """Nothing has changed: it has no queues, and its end ends none of ours."""
    with Released(tmp_path, KEPT, script(ANY, max_children=WORKERS)) as service:
        service.wait_ready(WORKERS)
        service.expect(r"reload failed")
        service.allow(r"RuntimeError")
        with clients(service, 10) as all_of_them:
            wait_held(service, held=10)
            before = one_holder(service)
            service.release("raise RuntimeError\n")
            service.signal(signal.SIGHUP)
            service.wait_reloads(failed=1)
            for client in all_of_them:
                client.ask()
            assert one_holder(service) == before


@pytest.mark.timed
@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT])
def test_the_end(signum: int, tmp_path: Path) -> None:
    """All that is idle is closed, and counted, within a second, however the service ends."""
    with Service(tmp_path, script(KEPT, max_children=WORKERS)) as service:
        service.wait_ready(WORKERS)
        with clients(service, 500) as all_of_them:
            wait_held(service, held=500, lingering=0)
            began = service.signal(signum)
            for client in all_of_them:
                assert client.ended()
            took = monotonic() - began
            assert service.wait_exit() == 0
        statistics = service.statistics()
    assert took < 1.0
    assert service.log.splitlines()[-1].endswith("INFO stopped")
    assert statistics["connections_closed"] == {"drained": 500}
    assert not any(statistics["connections"].values())


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT, signal.SIGQUIT])
def test_a_signal_for_all_of_them(signum: int, tmp_path: Path) -> None:
    """Sent to every process of the service at once, as a terminal and some service managers do, it ends the service as
    if it had come to the master alone: all that is idle is closed, and counted so."""
    with Service(tmp_path, script(KEPT, max_children=WORKERS)) as service:
        service.wait_ready(WORKERS)
        with clients(service, 50) as all_of_them:
            wait_held(service, held=50, lingering=0)
            os.killpg(service.pid, signum)
            for client in all_of_them:
                assert client.ended()
            assert service.wait_exit() == 0
        statistics = service.statistics()
    assert statistics["connections_closed"] == {"drained": 50}
    assert not any(statistics["connections"].values())


def test_queues_end_with_what_is_on_them(tmp_path: Path) -> None:
    """Connections that nobody has taken when the service ends are closed, and counted: the holder is stopped, so that
    they stay where they are."""
    with Service(tmp_path, script(KEPT, max_children=WORKERS)) as service:
        service.wait_ready(WORKERS)
        with clients(service, 20) as all_of_them:
            wait_held(service, held=20, lingering=0)
            holder = one_holder(service)
            for client in all_of_them:
                client.ask()
            wait_held(service, held=20, lingering=0)
            service.allow("holder")
            os.kill(holder, signal.SIGSTOP)
            others = [Client(service.address) for _ in range(20)]
            for client in others:
                client.ask()
            service.signal(signal.SIGINT)
            for client in (*all_of_them, *others):
                assert client.ended()
                client.close()
            assert service.wait_exit() == 0
        statistics = service.statistics()
    assert sum(statistics["connections_closed"].values()) == 40
    assert not any(statistics["connections"].values())
