"""prefork/FIT.md: what becomes, in a pool, of a program that was written for one process."""

import os
import socket
import tempfile
import threading
from typing import Any

import prefork
from prefork.testing import running
from tests.support.clients.connections import dial
from tests.support.programs.service import HUNG


class Counter(prefork.StreamRequestHandler):
    """Counts in the server object, as programs of one process do."""

    server: Any

    def handle(self) -> None:
        for _ in self.rfile:
            self.server.count = getattr(self.server, "count", 0) + 1
            self.wfile.write(b"%d %d\n" % (self.server.count, os.getpid()))


def say(client: socket.socket, line: bytes = b"\n") -> list[int]:
    client.sendall(line)
    with client.makefile("rb") as answer:
        return [int(word) for word in answer.readline().split()]


def test_state_is_each_workers_own() -> None:
    """Two workers count each from the beginning; with one worker and threads there is one count."""
    with running(prefork.PreForkingTCPServer, Counter, max_children=2) as pool:
        with dial(pool.address) as one, dial(pool.address) as other:
            (first, pid), (second, sibling) = say(one), say(other)
    assert (first, second) == (1, 1)
    assert pid != sibling
    with running(prefork.ThreadingTCPServer, Counter, max_children=1) as pool:
        with dial(pool.address) as one, dial(pool.address) as other:
            (first, pid), (second, sibling) = say(one), say(other)
    assert (first, second) == (1, 2)
    assert pid == sibling


def test_a_conversation_over_udp_meets_several_workers() -> None:
    """The next datagram of a client goes to a worker that is free, not to the one that had the last."""
    held, release = os.pipe()

    class Which(prefork.BaseRequestHandler):
        def handle(self) -> None:
            _, listener = self.request
            listener.sendto(b"%d" % os.getpid(), self.client_address)
            os.read(held, 1)

    with running(prefork.PreForkingUDPServer, Which, max_children=2) as pool:
        with socket.socket(type=socket.SOCK_DGRAM) as client:
            client.settimeout(HUNG)
            pids = set()
            for _ in range(2):
                client.sendto(b"?", pool.address)
                pids.add(client.recv(100))
            os.write(release, b"..")
    os.close(held)
    os.close(release)
    assert len(pids) == 2


def test_threads_stay_in_the_master() -> None:
    """A thread that the program has begun before the fork is in no worker; one of worker_started() is."""

    class Threads(prefork.StreamRequestHandler):
        def handle(self) -> None:
            names = sorted(thread.name for thread in threading.enumerate())
            self.wfile.write(" ".join(names).encode() + b"\n")

    class Server(prefork.PreForkingTCPServer):
        def serve_forever(self, poll_interval: float | None = 0.5) -> None:
            threading.Thread(target=threading.Event().wait, name="before", daemon=True).start()
            super().serve_forever(poll_interval)

        def worker_started(self) -> None:
            threading.Thread(target=threading.Event().wait, name="worker", daemon=True).start()

    with running(Server, Threads, max_children=1) as pool, dial(pool.address) as client:
        with client.makefile("rb") as answer:
            assert answer.readline() == b"MainThread worker\n"


def test_an_open_file_has_one_position() -> None:
    """A file that was opened before the fork is read on by each worker from where the other one was."""
    with tempfile.TemporaryFile() as shared:
        shared.write(b"abcdef")
        shared.seek(0)

        class Read(prefork.StreamRequestHandler):
            def handle(self) -> None:
                for _ in self.rfile:
                    self.wfile.write(os.read(shared.fileno(), 2) + b"\n")

        with running(prefork.PreForkingTCPServer, Read, max_children=2) as pool:
            with dial(pool.address) as one, dial(pool.address) as other:
                answers = []
                for client in (one, other, one):
                    client.sendall(b"\n")
                    answers.append(client.recv(3))
    assert answers == [b"ab\n", b"cd\n", b"ef\n"]
