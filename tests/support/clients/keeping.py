"""Clients that stay: one connection and the count of its messages, crowds of them, and what a service says of its own.

Runs in the test's process. A `Staying` counts as its handler does (tests/support/programs/kept.py): an answer with
another number is a message that was lost, or came twice.
"""

import contextlib
import os
import random
import select
import threading
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from time import monotonic, sleep
from types import TracebackType
from typing import Any, Self, TypeVar

import psutil

from tests.support.clients.connections import Connection, dial
from tests.support.clients.scraping import get, labelled
from tests.support.programs.releases import Released
from tests.support.programs.service import HUNG, Service, script

METRICS = "m"  # `metrics_address` of a service whose connections a test counts
THREADED, UNIX = "PreForkingMixIn, ThreadingTCPServer", "PreForkingUnixStreamServer"
FORKED = "PreForkingMixIn, ForkingTCPServer"
HOOKED = "class Hooks(Told):\n    def verify_request(self, *args): return True\n"
KINDS: dict[str, dict[str, Any]] = {
    "sync": {},
    "threads": {"bases": THREADED, "max_threads": 4},
    "threads behind the main thread": {"bases": THREADED, "max_threads": 4, "more": HOOKED},
    "forked ahead": {"bases": FORKED, "max_children": 4},
    "unix": {"bases": UNIX, "address": "s"},
}
LOOK_EVERY_S = 0.05
RELEASES = """
with open("release.py") as file:
    exec(compile(file.read(), "release.py", "exec"))
"""


_S = TypeVar("_S", bound=Service)


class Staying(Connection):
    """A connection whose answers are numbered."""

    sent = 0

    def say(self, line: bytes = b"pid") -> bytes:
        """Send a line; what its answer says after the number, which must be right."""
        self.send(line)
        return self.heard()

    def send(self, line: bytes) -> None:
        super().send(line)
        self.sent += 1

    def heard(self, number: int = 0) -> bytes:
        """The answer to the last line sent, or to the one of this number."""
        found, _, words = self.answer().partition(b" ")
        assert int(found) == (number or self.sent), f"answer {found!r} to message {number or self.sent}"
        return words


def definitions(handler: str = "Handler", more: str = "") -> str:
    return f"from tests.support.programs.kept import {handler} as Handler\n{more}"


def keeping(
    tmp_path: Path, handler: str = "Handler", *, more: str = "", before: Sequence[str] = (), **settings: Any
) -> Service:
    """A service of two workers, unless told otherwise, with this handler of tests/support/programs/kept.py."""
    defaults = {"max_children": 2, "metrics_address": METRICS}
    source = script(definitions(handler, more), **{**defaults, **settings})
    return _allowing(Service(tmp_path, source, before=before))


def releasing(tmp_path: Path, handler: str = "Handler", **settings: Any) -> Released:
    """The same, as a service that is released anew."""
    defaults = {"max_children": 2, "metrics_address": METRICS}
    source = script(RELEASES + definitions(handler), **{**defaults, **settings})
    return _allowing(Released(tmp_path, source=source))


def _allowing(service: _S) -> _S:
    service.allow(r"DEBUG connection from \S+ lost")  # a client that has gone before its answer
    return service


def stay(address: Any) -> Staying:
    return Staying(dial(address))


def answered(address: Any, line: bytes = b"pid") -> Staying:
    """One whose first message was answered: the next one, where it expired between its connect and the message."""
    deadline = monotonic() + HUNG
    while True:
        client = stay(address)
        with contextlib.suppress(ConnectionError):
            client.send(line)
        if client.answer_or_end() is not None:
            return client
        client.close()
        assert monotonic() < deadline, "hung: nobody is answered"


@contextlib.contextmanager
def staying(address: Any, count: int) -> Iterator[list[Staying]]:
    """So many of them, open for the block."""
    with contextlib.ExitStack() as stack:
        yield [stack.enter_context(stay(address)) for _ in range(count)]


def counted(service: Service) -> dict[str, int]:
    """What the service says of its connections now: by state, by the reason for which they ended, `moves`. Zero is
    left out."""
    found = get(os.path.relpath(service.directory / METRICS)).samples
    states = labelled(found, "prefork_connections")
    reasons = labelled(found, "prefork_connections_closed_total")
    moves = sum(labelled(found, "prefork_connection_moves_total").values())
    return {name: int(value) for name, value in {**states, **reasons, "moves": moves}.items() if value}


def wait_counted(service: Service, **wanted: int) -> dict[str, int]:
    """Until it says this of each of these names; then all that it says."""
    deadline = monotonic() + HUNG
    while True:
        found = counted(service)
        if all(found.get(name, 0) == value for name, value in wanted.items()):
            return found
        assert monotonic() < deadline, f"hung: {found}, not {wanted}"
        sleep(LOOK_EVERY_S)  # a poll: nothing tells


def holder(service: Service) -> int:
    """The pid of the process that has the idle connections."""
    deadline = monotonic() + HUNG
    while monotonic() < deadline:
        for child in psutil.Process(service.pid).children():
            with contextlib.suppress(psutil.Error, IndexError):
                if child.cmdline()[0].startswith("prefork: holder"):
                    return child.pid
    raise AssertionError("hung: there is no holder")


@dataclass
class Ledger:
    """What became of a crowd's connections and messages, as the clients saw it."""

    opened: int = 0
    answered: int = 0
    cut: int = 0  # connections that ended while an answer was awaited
    wrong: Counter[str] = field(default_factory=Counter)
    slowest: float = 0.0

    def add(self, other: "Ledger") -> None:
        self.opened += other.opened
        self.answered += other.answered
        self.cut += other.cut
        self.wrong.update(other.wrong)
        self.slowest = max(self.slowest, other.slowest)


class Crowd:
    """Clients that keep their connections, in few threads of this process; each sends a message, waits for its answer,
    pauses, and opens another connection where its own was cut. At the end of the block they close them all."""

    def __init__(self, address: Any, connections: int, rng: random.Random, *, threads: int = 4, pause: float = 0.1):
        self.ledger = Ledger()
        self._address, self._pause = address, pause
        self._stop = threading.Event()
        self._answers = threading.Semaphore(0)
        self._ledgers = [Ledger() for _ in range(threads)]
        share = connections // threads
        self._threads = [
            threading.Thread(target=self._run, args=(ledger, share, random.Random(rng.random())), name="crowd")
            for ledger in self._ledgers
        ]

    def wait_answered(self, count: int) -> None:
        """Until so many more messages have been answered."""
        for _ in range(count):
            assert self._answers.acquire(timeout=HUNG), "hung: no answer comes"

    def _run(self, ledger: Ledger, share: int, rng: random.Random) -> None:
        clients: list[Staying | None] = [None] * share
        while not self._stop.is_set():
            at = rng.randrange(share)
            clients[at] = self._one(ledger, clients[at])
            if rng.random() < self._pause:
                self._stop.wait(rng.uniform(0, 0.1))  # past the time for which one lingers, now and then
        for client in filter(None, clients):  # one that was cut while it was idle is seen now
            if last := self._one(ledger, client):
                last.close()

    def _one(self, ledger: Ledger, client: Staying | None) -> Staying | None:
        """One message; the connection on which the next one goes."""
        began = monotonic()
        try:
            if client is None:
                client = stay(self._address)
                ledger.opened += 1
            client.say()
        except (OSError, AssertionError) as exc:
            if client is None:
                ledger.wrong[f"connect: {exc!r}"] += 1
                return None
            client.close()
            if "closed before the answer had ended: b''" in str(exc) or isinstance(exc, ConnectionError):
                ledger.cut += 1
            else:
                ledger.wrong[repr(exc)] += 1
            return None
        ledger.answered += 1
        ledger.slowest = max(ledger.slowest, monotonic() - began)
        self._answers.release()
        return client

    def stop(self) -> Ledger:
        if not self._stop.is_set():
            self._stop.set()
            for thread, ledger in zip(self._threads, self._ledgers, strict=True):
                thread.join(2 * HUNG)
                assert not thread.is_alive(), "hung: a client does not end"
                self.ledger.add(ledger)
        return self.ledger

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None) -> None:
        self.stop()


def quiet(*clients: Staying) -> bool:
    """Whether none of these has been sent anything, or has been closed."""
    return not heard_of(*clients)


def heard_of(*clients: Staying) -> list[Staying]:
    """Those of these that have been sent something, or have been closed."""
    poll = select.poll()  # many: select() has 1024
    for client in clients:
        poll.register(client.sock, select.POLLIN)
    ready = {number for number, _ in poll.poll(0)}
    return [client for client in clients if client.sock.fileno() in ready]
