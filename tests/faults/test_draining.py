"""The end under load: what the kernel had queued is served, and who idles is hung up in time."""

import contextlib
import signal
import socket
import threading
from pathlib import Path

import pytest

from tests.support.clients.connections import Load
from tests.support.programs.service import Service, script
from tests.support.tools.figures import figure, ms
from tests.support.tools.proc import nothing_for

CLIENTS = 24
# SO_LOCK_FILTER: whoever attaches a filter afterwards is refused; socket(7).
LOCKED = """
class Hooks:
    def server_bind(self):
        super().server_bind()
        self.socket.setsockopt(socket.SOL_SOCKET, 44, 1)
"""
SLOWLY = """
class Handler(Who):
    def do_pid(self):
        time.sleep(0.002)  # an input: how long a request takes
"""
DOORS = {
    "filter": ({"bases": "PreForkingTCPServer"}, "", 0),
    "filter, threads": ({"bases": "PreForkingMixIn, ThreadingTCPServer"}, "", 0),
    "without": ({"bases": "PreForkingTCPServer"}, LOCKED, 1),
    "path": ({"bases": "PreForkingUnixStreamServer", "address": "s"}, "", 0),
}


@pytest.mark.parametrize(
    "door", [pytest.param(door, marks=pytest.mark.quick_faults if door == "filter" else ()) for door in DOORS]
)
def test_term_under_load(door: str, tmp_path: Path) -> None:
    """TERM under load from 24 clients: whom the kernel had let in is answered, but for one where the door cannot be
    narrowed by a filter; whoever comes later is refused."""
    settings, more, allowed = DOORS[door]
    with Service(tmp_path, script(SLOWLY + more, max_children=2, **settings)) as service:
        service.wait_ready(2)
        with Load(service.address, CLIENTS) as load:
            load.wait_answered(10 * CLIENTS)
            sent_at = service.signal(signal.SIGTERM)
            assert service.wait_exit() == 0
            tally = load.stop()
        ended = service.wait("ended")
    unanswered = tally.opened - tally.answered
    figure(f"TERM under load, {door}: answered", tally.answered)
    figure(f"TERM under load, {door}: reset", unanswered, allowed)
    figure(f"TERM under load, {door}: ended after", ms(ended["at"] - sent_at))
    assert tally.answered >= 10 * CLIENTS
    assert unanswered <= allowed, tally.failed
    assert ended["completed"] == ended["accepted"]
    assert ended["exits"] == {"drained": 2}


GRACEFUL = 10.0
SLOWLY_READ = """
class Handler(DatagramRequestHandler):
    def handle(self):
        time.sleep(0.005)  # an input: more come than are served
"""


def test_term_under_datagrams(tmp_path: Path) -> None:
    """TERM under a stream of datagrams that does not end: what comes later is not let in, so that the queue is served
    and the service ends at once, and not at a deadline."""
    source = script(SLOWLY_READ, bases="PreForkingUDPServer", max_children=2, graceful_timeout=GRACEFUL)
    with Service(tmp_path, source) as service:
        service.wait_ready(2)
        address, done = service.address, threading.Event()

        def stream() -> None:
            with socket.socket(type=socket.SOCK_DGRAM) as client:
                while not done.wait(0.002):
                    with contextlib.suppress(OSError):  # once nobody listens
                        client.sendto(b"pid\n", address)

        thread = threading.Thread(target=stream)
        thread.start()
        try:
            while service.statistics()["completed"] < 50:
                pass
            sent_at = service.signal(signal.SIGTERM)
            assert service.wait_exit() == 0
        finally:
            done.set()
            thread.join()
        ended = service.wait("ended")
    took = ended["at"] - sent_at
    figure("TERM under datagrams: ended after", ms(took), "1 s; half of graceful_timeout is 5 s")
    assert took < 1
    assert ended["exits"] == {"drained": 2}


@pytest.mark.quick_faults
@pytest.mark.parametrize("bases", ["PreForkingTCPServer", "PreForkingMixIn, ThreadingTCPServer"])
def test_idle_connections_with_eof(bases: str, tmp_path: Path) -> None:
    """Connections that idle in `for line in rfile` end within a second of TERM with eof; all that their clients sent
    before is answered."""
    idle = 4
    children = idle if "Threading" not in bases else 1
    with Service(tmp_path, script(bases=bases, max_children=children, drain_connections="eof")) as service:
        service.wait_ready(children)
        held = [service.hold() for _ in range(idle)]
        nothing_for(0.3, *(connection.sock for connection in held))  # an input: they are no newcomers
        for connection in held:
            for _ in range(50):
                connection.send(b"pid")
        sent_at = service.signal(signal.SIGTERM)
        lines = [[connection.answer_or_end() for _ in range(51)] for connection in held]
        assert service.wait_exit() == 0
        ended = service.wait("ended")
        for connection in held:
            connection.close()
    took = ended["at"] - sent_at
    figure(f"{bases}, idle connections, eof: ended after", ms(took), "1 s")
    for connection, answers in zip(held, lines, strict=True):
        assert answers == [b"%d" % connection.pid] * 50 + [None]
    assert ended["completed"] == idle
    assert ended["lost"] == 0
    assert took < 1


def test_replacement_under_load_with_eof(tmp_path: Path) -> None:
    """With eof a short request is never cut by a replacement: none fails while every worker is replaced again and
    again."""
    with Service(tmp_path, script(SLOWLY, max_children=2, drain_connections="eof")) as service:
        service.wait_ready(2)
        with Load(service.address, 8, processes=2) as load:
            load.wait_answered()
            for replaced in range(2, 21, 2):
                service.signal(signal.SIGUSR2)
                service.wait_ready(2, replaced=replaced)
            tally = load.stop()
        assert service.settled()["lost"] == 0
    figure("replacements under load, eof: failed", f"{tally.failures} of {tally.opened}", 0)
    assert tally.failures == 0, tally.failed
    assert tally.answered == tally.opened


def test_a_queue_that_nobody_can_serve(tmp_path: Path) -> None:
    """With its one worker busy for ever, and somebody in the queue, a drain ends at graceful_timeout all the same: the
    time that was given to the queue is not added to it."""
    with Service(tmp_path, script(max_children=1, graceful_timeout=2), accounts=False) as service:
        service.wait_ready(1)
        with service.hold() as held, service.connect() as queued:
            queued.send(b"pid")
            held.send(b"spin")
            service.wait("spinning")
            sent_at = service.signal(signal.SIGTERM)
            assert service.wait_exit() == 0
        ended = service.wait("ended")
    took = ended["at"] - sent_at
    figure("drain with a queue that nobody can serve: ended after", ms(took), "graceful_timeout 2 s + 0.6 s")
    assert ended["exits"] == {"killed": 1}
    assert 2 <= took < 2.6
