"""How long a request takes, in an open loop: requests are due at times that were drawn before, whoever answers.

Each is counted from the moment at which it was *due*, not from when a client got round to it: a server that stalls is
not spared the requests that would have come meanwhile (no coordinated omission). One client process has them all in
hand, as many at once as are due. Contenders run one at a time, in rounds: clients and servers share the CPUs, and a
latency is wall time, so the figures are of this machine and compare nothing with others.
"""

import contextlib
import errno
import random
import selectors
import socket
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from statistics import median, quantiles

from .contenders import Contender, started
from .figures import table
from .traffic import LINE, Address, WrongAnswer

RATES = (250, 1000, 3000)  # requests a second
HUNG_S = 30.0
WANTED = ("bare loop", "pool", "pool, threads", "standard threading", "asyncio, protocol", "uvloop, protocol")


@dataclass
class Latency:
    """Of one contender at one rate, in ms: the median of the rounds."""

    contender: str
    rate: int
    requests: int
    p50: float
    p99: float
    p999: float
    worst: float


@dataclass
class _Asked:
    sock: socket.socket
    due: float
    answer: bytes = b""
    asked: bool = field(default=False)


def open_loop(address: Address, rate: int, seconds: float, seed: int) -> list[float]:
    """Runs in a client process: how many seconds each request took from when it was due."""
    draw, at = random.Random(seed), 0.0
    due = []
    while at < seconds:
        at += draw.expovariate(rate)
        due.append(at)
    due.reverse()
    took: list[float] = []
    asked: dict[int, _Asked] = {}
    with contextlib.closing(selectors.EpollSelector()) as selector:
        began = time.perf_counter()
        while due or asked:
            now = time.perf_counter() - began
            if now > seconds + HUNG_S:
                raise WrongAnswer(f"{address} has not answered {len(asked)} requests")
            while due and due[-1] <= now:
                sock = _connecting(address)
                asked[sock.fileno()] = _Asked(sock, due.pop())
                selector.register(sock, selectors.EVENT_WRITE)
            for key, _ in selector.select(max(0.0, due[-1] - now) if due else 1.0):
                if _go_on(asked[key.fd], selector):
                    one = asked.pop(key.fd)
                    took.append(time.perf_counter() - began - one.due)
                    selector.unregister(one.sock)
                    one.sock.close()
    return took


def _connecting(address: Address) -> socket.socket:
    sock = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    sock.setblocking(False)
    if (error := sock.connect_ex(address)) not in (0, errno.EINPROGRESS):
        raise OSError(error, f"could not connect to {address}")
    return sock


def _go_on(one: _Asked, selector: selectors.BaseSelector) -> bool:
    """Return whether its answer is complete."""
    if not one.asked:
        one.asked = True
        one.sock.send(LINE)
        selector.modify(one.sock, selectors.EVENT_READ)
        return False
    if more := one.sock.recv(1024):
        one.answer += more
        return False
    if one.answer != LINE:
        raise WrongAnswer(f"{one.answer!r} was answered")
    return True


def measure(contenders: Sequence[Contender], workers: int, seconds: float, rounds: int = 3) -> list[Latency]:
    """`seconds`: of one contender at one rate, in all."""
    found: dict[tuple[str, int], list[list[float]]] = {}
    with ProcessPoolExecutor(1) as clients:
        for number in range(rounds):
            for each in contenders:
                with started([each], "recv", workers) as (server,):
                    clients.submit(open_loop, server.address, RATES[0], 0.2, 0).result()
                    for rate in RATES:
                        job = clients.submit(open_loop, server.address, rate, seconds / rounds, number + 1)
                        found.setdefault((each.name, rate), []).append(job.result())
    return [_latency(name, rate, those) for (name, rate), those in found.items()]


def _latency(name: str, rate: int, rounds: list[list[float]]) -> Latency:
    cuts = [quantiles(took, n=1000, method="inclusive") for took in rounds]
    p50, p99, p999 = (median(cut[at] for cut in cuts) * 1000 for at in (499, 989, 998))
    return Latency(name, rate, sum(map(len, rounds)), p50, p99, p999, max(map(max, rounds)) * 1000)


def report(found: Sequence[Latency]) -> Iterator[str]:
    yield "Open loop, ms from the moment a request was due (recv, Poisson arrivals)"
    head = ("latency", "requests/s", "requests", "p50", "p99", "p99.9", "worst")
    figures = ((one.p50, one.p99, one.p999, one.worst) for one in found)
    cells = [[f"{ms:.2f}" for ms in row] for row in figures]
    counts = ([one.contender, str(one.rate), str(one.requests)] for one in found)
    yield table(head, [[*first, *rest] for first, rest in zip(counts, cells, strict=True)])
