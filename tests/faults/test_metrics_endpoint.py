"""The metrics endpoint under people who do not behave: connections stay bounded, a scrape comes, the master serves."""

import contextlib
import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import median, quantiles
from time import monotonic

import psutil
import pytest

from tests.support.clients.connections import Load, dial
from tests.support.clients.scraping import get, read_answer
from tests.support.programs.service import HUNG, Service, script
from tests.support.tools.figures import figure, ms
from tests.support.tools.proc import cpu_seconds

SCRAPES, TROUBLE_S = 400, 2.0  # at least: of a hundred the 99th percentile would be the slowest, whatever held that up
P99_S = 0.25
CONNECTIONS = 64  # of the exporter, at most
IDLE = 500
LINE = 1 << 20

# More than a socket's buffer holds, so that a slow reader is waited for.
LARGE = """
import prometheus_client
LARGE = prometheus_client.Gauge("large", "", ["what"], multiprocess_mode="max")
for number in range(1000):
    LARGE.labels("x" * 260 + str(number)).set(1)
"""

Trouble = Callable[[str], contextlib.AbstractContextManager[object]]


def exporter(master: int) -> psutil.Process:
    return next(c for c in psutil.Process(master).children() if c.cmdline()[:1] == ["prefork: exporter"])


@contextlib.contextmanager
def idle_connections(address: str) -> Iterator[None]:
    """500 connections that never ask, of which the exporter keeps as many as it likes; then 100 more every second."""
    done = threading.Event()
    with contextlib.ExitStack() as stack:
        for _ in range(IDLE):
            stack.enter_context(dial(address))

        def more() -> None:
            while not done.wait(0.01):
                stack.enter_context(dial(address))

        with _threads(more, 1, done):
            yield


@contextlib.contextmanager
def slow_readers(address: str) -> Iterator[None]:
    """20 connections that ask and then take one byte a second."""
    with contextlib.ExitStack() as stack:
        for _ in range(20):
            sock = stack.enter_context(dial(address))
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1)
            sock.sendall(b"GET /metrics HTTP/1.0\r\n\r\n")
            sock.recv(1)
        yield


@contextlib.contextmanager
def slow_writers(address: str) -> Iterator[None]:
    """40 connections that send their request a byte a second."""
    done = threading.Event()

    def drip() -> None:
        with contextlib.ExitStack() as stack:
            socks = [stack.enter_context(dial(address)) for _ in range(40)]
            for byte in b"GET /metrics HTTP/1.0":
                for sock in socks:
                    with contextlib.suppress(OSError):
                        sock.send(bytes((byte,)))
                if done.wait(1.0):
                    return

    with _threads(drip, 1, done):
        yield


@contextlib.contextmanager
def parallel_scrapes(address: str) -> Iterator[None]:
    """Another three who scrape all the time."""
    done = threading.Event()

    def scrape() -> None:
        while not done.is_set():
            assert get(address).status == 200

    with _threads(scrape, 3, done):
        yield


@contextlib.contextmanager
def posts_and_long_lines(address: str) -> Iterator[None]:
    """POST with a large body, and a request line of 1 MiB, again and again."""
    done = threading.Event()

    def send() -> None:
        for question in _endless(b"POST /metrics HTTP/1.0\r\nContent-Length: %d\r\n\r\n" % LINE + b"x" * LINE,
                                 b"GET /" + b"x" * LINE + b" HTTP/1.0\r\n\r\n"):  # fmt: skip
            if done.is_set():
                return
            with dial(address) as sock, contextlib.suppress(OSError):  # it need not read to the end
                sock.sendall(question)
                sock.shutdown(socket.SHUT_WR)
                assert read_answer(sock).status in (0, 414, 501)

    with _threads(send, 1, done):
        yield


def _endless(*questions: bytes) -> Iterator[bytes]:
    while True:
        yield from questions


@contextlib.contextmanager
def _threads(work: Callable[[], None], count: int, done: threading.Event) -> Iterator[None]:
    threads = [threading.Thread(target=work) for _ in range(count)]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        done.set()
        for thread in threads:
            thread.join(HUNG)


@pytest.mark.parametrize("trouble", [
    pytest.param(idle_connections, marks=pytest.mark.quick_faults), slow_readers, slow_writers, parallel_scrapes,
    posts_and_long_lines,
])  # fmt: skip
def test_scrapes_under_trouble(trouble: Trouble, tmp_path: Path) -> None:
    """Whatever others do at the endpoint, scrapes succeed in time, its threads are bounded, and requests are served."""
    address = str(tmp_path / "m")
    definitions = LARGE if trouble is slow_readers else ""
    with Service(tmp_path, script(definitions, max_children=2, metrics_address=address)) as service:
        service.allow("DEBUG a scrape did not end well")
        service.wait_ready(2)
        get(address)
        process = exporter(service.pid)
        times: list[float] = []
        threads, master = 0, cpu_seconds(service.pid)
        with trouble(address), Load(service.address, 1) as load:
            until = monotonic() + TROUBLE_S
            while len(times) < SCRAPES or monotonic() < until:
                began = monotonic()
                assert get(address).status == 200
                times.append(monotonic() - began)
                threads = max(threads, process.num_threads())
        master = cpu_seconds(service.pid) - master
        assert exporter(service.pid).pid == process.pid
        assert load.tally.failures == 0
        assert load.tally.answered > 0
    p99 = quantiles(times, n=100)[98]
    figure(f"{trouble.__name__}: scrape p50, p99", f"{ms(median(times))}, {ms(p99)}", ms(P99_S))
    figure(f"{trouble.__name__}: threads of the exporter", threads, CONNECTIONS + 1)
    figure(f"{trouble.__name__}: CPU of the master", f"{master:.2f} s in {sum(times):.1f} s")
    assert threads <= CONNECTIONS + 1
    assert p99 < P99_S
