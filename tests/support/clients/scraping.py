"""Scrapes of a service under test: one question over HTTP, the samples of an answer, and a scraper that never stops.

Runs in the test's process, over plain sockets, so that a test sees every byte and decides how slowly it goes.
"""

import socket
import threading
from dataclasses import dataclass, field
from time import monotonic
from types import TracebackType
from typing import Any, Self

from tests.support.clients.connections import dial

HUNG = 30.0  # seconds; never reached unless something hangs
GROWS = ("_total", "_count", "_bucket", "_sum")


@dataclass(frozen=True)
class Answer:
    """All that came back, until the server closed."""

    status: int
    headers: dict[str, str]  # names in small letters
    body: bytes

    @property
    def samples(self) -> dict[str, float]:
        """Of a scrape that is good and whole; else ValueError."""
        length = int(self.headers.get("content-length", len(self.body)))
        if self.status != 200 or len(self.body) != length:
            raise ValueError(f"no scrape: status {self.status}, {len(self.body)} of {length} bytes")
        return samples(self.body.decode())


def get(address: Any, path: str = "/metrics", *, method: str = "GET", **headers: str) -> Answer:
    """One request; `accept_encoding="gzip"` is a header."""
    lines = [f"{method} {path} HTTP/1.1", *(f"{name.replace('_', '-')}: {value}" for name, value in headers.items())]
    with dial(address) as sock:
        sock.sendall("\r\n".join([*lines, "", ""]).encode())
        return read_answer(sock)


def read_answer(sock: socket.socket) -> Answer:
    answer = b"".join(iter(lambda: sock.recv(65536), b""))
    head, _, body = answer.partition(b"\r\n\r\n")
    first, *lines = head.decode("latin-1").split("\r\n")
    pairs = (line.partition(":") for line in lines)
    return Answer(int(first.split()[1]) if first else 0, {name.lower(): text.strip() for name, _, text in pairs}, body)


def samples(text: str) -> dict[str, float]:
    """Every sample of a scrape, by name and labels as they stand there."""
    lines = (line.rpartition(" ") for line in text.splitlines() if line and not line.startswith("#"))
    return {name: float(value) for name, _, value in lines}


def total(found: dict[str, float], name: str) -> float:
    """Over all label sets of one name, which must be there."""
    values = [value for sample, value in found.items() if sample.partition("{")[0] == name]
    assert values, f"there is no {name}"
    return sum(values)


def labelled(found: dict[str, float], name: str) -> dict[str, float]:
    """The samples of one name that are not zero, by their last label's value."""
    return {
        sample.rpartition('="')[2].rstrip('"}'): value
        for sample, value in found.items() if value and sample.startswith(name + "{")
    }  # fmt: skip


@dataclass
class Scraper:
    """Scrapes again and again until the end of the block, and notes every total that fell or went away."""

    address: Any
    scrapes: int = 0
    falls: list[str] = field(default_factory=list)
    failed: list[str] = field(default_factory=list)
    slowest: float = 0.0
    last: dict[str, float] = field(default_factory=dict)

    def look(self) -> dict[str, float]:
        began = monotonic()
        found = get(self.address).samples
        self.slowest = max(self.slowest, monotonic() - began)
        for name, before in self.last.items():
            if name.partition("{")[0].endswith(GROWS) and not found.get(name, -1.0) >= before:
                self.falls.append(f"scrape {self.scrapes}: {name} {before!r} -> {found.get(name)!r}")
        self.scrapes += 1
        self.last = found
        return found

    def _run(self) -> None:
        while not self._stop.is_set():
            try:
                self.look()
            except (OSError, ValueError) as exc:
                self.failed.append(repr(exc))

    def __enter__(self) -> Self:
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="scraper")
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None) -> None:
        self._stop.set()
        self._thread.join(HUNG)
        assert not self._thread.is_alive(), "hung: a scrape does not end"
