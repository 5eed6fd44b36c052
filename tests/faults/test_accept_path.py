"""What clients can do to the way in: reset, come alone, drip one byte a second, flood."""

import contextlib
import os
import re
import select
import socket
import struct
import threading
from pathlib import Path
from time import monotonic
from typing import Any

import pytest

from prefork.metrics.kernel import listen_overflows_and_drops
from tests.support.clients.connections import Load, ask, ask_datagram
from tests.support.clients.scraping import get, total
from tests.support.programs.service import HUNG, Service, script
from tests.support.tools.figures import figure
from tests.support.tools.proc import blocked_in_accept, datagrams

quick = pytest.mark.quick_faults
TCP, THREADS = "PreForkingTCPServer", "PreForkingMixIn, ThreadingTCPServer"
RESETS = 5000
RESETTERS = 4
ALONE = 2000
BETWEEN = 500
IDLE = 8
ON_ITS_WAY = 0.1  # seconds: who is in accept for so long, and nobody comes, is stuck
TIMEOUT = 2.0  # seconds
SLACK = 0.5
DATAGRAM = """
class Handler(DatagramRequestHandler):
    def handle(self):
        self.wfile.write(b"%d" % os.getpid())
"""
DAM = "from tests.support.programs.dam import Handler, Hooks"
FLOOD = 500


def reset(address: Any, data: bytes) -> None:
    """Connect, send this, and have the kernel answer everything that follows with RST."""
    with socket.create_connection(address, HUNG) as sock:
        if data:
            sock.sendall(data)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))


@pytest.mark.parametrize("bases", [pytest.param(TCP, marks=quick), THREADS])
def test_clients_that_reset(bases: str, tmp_path: Path) -> None:
    """Five thousand connections reset before, during and after their request: no news, and the others are served."""
    # The queue is as long on every interpreter: whoever comes waits behind all that stand in it.
    with Service(tmp_path, script(bases=bases, max_children=2, request_queue_size=1024)) as service:
        service.expect("ConnectionResetError")
        service.wait_ready(2)
        address = service.address
        overflows = listen_overflows_and_drops()[0] or 0

        def resetting() -> None:
            for number in range(RESETS // RESETTERS):
                reset(address, (b"", b"pi", b"pid\n", b"pid\n" * 100)[number % 4])

        threads = [threading.Thread(target=resetting) for _ in range(RESETTERS)]
        with Load(address, 2) as load:
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
            load.wait_answered(100)  # each SYN that the full queue drops costs one of them a second
        with service.hold():  # behind all that wait in the queue
            pass
        statistics = service.settled()
        # Those are of the queue and of who runs the tests, not of the resets.
        loud = r"^\S+ (WARNING|ERROR|CRITICAL) (?!full: |no longer full: |handlers run as root: )"
    news = [line for line in service.log.splitlines() if re.search(loud, line)]
    tally = load.tally
    arrived = statistics["accepted"] + statistics["accept_errors"].get("aborted", 0) - tally.opened - 1
    refused = (listen_overflows_and_drops()[0] or 0) - overflows  # the kernel's, by a full queue
    figure(f"{bases}, connections that reset: accepted", f"{arrived} of {RESETS}, the queue was full for {refused}")
    figure(f"{bases}, connections that reset: the others that failed", f"{tally.failures} of {tally.opened}", 0)
    figure(f"{bases}, connections that reset: lines above DEBUG and INFO", len(news), 0)
    assert tally.failures == 0
    assert max(RESETS - refused, RESETS * 0.9) <= arrived <= RESETS
    assert news == []
    assert statistics["exits"] == {}


ALL_IDLE: dict[str, Any] = {
    TCP: ("127.0.0.1", 0),
    THREADS: ("127.0.0.1", 0),
    "PreForkingUnixStreamServer": "s",
    "PreForkingUDPServer": ("127.0.0.1", 0),
}


def alone(service: Service, datagram: bool, most: int = ALONE) -> tuple[int, set[int]]:
    """Clients, one at a time, until a worker is stuck in accept; how many there were, and who is stuck."""
    address, workers = service.address, service.workers()
    for number in range(1, most + 1):
        assert ask_datagram(address, b"x") if datagram else ask(address, b"pid\n")
        stuck = set(filter(blocked_in_accept, workers))
        until = monotonic() + ON_ITS_WAY
        # Who answers each of them itself is seen only where nobody comes for a while.
        while not stuck and number % BETWEEN == 0 and monotonic() < until:
            stuck = set(filter(blocked_in_accept, workers))
        until = monotonic() + ON_ITS_WAY
        while stuck and monotonic() < until:
            stuck = set(filter(blocked_in_accept, stuck))
        if stuck:
            return number, stuck
    return most, set()


@pytest.mark.parametrize("bases", [pytest.param(TCP, marks=quick), *list(ALL_IDLE)[1:]])
def test_one_at_a_time_at_idle_workers(bases: str, tmp_path: Path) -> None:
    """Two thousand connections, one at a time, at eight idle workers: nobody is stuck in accept for one it missed."""
    datagram = "UDP" in bases
    source = script(DATAGRAM if datagram else "", bases=bases, address=ALL_IDLE[bases], max_children=IDLE)
    with Service(tmp_path, source) as service:
        service.wait_ready(IDLE)
        assert Path(f"/proc/{service.workers()[0]}/syscall").read_text()
        _, stuck = alone(service, datagram)
        statistics = service.settled()
    figure(f"{bases}, {ALONE} one at a time at {IDLE} idle workers: stuck", len(stuck), 0)
    assert stuck == set()
    assert statistics["accepted"] == statistics["completed"] == ALONE
    # Above, TERM ended the service: whoever is deaf to it is killed, and then it is not "drained".
    assert service.wait("ended")["exits"] == {"drained": IDLE}


BLOCKING = {TCP: "os.set_blocking(self.fileno(), True)", "PreForkingUDPServer": "self.socket.__class__ = socket.socket"}


@pytest.mark.parametrize("bases", BLOCKING)
def test_one_at_a_time_can_fail(bases: str, tmp_path: Path) -> None:
    """The same look at a pool whose listener was made to block before the fork: somebody is stuck, and all are deaf."""
    datagram = "UDP" in bases
    mutant = f"class Hooks:\n def service_actions(self):\n  {BLOCKING[bases]}\n  super().service_actions()\n"
    source = script(mutant + (DATAGRAM if datagram else ""), bases=bases, max_children=IDLE, graceful_timeout=0.5)
    with Service(tmp_path, source) as service:
        service.wait_ready(IDLE)
        tries, stuck = alone(service, datagram, 10 * ALONE)  # it takes some hundreds
    figure(f"{bases}, its listener made to block: {len(stuck)} stuck after", f"{tries} connections")
    assert stuck
    assert service.wait("ended")["exits"].get("killed", 0) > IDLE / 2


@pytest.mark.parametrize(("bases", "lanes"), [(TCP, 2), pytest.param(THREADS, 6, marks=quick)])
def test_clients_of_one_byte_a_second(bases: str, lanes: int, tmp_path: Path) -> None:
    """On every lane a client that drips: each is cut at request_timeout, and who comes after them is served."""
    settings: dict[str, Any] = {"max_children": 2, "max_threads": lanes // 2, "request_timeout": TIMEOUT}
    with Service(tmp_path, script(bases=bases, **settings)) as service, contextlib.ExitStack() as stack:
        service.expect("a request has run for longer than request_timeout")
        service.wait_ready(2)
        cut: dict[socket.socket, float] = {}
        begun: dict[socket.socket, float] = {}
        for _ in range(lanes):
            sock = stack.enter_context(socket.create_connection(service.address, HUNG))
            begun[sock] = monotonic()
        after = threading.Thread(target=lambda: answers.append(ask(service.address, b"pid\n")))
        answers: list[bytes] = []
        after.start()  # it waits in the queue
        next_drip = monotonic()
        while len(cut) < lanes:
            assert monotonic() < begun[sock] + HUNG, "hung: nobody is cut"
            if monotonic() >= next_drip:
                next_drip += 1.0
                for each in begun.keys() - cut.keys():
                    with contextlib.suppress(OSError):
                        each.send(b"p")
            for each in select.select(begun.keys() - cut.keys(), [], [], max(0.0, next_drip - monotonic()))[0]:
                cut[each] = monotonic() - begun[each]
        after.join(HUNG)
        statistics = service.settled()
    figure(f"{bases}, 1 B/s on {lanes} lanes: cut after", f"{min(cut.values()):.2f} to {max(cut.values()):.2f} s",
           f"{TIMEOUT} ± {SLACK} s")  # fmt: skip
    assert answers
    assert answers[0]
    assert statistics["timed_out"] == lanes
    assert statistics["exits"] == {"timeout": 2}
    assert min(cut.values()) > TIMEOUT - SLACK
    assert max(cut.values()) < TIMEOUT + SLACK


@quick
def test_flood_of_datagrams(tmp_path: Path) -> None:
    """A flood that nobody receives: what the kernel drops is what we tell, and what it kept is served, to the unit."""
    os.mkfifo(tmp_path / "gate")
    with Service(tmp_path, script(DAM, bases="PreForkingUDPServer", max_children=1, metrics_address="m")) as service:
        service.wait_ready(1)
        address = service.address
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
            sock.connect(address)
            sock.send(b"hold")
            service.wait("held")
            for _ in range(FLOOD):
                sock.send(b"x" * 100)
        dropped = datagrams(address[1])[1]
        told = total(get(os.path.relpath(tmp_path / "m")).samples, "prefork_datagram_receive_drops_total")
        (tmp_path / "gate").write_text("")
        kept = FLOOD - dropped
        deadline = monotonic() + HUNG
        while (statistics := service.settled())["accepted"] < 1 + kept:
            assert monotonic() < deadline, f"hung: {statistics}"
        assert datagrams(address[1]) == (0, dropped)
    figure("flood of datagrams: dropped by the kernel, told by us, served",
           f"{dropped}, {told:.0f}, {statistics['completed'] - 1} of {FLOOD}", "exact")  # fmt: skip
    assert 0 < dropped < FLOOD
    assert told == dropped
    assert statistics["accepted"] == statistics["completed"] == 1 + kept
