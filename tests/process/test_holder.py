"""The holder as a process: its signals, signs of life and end. The test is its master, the workers and the clients.

What it does with connections is in tests/unit/test_holder_connections.py.
"""

import os
import resource
import select
import signal
import socket
from collections.abc import Callable, Iterator
from time import monotonic, sleep
from typing import Any

import pytest

from prefork.holder.server import BEAT_S, KEPT_FREE, Held, serve
from prefork.metrics.facts import CloseReason, ExitReason
from prefork.metrics.scoreboard import CLOSED, IDLE_HERE, LEAVING, READY, REPLACE_ASKED, STARTED_NS, YES, Slot, Stacks
from prefork.workers.bootstrap import Birth, enter
from prefork.workers.kept import CLOSING, TELL_END, Kept, Queues
from prefork.workers.signals import DRAIN_SIGNAL

HUNG = 20.0
HELD = Held(
    keepalive_timeout=75.0, max_idle_connections=None, incomplete_timeout=10.0, graceful_timeout=2.0, table=None,
    nudge=lambda: None,
)  # fmt: skip


def eventually(true: Callable[[], object]) -> None:
    """Wait for what another process writes into shared memory, which tells nobody."""
    until = monotonic() + HUNG
    while not true():
        assert monotonic() < until, "it never came true"
        sleep(0.001)


class Played:
    """A holder process."""

    def __init__(self, queues: Queues, held: Held = HELD, descriptors: int = 0) -> None:
        self.queues = queues
        self.slot = Slot(1)
        self.words = self.slot.lane(0)
        before = resource.getrlimit(resource.RLIMIT_NOFILE)
        birth = Birth(self.slot, Stacks(self.slot), os.getpid(), True, queues.ready_out.close, set())
        self.pid = os.fork()
        if self.pid == 0:
            if descriptors:
                resource.setrlimit(
                    resource.RLIMIT_NOFILE, (len(os.listdir("/proc/self/fd")) + KEPT_FREE + descriptors, before[1])
                )
            enter(birth, lambda birth, master: serve(held, queues, birth, master))
        self.pidfd = os.pidfd_open(self.pid)
        eventually(lambda: self.slot.words[READY] == YES)

    def signal(self, signum: int) -> None:
        os.kill(self.pid, signum)

    def tell_to_drain(self) -> None:
        self.slot.tell_to_drain()
        self.signal(DRAIN_SIGNAL)

    @property
    def idle(self) -> int:
        return int(self.words[IDLE_HERE])

    def closed(self, reason: CloseReason) -> int:
        return int(self.words[CLOSED + reason])

    def wait_exit(self) -> int:
        assert select.select([self.pidfd], [], [], HUNG)[0], Stacks(self.slot).take()
        status = os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])
        self.pid = 0
        return status

    def close(self) -> None:
        if self.pid:
            self.signal(signal.SIGKILL)
            self.wait_exit()
        os.close(self.pidfd)
        self.words.release()
        self.slot.close()


class Service:
    """The queues, and those that have an end of them."""

    def __init__(self) -> None:
        self.queues = Queues.made()
        self.holders: list[Played] = []
        self.clients: list[socket.socket] = []

    def holder(self, **held: Any) -> Played:
        descriptors = held.pop("descriptors", 0)
        self.holders.append(Played(self.queues, HELD._replace(**held), descriptors))
        return self.holders[-1]

    def park(self, kept: Kept) -> socket.socket:
        """Park a connection as a worker does, and return the client's end."""
        client, ours = socket.socketpair()
        client.settimeout(HUNG)
        self.clients.append(client)
        message = kept.encoded()
        eventually(lambda: self.queues.park_in.send(message, ours.fileno()))
        os.close(ours.detach())
        return client

    def take(self) -> tuple[Kept, int]:
        """Take a connection as a worker does."""
        assert select.select([self.queues.ready_out], [], [], HUNG)[0]
        found = self.queues.ready_out.receive()
        assert found is not None
        return Kept.decoded(found[0]), found[1]

    def close(self) -> None:
        for holder in self.holders:
            holder.close()
        for client in self.clients:
            client.close()
        self.queues.close()


@pytest.fixture
def service() -> Iterator[Service]:
    made = Service()
    yield made
    made.close()


def test_many_stays(service: Service) -> None:
    """Each message of each client reaches a worker, in its order, with what was parked last; nobody is mixed up."""
    holder = service.holder()
    clients = [service.park(Kept(requests=number * 1000)) for number in range(50)]
    for _ in range(20):
        for number, client in enumerate(clients):
            client.sendall(str(number).encode())
        for _ in clients:
            kept, fd = service.take()
            assert os.read(fd, 9) == str(kept.requests // 1000).encode()
            assert service.queues.park_in.send(kept._replace(requests=kept.requests + 1).encoded(), fd)
            os.close(fd)
    eventually(lambda: holder.idle == 50)
    for client in clients:
        client.sendall(b"x")
        kept, fd = service.take()
        assert kept.requests % 1000 == 20
        os.close(fd)


@pytest.mark.timed
def test_signs_of_life(service: Service) -> None:
    """There is one at least each second, though nothing happens."""
    holder = service.holder()
    for _ in range(3):
        before, began = holder.words[STARTED_NS], monotonic()
        eventually(lambda before=before: holder.words[STARTED_NS] != before)  # type: ignore[misc]
        assert monotonic() - began < BEAT_S * 2


def test_the_timeout(service: Service) -> None:
    """An idle connection is closed after it, though nothing else happens."""
    holder = service.holder(keepalive_timeout=0.2)
    began = monotonic()
    assert service.park(Kept()).recv(1) == b""
    assert monotonic() - began >= 0.2
    eventually(lambda: holder.closed(CloseReason.IDLE_TIMEOUT) == 1)


@pytest.mark.parametrize("signum", [signal.SIGHUP, signal.SIGINT, signal.SIGUSR1, DRAIN_SIGNAL])
def test_signals_of_others(service: Service, signum: int) -> None:
    """They do nothing."""
    holder = service.holder()
    client = service.park(Kept())
    eventually(lambda: holder.idle == 1)
    holder.signal(signum)
    client.sendall(b"x")
    os.close(service.take()[1])
    eventually(lambda: holder.idle == 0)


def test_a_next_one(service: Service) -> None:
    """Told to leave it parks all it has, and waits for room; who follows it has every connection."""
    first = service.holder()
    clients = [service.park(Kept(requests=number, state=bytes(20_000))) for number in range(400)]
    eventually(lambda: first.idle == len(clients))
    first.signal(signal.SIGTERM)
    eventually(lambda: first.slot.words[REPLACE_ASKED] == YES)
    assert not select.select([first.pidfd], [], [], 0.1)[0]  # the queue has not room for all
    before = first.words[STARTED_NS]
    eventually(lambda: first.words[STARTED_NS] != before)
    second = service.holder()
    assert first.wait_exit() == 0
    assert first.slot.words[LEAVING] == ExitReason.DRAINED
    eventually(lambda: second.idle == len(clients))
    assert first.idle == 0
    for number, client in enumerate(clients):
        client.sendall(b"x")
        kept, fd = service.take()
        assert kept.requests == number
        os.close(fd)


def test_told_to_leave_and_nobody_follows(service: Service) -> None:
    """It waits for as long as it is let, and then closes what it still has."""
    holder = service.holder()
    clients = [service.park(Kept(state=bytes(20_000))) for _ in range(400)]
    eventually(lambda: holder.idle == len(clients))
    holder.signal(signal.SIGTERM)
    eventually(lambda: holder.slot.words[REPLACE_ASKED] == YES)
    holder.signal(signal.SIGQUIT)
    assert holder.wait_exit() == 0
    assert {client.recv(1) for client in clients} == {b""}
    assert (holder.idle, holder.closed(CloseReason.DRAINED)) == (0, len(clients))


def test_the_end_of_the_service(service: Service) -> None:
    """What is idle is closed, and what becomes so; what wants to hear of it goes to a worker. On QUIT it leaves."""
    holder = service.holder()
    idle, tells = service.park(Kept()), service.park(Kept(flags=TELL_END))
    eventually(lambda: holder.idle == 2)
    holder.tell_to_drain()
    assert idle.recv(1) == b""
    kept, fd = service.take()
    assert (kept.flags, kept.reason) == (TELL_END | CLOSING, CloseReason.DRAINED + 1)
    os.close(fd)
    assert tells.recv(1) == b""
    assert service.park(Kept()).recv(1) == b""
    holder.signal(signal.SIGQUIT)
    assert holder.wait_exit() == 0
    assert holder.closed(CloseReason.DRAINED) == 2


def test_quit(service: Service) -> None:
    """It closes everything, and what is in the park queue, and leaves."""
    holder = service.holder()
    clients = [service.park(Kept(flags=TELL_END)) for _ in range(3)]
    eventually(lambda: holder.idle == 3)
    holder.signal(signal.SIGSTOP)
    clients += [service.park(Kept()) for _ in range(3)]
    holder.signal(signal.SIGQUIT)
    holder.signal(signal.SIGCONT)
    assert holder.wait_exit() == 0
    assert {client.recv(1) for client in clients} == {b""}
    assert (holder.idle, holder.closed(CloseReason.DRAINED)) == (0, 6)


def test_no_descriptor_left(service: Service) -> None:
    """The longest idle ones go for those that come, and none is lost."""
    holder = service.holder(descriptors=30)
    clients = [service.park(Kept(requests=number)) for number in range(50)]
    eventually(lambda: holder.idle + holder.closed(CloseReason.EVICTED) == 50)
    assert 20 <= holder.idle <= 30
    assert {client.recv(1) for client in clients[: -holder.idle]} == {b""}
    for client in clients[-holder.idle :]:
        client.sendall(b"x")
        os.close(service.take()[1])
    eventually(lambda: holder.idle == 0)
    assert holder.closed(CloseReason.LOST) == 0


def test_no_descriptor_and_no_worker(service: Service) -> None:
    """Where all that it has waits for a worker it leaves the others in the queue, or the idle ones go; none is lost."""
    holder = service.holder(descriptors=30)
    parked = 0
    while holder.idle < 20:  # the ready queue is full, and so is it
        service.park(Kept(requests=parked, unread=bytes(60_000)))
        parked += 1
    clients = [service.park(Kept(requests=parked + number)) for number in range(20)]
    taken: list[int] = []
    while len(taken) < parked:
        kept, fd = service.take()
        taken.append(kept.requests)
        os.close(fd)
    assert taken == list(range(parked))
    eventually(lambda: holder.idle + holder.closed(CloseReason.EVICTED) == 20)
    ended = 20 - holder.idle  # all of them, where nobody takes anything for long
    assert {client.recv(1) for client in clients[:ended]} <= {b""}
    for client in clients[ended:]:
        client.sendall(b"x")
        os.close(service.take()[1])
    assert holder.closed(CloseReason.LOST) == 0


def test_a_worker_that_takes_again(service: Service) -> None:
    """A holder whose ready queue was full goes on as soon as it has room, and does not spin until then."""
    holder = service.holder()
    sent = 0
    while not holder.idle:
        service.park(Kept(requests=sent, unread=bytes(60_000)))
        sent += 1
    with open(f"/proc/{holder.pid}/schedstat") as stat:
        before = int(stat.read().split()[0])
        sleep(0.5)  # an input: the time for which nobody takes anything
        stat.seek(0)
        assert int(stat.read().split()[0]) - before < 0.1e9
    for number in range(sent):
        kept, fd = service.take()
        assert kept.requests == number
        os.close(fd)


def test_a_master_that_dies(service: Service) -> None:
    """The holder ends once nobody is left who could park, and all its connections with it."""
    report, theirs = socket.socketpair()
    with report, theirs:
        middle = os.fork()
        if middle == 0:
            try:
                holder = service.holder(graceful_timeout=HUNG)
                theirs.sendall(str(holder.pid).encode())
                theirs.recv(1)
            finally:
                os._exit(0)
        pid = int(report.recv(9))
        pidfd = os.pidfd_open(pid)
        client = service.park(Kept())
        report.sendall(b"x")
        os.waitpid(middle, 0)
        assert client.recv(1) == b""
        service.queues.park_in.close()  # the last worker leaves
        assert select.select([pidfd], [], [], HUNG)[0]
        os.close(pidfd)
