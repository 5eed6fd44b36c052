"""The holder of idle connections, and the two queues to it and from it: killed, stopped, replaced, full, without
descriptors. Nobody waits for it; only what it had can be lost, and that is counted."""

import contextlib
import os
import random
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from time import monotonic, sleep

import psutil
import pytest

from tests.faults.test_lost_wakeup import ANSWERED, wait_stopped
from tests.support.clients.keeping import (
    THREADED,
    Crowd,
    Staying,
    counted,
    heard_of,
    holder,
    keeping,
    releasing,
    stay,
    staying,
    wait_counted,
)
from tests.support.programs.releases import numbered
from tests.support.programs.service import HUNG, Service, Watch
from tests.support.tools.figures import figure, ms
from tests.support.tools.proc import cpu_seconds, no_descriptor_left, nothing_for

HELD = 30
QUEUED = 120
LARGE = 60_000  # bytes of a state: of such messages a queue takes ROOM at the most
ROOM = 75
SOON = 1.0
USER = 54321
LIMITED = ("prlimit", "--nofile=300:300")


def another_holder(service: Service, than: int) -> int:
    """The pid of the one that has taken the place of this one."""
    deadline = monotonic() + HUNG
    while (found := holder(service)) == than:
        assert monotonic() < deadline, "hung: there is no other holder"
        sleep(0.005)  # a poll: nothing tells
    return found


def held_by(service: Service, clients: list[Staying]) -> None:
    """Until all are held, each with one message behind it."""
    for client in clients:
        client.say()
    wait_counted(service, held=len(clients), active=0, lingering=0)


@pytest.mark.quick_faults
def test_killed(tmp_path: Path) -> None:
    """The connections that the holder had end and are counted, to the unit, while those in hand are served on; another
    one takes its place, and what becomes idle then."""
    with keeping(tmp_path) as service, staying(service.address, HELD) as (waiting, *clients):
        held_by(service, [waiting, *clients])
        waiting.send(b"wait")
        service.wait("waiting")
        first = holder(service)
        service.signal(signal.SIGKILL, first)
        for client in clients:
            client.wait_end()
        assert another_holder(service, first)
        (tmp_path / "go on").touch()
        waiting.heard()
        assert wait_counted(service, held=1, active=0)["lost"] == HELD - 1
        with staying(service.address, HELD) as others:
            for other in others:
                other.say()
            wait_counted(service, held=HELD + 1, lost=HELD - 1)
            waiting.say()
        statistics = service.settled()
    assert statistics["lost"] == 0
    assert statistics["completed"] == 2 * HELD + 2


def test_killed_under_load(tmp_path: Path, rng: random.Random) -> None:
    """Killed again and again under load: connections are cut only by that, each is in the books, and clients that come
    anew are served in between."""
    with keeping(tmp_path, max_restart_delay=0.1) as service:
        service.wait_ready(2)
        with Crowd(service.address, 60, rng) as crowd:
            for _ in range(3):
                crowd.wait_answered(60)
                pid = holder(service)
                service.signal(signal.SIGKILL, pid)
                another_holder(service, pid)
            crowd.wait_answered(60)
        ledger = crowd.ledger
        found = wait_counted(service, held=0, active=0, lingering=0)
        statistics = service.settled()
    figure("holder killed three times: cut at the clients, lost by the books", f"{ledger.cut}, {found['lost']}")
    figure("holder killed three times: messages, slowest answer", f"{ledger.answered}, {ms(ledger.slowest)}")
    assert ledger.wrong == {}
    assert ledger.cut > 0
    assert abs(found["lost"] - ledger.cut) <= 6  # those that it just took from a queue or put into one
    assert abs(found["client"] + found["lost"] - ledger.opened) <= 6
    assert statistics["lost"] == 0
    assert statistics["completed"] == ledger.answered
    assert ledger.slowest < 2 * SOON


def test_told_to_leave(tmp_path: Path, rng: random.Random) -> None:
    """TERM, from whomever: it hands on all that it has, another one takes its place, no client notices."""
    with keeping(tmp_path, max_restart_delay=0.1) as service:
        service.wait_ready(2)
        service.allow(r"exit status 0")
        with staying(service.address, QUEUED) as clients, Crowd(service.address, 20, rng) as crowd:
            for client in clients:
                client.say()
            for _ in range(3):
                crowd.wait_answered(20)
                pid = holder(service)
                with Watch(pid) as watch:
                    service.signal(signal.SIGTERM, pid)
                    watch.wait_dead()
                another_holder(service, pid)
            for client in clients:
                client.say()
            crowd.stop()
            found = wait_counted(service, held=QUEUED)
    assert (crowd.ledger.cut, dict(crowd.ledger.wrong)) == (0, {})
    assert "lost" not in found


def test_stopped_for_good(tmp_path: Path) -> None:
    """A holder that does nothing is killed and replaced; what is on the queues then is not lost."""
    with keeping(tmp_path) as service, staying(service.address, HELD) as clients:
        service.expect(r"holder")
        held, queued = clients[: HELD // 2], clients[HELD // 2 :]
        for client in held:
            client.say()
        wait_counted(service, held=HELD)
        for client in queued:
            client.send(b"wait")
        stopped = holder(service)
        service.wait_each("waiting", 2)
        began = monotonic()
        service.signal(signal.SIGSTOP, stopped)
        wait_stopped(stopped)
        with Watch(stopped) as watch:
            (tmp_path / "go on").touch()
            took = watch.wait_dead() - began
        another_holder(service, stopped)
        with stay(service.address) as fresh:
            fresh.say()
        for client in held:
            client.wait_end()
        answered = sum(bool(client.answer_or_end()) for client in queued)
        found = wait_counted(service, active=0, lingering=0)
        assert found["lost"] == HELD - answered
    figure("a stopped holder is replaced after", ms(took), "10 s")
    figure("messages answered that were there when it stopped", answered)
    assert answered >= 2
    assert took < 10


def laden(client: Staying) -> None:
    """Give a connection a state of LARGE bytes; from then on its messages are not numbered."""
    client.send(b"keep %d" % LARGE)
    client.heard()


def heard(client: Staying, words: bytes) -> None:
    assert client.answer() == b"0 " + words


def test_the_park_queue_is_full(tmp_path: Path) -> None:
    """While the holder takes nothing, more connections become idle than the queue takes: workers keep those in their
    own wait, and answer them; when it goes on, it has them all."""
    with keeping(tmp_path) as service:
        service.allow("its heart has not beaten")  # a slow machine
        service.wait_ready(2)
        pid = holder(service)
        service.signal(signal.SIGSTOP, pid)
        wait_stopped(pid)
        with contextlib.ExitStack() as stack:
            clients: list[Staying] = []
            for _ in range(QUEUED):
                clients.append(stack.enter_context(stay(service.address)))
                laden(clients[-1])
            began = monotonic()
            for client in clients:
                client.send(b"say y")
            answered = wait_heard(clients, QUEUED - ROOM)
            took = monotonic() - began
            for client in answered:
                heard(client, b"y")
            used = -sum(map(cpu_seconds, service.workers()))
            nothing_for(0.3, *(client.sock for client in answered))
            used += sum(map(cpu_seconds, service.workers()))
            with contextlib.suppress(ProcessLookupError):  # a slow machine: it was taken for hung
                service.signal(signal.SIGCONT, pid)
            for client in clients:
                if client not in answered:
                    heard(client, b"y")
            found = wait_counted(service, held=QUEUED, lingering=0)
            for client in clients:
                client.send(b"sized")
                heard(client, b"%d" % LARGE)
            assert service.settled()["completed"] == 3 * QUEUED
    figure("no room on the park queue: answered of all", f"{len(answered)} of {QUEUED} after {ms(took)}", ms(SOON))
    figure("no room on the park queue: CPU of the workers in 0.3 s", ms(used))
    assert set(found) <= {"held", "moves"}
    assert len(answered) < QUEUED  # the others were on the queue, which was full
    assert took < SOON
    assert used < 0.15


def wait_heard(clients: list[Staying], count: int) -> list[Staying]:
    """Until so many of them have an answer."""
    deadline = monotonic() + HUNG
    while len(found := heard_of(*clients)) < count:
        assert monotonic() < deadline, f"hung: {len(found)} of {count} are answered"
        sleep(0.005)  # a poll
    return found


@pytest.mark.parametrize("then", ["nothing", "a reload", "the end"])
def test_the_ready_queue_is_full(then: str, tmp_path: Path) -> None:
    """While every worker is busy more connections have something to say than the queue takes: the holder has them wait
    and does not turn in circles; a reload then, or the end of the service, answers each of them, too."""
    with releasing(tmp_path, graceful_timeout=20.0) as service, staying(service.address, QUEUED) as clients:
        service.wait_ready(2)
        for client in clients:
            laden(client)
        wait_counted(service, held=QUEUED, active=0, lingering=0, queued=0)
        for client in clients[:2]:
            mark = service.mark()
            client.send(b"wait")
            service.wait("waiting", after=mark)
        for client in clients[2:]:
            client.send(b"sized")
        pid = holder(service)
        used = -cpu_seconds(pid)
        nothing_for(0.3, *(client.sock for client in clients))
        used += cpu_seconds(pid)
        assert wait_counted(service, active=2)["held"] >= QUEUED - 2 - ROOM  # the queue has taken what it takes
        if then == "a reload":
            service.release(numbered(2))
            mark = service.mark()
            service.signal(signal.SIGHUP)
            service.wait("worker_started", after=service.facts.index(service.wait("listening", after=mark)))
        if then == "the end":
            service.signal(signal.SIGTERM)
        (tmp_path / "go on").touch()
        for client in clients[:2]:
            assert client.answer().startswith(b"0 ")
        for client in clients[2:]:
            heard(client, b"%d" % LARGE)
        if then == "the end":
            for client in clients:
                client.wait_end()
            assert service.wait_exit() == 0
            statistics = service.statistics()
        else:
            found = wait_counted(service, held=QUEUED)
            assert "lost" not in found
            statistics = service.settled()
        assert (statistics["completed"], statistics["lost"]) == (2 * QUEUED, 0)
    figure(f"{then}: CPU of the holder in 0.3 s beside a full queue", ms(used))
    assert used < 0.1


IN_FLIGHT = """
import array, os, socket, sys
os.setuid(int(sys.argv[1]))
one, other = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
for _ in range(2):
    one.sendmsg([b"x"], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [0] * 200))])
print("sent", flush=True)
sys.stdin.read()
"""


@contextlib.contextmanager
def in_flight(user: int) -> Iterator[None]:
    """This user has 400 descriptors on their way."""
    argv = [sys.executable, "-c", IN_FLIGHT, str(user)]
    with subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"sent\n"
        yield
        process.communicate(timeout=HUNG)


@pytest.mark.once
@pytest.mark.skipif(os.getuid() != 0, reason="only root can change the user of a worker")
def test_too_many_descriptors_on_their_way(tmp_path: Path) -> None:
    """ETOOMANYREFS, whose end no poll tells: the holder tries again what it cannot pass on, workers keep what they
    cannot park, and serve it; nobody turns in circles, nobody is lost."""
    with (
        keeping(tmp_path, before=LIMITED, user=str(USER), group=str(USER)) as service,
        staying(service.address, HELD) as clients,
        staying(service.address, HELD) as others,
    ):
        service.wait_ready(2)
        for client in clients:
            client.say()
        wait_counted(service, held=2 * HELD)
        for other in others[: HELD // 2]:
            other.close()
        pids = [holder(service), *service.workers()]
        with in_flight(USER), staying(service.address, HELD) as fresh:
            for client in clients:
                client.send(b"say x")
            for _ in range(2):
                for each in fresh:
                    each.say()
            used = -sum(map(cpu_seconds, pids))
            nothing_for(0.3, *(client.sock for client in clients))
            used += sum(map(cpu_seconds, pids))
        for client in clients:
            assert client.heard() == b"x"
        found = wait_counted(service, held=HELD + HELD // 2, lingering=0)
        assert service.settled()["completed"] == 4 * HELD
    figure("CPU of workers and holder in 0.3 s of ETOOMANYREFS", ms(used))
    assert "lost" not in found
    assert used < 0.15


@pytest.mark.parametrize("bases", ["PreForkingTCPServer", THREADED])
def test_no_descriptor_in_a_worker(bases: str, tmp_path: Path) -> None:
    """A worker that can get no descriptor more leaves kept connections to its sibling; where none of them can, they
    wait, nobody turns in circles, and they are answered as soon as one can. None is lost."""
    with keeping(tmp_path, bases=bases, max_threads=2) as service, staying(service.address, HELD) as clients:
        service.wait_ready(2)
        held_by(service, clients)
        service.allow("Too many open files")
        one, other = service.workers()
        with no_descriptor_left(one):
            for client in clients:
                assert int(client.say()) == other
        wait_counted(service, held=HELD)  # one that lingers is a descriptor that will be free
        with no_descriptor_left(one, other):
            for client in clients:
                client.send(b"say x")
            used = -sum(map(cpu_seconds, (one, other, holder(service))))
            nothing_for(0.3, *(client.sock for client in clients))
            used += sum(map(cpu_seconds, (one, other, holder(service))))
        for client in clients:
            assert client.heard() == b"x"
        found = wait_counted(service, held=HELD)
    figure(f"{bases}: CPU of workers and holder in 0.3 s without a descriptor", ms(used))
    assert set(found) <= {"held", "moves"}
    assert used < 0.15


def test_a_holder_with_few_descriptors(tmp_path: Path) -> None:
    """A holder that has as many connections as its limit of descriptors allows ends the longest idle one for each that
    comes anew, and counts it; whoever comes is held."""
    few = ("prlimit", "--nofile=150:150")
    with keeping(tmp_path, before=few) as service, contextlib.ExitStack() as stack:
        service.wait_ready(2)
        clients = []
        for _ in range(2 * QUEUED):
            clients.append(stack.enter_context(stay(service.address)))
            clients[-1].say()
        found = wait_counted(service, lingering=0, active=0, queued=0)
        ended = heard_of(*clients)
        figure("a limit of 150 descriptors: connections held", found["held"])
        assert max(map(clients.index, ended)) < len(ended) + 3  # each worker parks in its own time
        assert found["evicted"] == len(ended)
        assert found["held"] == 2 * QUEUED - len(ended) > 50
        assert "lost" not in found
        for client in clients:
            if client not in ended:
                client.say()


@pytest.mark.parametrize("bases", ["PreForkingTCPServer", THREADED])
def test_woken_and_stopped(bases: str, tmp_path: Path) -> None:
    """The ready queue wakes one worker; where that one is stopped a sibling answers, with no other traffic."""
    slowest = 0.0
    with keeping(tmp_path, max_children=3, max_threads=2, bases=bases) as service:
        service.wait_ready(3)
        with staying(service.address, 6) as clients:
            held_by(service, clients)
            for pid in service.workers()[:2]:
                service.signal(signal.SIGSTOP, pid)
                wait_stopped(pid)
            stopped = service.workers()[:2]
            for client in clients:
                began = monotonic()
                assert int(client.say()) not in stopped
                slowest = max(slowest, monotonic() - began)
                if slowest > ANSWERED:
                    break
            for pid in stopped:
                service.signal(signal.SIGCONT, pid)
            assert "lost" not in wait_counted(service, held=6)
    figure(f"{bases}, two of three stopped: slowest answer on a kept connection", ms(slowest), ms(ANSWERED))
    assert slowest < ANSWERED


def test_a_release_that_writes_other_messages(tmp_path: Path) -> None:
    """A new generation that cannot read what the old one has left on the queues closes those connections and counts
    them; nobody ends by it, and what comes anew is kept."""
    with releasing(tmp_path) as service, staying(service.address, HELD) as clients:
        service.wait_ready(2)
        held_by(service, clients)
        service.allow("message of a kept connection")
        service.release(numbered(2, "import prefork.workers.kept as kept\nkept.VERSION = 99\n"))
        service.signal(signal.SIGHUP)
        service.wait_reloads(ok=1)
        with staying(service.address, HELD) as others:
            held_by_others(service, others)
            for other in others:
                other.say()
            answered = 0
            for client in clients:
                with contextlib.suppress(OSError):
                    client.send(b"pid")
                answered += client.answer_or_end() is not None
            found = wait_counted(service, held=HELD + answered, active=0, lingering=0)
        assert sum(found.get(reason, 0) for reason in ("lost", "drained")) == HELD - answered
        assert [name for name in service.settled()["exits"] if name not in ("replaced", "drained")] == []


def held_by_others(service: Service, others: list[Staying]) -> None:
    for other in others:
        other.say()
    deadline = monotonic() + HUNG
    while counted(service).get("held", 0) < len(others):
        assert monotonic() < deadline, f"hung: {counted(service)}"


def test_each_image_has_its_own(tmp_path: Path) -> None:
    """After a reload nobody is left of the old image, and the new one's holder has what the old one's had."""
    with releasing(tmp_path) as service, staying(service.address, QUEUED) as clients:
        service.wait_ready(2)
        held_by(service, clients)
        before = {child.pid for child in psutil.Process(service.pid).children()}
        with Watch(*before) as watch:
            for number in range(1, 4):
                service.release(numbered(number + 1))
                service.signal(signal.SIGHUP)
                service.wait_reloads(ok=number)
            watch.wait_dead()
        assert holder(service) not in before
        found = wait_counted(service, held=QUEUED)
        assert set(found) <= {"held", "moves"}
        for client in clients:
            client.say()
