"""Clients: one question, one connection that is held, or a load of short connections until told to stop.

Runs in the test's process, or as a process of its own (`python -m tests.support.clients.connections`) so that load
does not share the test's interpreter. What goes wrong is counted by its reason, never raised: the test says how much of
it may be.
"""

import contextlib
import json
import queue
import random
import re
import socket
import subprocess
import sys
import threading
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from time import monotonic
from types import TracebackType
from typing import Any, Self

HUNG = 30.0  # seconds; never reached unless something hangs
ROOT = Path(__file__).parents[3]
LOOPBACK = {"::": "::1", "": "127.0.0.1", "0.0.0.0": "127.0.0.1"}
IP_BIND_ADDRESS_NO_PORT = 24  # the port is chosen by connect(), which may reuse one in TIME_WAIT; ip(7)


class Connection:
    """A connection to a line-by-line service, held open by the test. `pid` is for whoever learns who answers."""

    pid = 0

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        self._lines = sock.makefile("rb")

    def ask(self, line: bytes) -> bytes:
        """Send a line, return the line that answers."""
        self.send(line)
        return self.answer()

    def send(self, line: bytes) -> None:
        self.sock.sendall(line + b"\n")

    def answer(self) -> bytes:
        """The next line, whole; its end before that is a failure."""
        line = self._lines.readline()
        assert line.endswith(b"\n"), f"closed before the answer had ended: {line!r}"
        return line.rstrip(b"\n")

    def answer_or_end(self) -> bytes | None:
        """The next line; None where it ends instead, by EOF or a reset. Half a line is a failure still."""
        try:
            return self.answer() if self._lines.peek(1) else None
        except ConnectionResetError:
            return None

    def wait_end(self) -> None:
        """Until the other side has closed; nothing may come before."""
        more = self._lines.read()
        assert more == b"", f"answered, not closed: {more!r}"

    def close(self) -> None:
        self._lines.close()
        self.sock.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


def connect(address: Any, timeout: float = HUNG) -> Connection:
    """A connection to this address: host and port, or the path of a Unix socket."""
    return Connection(dial(address, timeout))


def dial(address: Any, timeout: float = HUNG, source: str = "") -> socket.socket:
    """A bare socket that is connected there; who listens on every address is found on loopback."""
    if isinstance(address, tuple):
        address = (LOOPBACK.get(address[0], address[0]), *address[1:])
    family = socket.AF_UNIX if isinstance(address, str) else socket.AF_INET6 if ":" in address[0] else socket.AF_INET
    sock = socket.socket(family)
    try:
        sock.settimeout(timeout)
        if source and family == socket.AF_INET:
            sock.setsockopt(socket.IPPROTO_IP, IP_BIND_ADDRESS_NO_PORT, 1)
            sock.bind((source, 0))
        sock.connect(address)
    except BaseException:
        sock.close()
        raise
    return sock


def free_port() -> int:
    """A port of 127.0.0.1 at which nobody listens now: only for who takes no other way."""
    return free_ports(1)[0]


def free_ports(count: int) -> list[int]:
    """Ports of 127.0.0.1, each another one, at which nobody listens now. The kernel gives none of these to who asks
    for any port, so that a test may give one up and find nobody there; ip(7), ip_local_port_range."""
    lowest = int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])
    found = list[int]()
    with contextlib.ExitStack() as stack:
        while len(found) < count:
            probe = stack.enter_context(socket.socket())
            with contextlib.suppress(OSError):  # somebody has it
                probe.bind(("127.0.0.1", random.SystemRandom().randrange(1024, lowest)))
                found.append(probe.getsockname()[1])
    return found


def ask(address: Any, question: bytes, timeout: float = HUNG) -> bytes:
    """Send this, say that it was all, and return all that answers."""
    with dial(address, timeout) as sock:
        return _exchange(sock, question)


def _exchange(sock: socket.socket, question: bytes) -> bytes:
    if question:  # a service that answers whoever connects may have closed already: not even nothing can be sent then
        sock.sendall(question)
    sock.shutdown(socket.SHUT_WR)
    return b"".join(iter(lambda: sock.recv(65536), b""))


def ask_datagram(address: Any, question: bytes, mine: str = "", timeout: float = HUNG) -> bytes:
    """Send a datagram, return the one that answers. `mine` is a Unix client's own path."""
    with socket.socket(socket.AF_UNIX if isinstance(address, str) else socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.settimeout(timeout)
        if mine:
            sock.bind(mine)
        sock.sendto(question, address)
        return sock.recv(65536)


@dataclass
class Tally:
    """The results of a load. `opened` are the connections that the kernel established."""

    opened: int = 0
    answered: int = 0
    failed: Counter[str] = field(default_factory=Counter)
    max_latency: float = 0.0

    def add(self, other: "Tally") -> None:
        self.opened += other.opened
        self.answered += other.answered
        self.failed.update(other.failed)
        self.max_latency = max(self.max_latency, other.max_latency)

    @property
    def failures(self) -> int:
        return sum(self.failed.values())

    def one(self, address: Any, question: bytes, right: bytes, source: str) -> None:
        """One short connection, from connect to the server's EOF. `right` matches the whole of a right answer."""
        began = monotonic()
        try:
            with dial(address, HUNG, source) as sock:
                self.opened += 1
                answer = _exchange(sock, question)
        except OSError as exc:
            self.failed[type(exc).__name__] += 1
        else:
            if re.fullmatch(right, answer):
                self.answered += 1
            else:
                self.failed[f"answered {answer[:40]!r}" if answer else "closed without an answer"] += 1
        self.max_latency = max(self.max_latency, monotonic() - began)


class _Crowd:
    """Client threads of this process. Each has a source address of its own, or the ephemeral ports would run out."""

    def __init__(self, address: Any, clients: int, question: bytes, right: bytes, first: int = 0) -> None:
        self.tallies = [Tally() for _ in range(clients)]
        self.answers: queue.SimpleQueue[int] = queue.SimpleQueue()
        self._stop = threading.Event()
        self._threads = [
            threading.Thread(target=self._run, args=(tally, address, question, right, f"127.0.1.{first + number}"))
            for number, tally in enumerate(self.tallies, 1)
        ]
        for thread in self._threads:
            thread.start()

    def _run(self, tally: Tally, address: Any, question: bytes, right: bytes, source: str) -> None:
        while not self._stop.is_set():
            tally.one(address, question, right, source)
            self.answers.put(tally.answered)

    def stop(self) -> Tally:
        """Let each client finish what it is at, and add up."""
        self._stop.set()
        total = Tally()
        for thread, tally in zip(self._threads, self.tallies, strict=True):
            thread.join(2 * HUNG)
            assert not thread.is_alive(), "hung: a client does not end"
            total.add(tally)
        return total


class Load:
    """Clients that make short connections, one after the other, until `stop()` or the end of the block.

    `tally` is what came of them; only what `right` matches as a whole is an answer. They are threads of this process,
    or of `processes` others.
    """

    def __init__(
        self, address: Any, clients: int = 4, *, question: bytes = b"pid\n", right: bytes = rb"\d+\n",
        processes: int = 0,
    ) -> None:  # fmt: skip
        self.tally = Tally()
        self._crowd = None if processes else _Crowd(address, clients, question, right)
        self._processes = [
            _start(address, clients // processes, question, right, number * (clients // processes))
            for number in range(processes)
        ]
        self._stopped = False

    def wait_answered(self, more: int = 1) -> None:
        """Until so many more connections have come to an end. Of clients in other processes: until each made one."""
        if self._crowd is not None:
            for _ in range(more):
                self._crowd.answers.get(timeout=HUNG)
        for process in self._processes:
            assert process.stdout is not None
            assert process.stdout.readline() == "started\n"

    def stop(self) -> Tally:
        if not self._stopped:
            self._stopped = True
            if self._crowd is not None:
                self.tally.add(self._crowd.stop())
            for process in self._processes:
                output, _ = process.communicate(timeout=2 * HUNG)  # closes its stdin, which tells it to stop
                told = json.loads(output.splitlines()[-1])
                self.tally.add(Tally(**{**told, "failed": Counter(told["failed"])}))
        return self.tally

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None) -> None:
        self.stop()


def _start(address: Any, clients: int, question: bytes, right: bytes, first: int) -> "subprocess.Popen[str]":
    argv = [json.dumps(address), str(clients), question.hex(), right.hex(), str(first)]
    return subprocess.Popen(
        [sys.executable, "-m", "tests.support.clients.connections", *argv],
        cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip


def main(address: str, clients: str, question: str, right: str, first: str) -> None:
    """Be a load until EOF on stdin, then print the tally."""
    target = json.loads(address)
    target = tuple(target) if isinstance(target, list) else target
    crowd = _Crowd(target, int(clients), bytes.fromhex(question), bytes.fromhex(right), int(first))
    crowd.answers.get()
    print("started", flush=True)
    sys.stdin.read()
    print(json.dumps(vars(crowd.stop())), flush=True)  # asdict() would count the pairs of the Counter


if __name__ == "__main__":
    main(*sys.argv[1:])
