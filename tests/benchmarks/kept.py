"""Connections that stay: what an idle one costs, what a message costs, and what a reload and the end do to them.

*Messages*: CPU of one, as ratios in rounds (ratios.py has the method), in four patterns: on one connection at a time,
which lingers with its worker; on many in turn, which go through the holder; and on a fresh connection each, that the
client or the server closes. *Idle*: two servers of the same kind, one with thousands of connections that are idle after
a message each, one without; bursts of an open loop over some busy connections go to one and to the other in turn, and
latencies are counted from when a message was due. Memory is the PSS of all processes of the server, before and with the
idle ones. *Reloads*: clients that keep thousands of connections, and count on each of them as the service does.

A thread per connection has fewer idle ones, and gunicorn speaks HTTP: it is compared with the same pool's HTTP.
"""

import contextlib
import random
import resource
import select
import socket
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from statistics import quantiles
from typing import Self

from . import kept_reloads
from .contenders import Contender, Started, started
from .figures import Spread, ratio, spread, table
from .kept_reloads import Reloads as Reloads
from .ratios import settled_usage_ns
from .reload import memory
from .servers.others import missing
from .traffic import BODY, LINE, Address, WrongAnswer, connected

HUNG_S = 60.0
GET = b"GET /hello HTTP/1.1\r\nHost: localhost\r\n\r\n"
IN_TURN = 64
BURST_MESSAGES = 128
FEWER = 5  # so many times fewer idle ones for a thread each
POOL, POOL_HTTP, NO_MIXIN = "pool, kept", "pool, kept, HTTP", "pool, no mix-in"
GTHREAD = ("gthread", "--worker-connections", "4000", "--keep-alive", "300")
CONTENDERS = (
    Contender(POOL, "ours.kept", ("line", "stream")),
    Contender(NO_MIXIN, "ours.pool", ("line", "stream")),
    Contender("pool, kept, threads", "ours.kept", ("line",), arguments=("threading",)),
    Contender("thread per connection", "standard.plain", ("line",), 1, arguments=("threading",)),
    Contender("asyncio, streams", "events.streams", ("line",)),
    Contender(POOL_HTTP, "ours.kept", ("http",)),
    Contender("gunicorn, gthread, HTTP", "others.gunicorn", ("http",), 1, "", GTHREAD, needs="module:gunicorn"),
)
PATTERNS = {
    "lingers": "one connection, message after message",
    "in turn": f"{IN_TURN} connections, a message on each in turn",
    "fresh": "a connection for each message, closed by the client",
    "fresh, closed": "a connection for each message, closed by the server",
}


@dataclass(frozen=True)
class Plan:
    """`rounds` of each comparison; `rate` of messages a second in all, over `busy` connections."""

    workers: int
    rounds: int = 30
    idle: int = 10_000
    busy: int = 50
    rate: int = 500
    burst_s: float = 0.5
    kept: int = 5_000
    reloads: int = 20

    def brief(self) -> Self:
        """Return the plan of a short run."""
        return replace(self, rounds=5, idle=500, rate=200, burst_s=0.2, kept=200, reloads=2)


@dataclass(frozen=True)
class Message:
    """CPU of a message, µs; `times` is the ratio to the pool with the mix-in."""

    contender: str
    pattern: str
    rounds: int
    us: Spread
    times: Spread


@dataclass(frozen=True)
class Idle:
    """With so many idle connections, and without; latencies in ms, CPU in µs of a message, memory in KiB of each."""

    contender: str
    idle: int
    kib: float
    p50: tuple[float, float]  # without, with
    p99: tuple[float, float]
    us: tuple[float, float]


# Messages. What is below `_open` runs in a client process, which keeps its connections from one burst to the next.

_open: dict[tuple[Address, int], list[socket.socket]] = {}


def keeps(address: Address, count: int) -> list[socket.socket]:
    """Connections of this process to a server, opened when first asked for."""
    if (address, count) not in _open:
        _open[address, count] = [connected(address) for _ in range(count)]
    return _open[address, count]


def leave() -> None:
    for those in _open.values():
        for sock in those:
            sock.close()
    _open.clear()


def exchange(sock: socket.socket, traffic: str) -> None:
    sock.sendall(GET if traffic == "http" else LINE)
    end = BODY if traffic == "http" else LINE
    answer = b""
    while not answer.endswith(end):
        if not (more := sock.recv(4096)):
            raise WrongAnswer(f"{answer!r} was answered")
        answer += more


def say(address: Address, traffic: str, pattern: str, messages: int) -> int:
    if pattern.startswith("fresh"):
        for _ in range(messages):
            with connected(address) as sock:
                exchange(sock, traffic)
                if pattern == "fresh, closed" and sock.recv(1):
                    raise WrongAnswer("it was not closed")
        return messages
    those = keeps(address, 1 if pattern == "lingers" else IN_TURN)
    for number in range(messages):
        exchange(those[number % len(those)], traffic)
    return messages


def entered() -> Iterator[tuple[str, str, list[Contender]]]:
    """The patterns, each with its traffic and who is measured in it."""
    there = [each for each in CONTENDERS if not missing(each.needs)]
    for pattern in PATTERNS:
        for traffic in ("line", "http") if not pattern.startswith("fresh") else ("line",):
            own = "stream" if pattern == "fresh, closed" else traffic
            those = [each for each in there if own in each.traffic]
            yield pattern, own, [each for each in those if each.name != NO_MIXIN or pattern.startswith("fresh")]


def measure_messages(plan: Plan) -> list[Message]:
    samples: dict[tuple[str, str], dict[str, list[float]]] = {}
    draw = random.Random(1)
    with ProcessPoolExecutor(1) as client:
        for pattern, traffic, contenders in entered():
            found = samples.setdefault((pattern, traffic), {})
            with started(contenders, traffic, plan.workers) as servers:
                for _ in range(plan.rounds):
                    for server in draw.sample(servers, len(servers)):
                        before = server.meter.usage_ns(server.pid)
                        told = client.submit(say, server.address, traffic, pattern, BURST_MESSAGES)
                        messages = told.result(HUNG_S)
                        us = (settled_usage_ns(server) - before) / messages / 1000
                        found.setdefault(server.contender.name, []).append(us)
                client.submit(leave).result(HUNG_S)
    return [
        _message(name, pattern, those, found)
        for (pattern, _), found in samples.items()
        for name, those in found.items()
    ]


def _message(name: str, pattern: str, those: list[float], found: dict[str, list[float]]) -> Message:
    ours = found[POOL if POOL in found else POOL_HTTP]
    return Message(name, pattern, len(those), spread(those), ratio(those, ours))


# Idle connections.


def busy(address: Address, traffic: str, connections: int, rate: int, seconds: float, seed: int) -> list[float]:
    """Runs in a client process: how many seconds each message took from when it was due, in an open loop. One that is
    due while every connection waits for an answer waits, too."""
    draw, at = random.Random(seed), 0.0
    due: list[float] = []
    while (at := at + draw.expovariate(rate)) < seconds:
        due.append(at)
    due.reverse()
    free = {sock.fileno(): sock for sock in keeps(address, connections)}
    asked: dict[int, tuple[socket.socket, float, bytes]] = {}
    end, question = (BODY, GET) if traffic == "http" else (LINE, LINE)
    took: list[float] = []
    with contextlib.closing(select.epoll()) as epoll:
        for number in free:
            epoll.register(number, select.EPOLLIN)
        began = time.perf_counter()
        while due or asked:
            now = time.perf_counter() - began
            if now > seconds + HUNG_S:
                raise WrongAnswer(f"{address} has not answered {len(asked)} messages")
            while due and due[-1] <= now and free:
                sock = free.pop(draw.choice(list(free)))
                asked[sock.fileno()] = sock, due.pop(), b""
                sock.sendall(question)
            for number, _ in epoll.poll(max(0.0, due[-1] - now) if due and free else 1.0):
                sock, was_due, answer = asked[number]
                if not (more := sock.recv(4096)):
                    raise WrongAnswer(f"{address} has closed a connection that was to be kept")
                asked[number] = sock, was_due, answer + more
                if (answer + more).endswith(end):
                    took.append(time.perf_counter() - began - was_due)
                    free[number] = asked.pop(number)[0]
    return took


def measure_idle(plan: Plan) -> list[Idle]:
    found = []
    for each in CONTENDERS:
        if each.name != NO_MIXIN and not missing(each.needs):
            count = plan.idle // (FEWER if each.name == "thread per connection" else 1)
            traffic = each.traffic[0]
            with started([each, each], traffic, plan.workers) as servers, contextlib.ExitStack() as stack:
                found.append(_idle(each, traffic, count, plan, servers, stack))
    return found


def _idle(
    contender: Contender, traffic: str, count: int, plan: Plan, servers: Sequence[Started], stack: contextlib.ExitStack
) -> Idle:
    """Idle connections at the second server, and bursts at both in turn."""
    took: list[list[float]] = [[], []]
    used: list[list[float]] = [[], []]
    with ProcessPoolExecutor(1) as client:
        for server in servers:
            client.submit(busy, server.address, traffic, plan.busy, plan.rate, 1.0, 0).result(HUNG_S)
        time.sleep(0.5)
        before = memory(servers[1].pid)
        for _ in range(count):
            sock = stack.enter_context(connected(servers[1].address))
            exchange(sock, traffic)
        time.sleep(0.5)
        kib = (memory(servers[1].pid) - before) * 1024 / count
        draw = random.Random(1)
        for number in range(1, plan.rounds + 1):
            for which in draw.sample((0, 1), 2):
                server = servers[which]
                usage = server.meter.usage_ns(server.pid)
                job = client.submit(busy, server.address, traffic, plan.busy, plan.rate, plan.burst_s, number)
                those = job.result(2 * HUNG_S)
                used[which].append((settled_usage_ns(server) - usage) / max(1, len(those)) / 1000)
                took[which] += those
        client.submit(leave).result(HUNG_S)
    cuts = [quantiles(those, n=100, method="inclusive") for those in took]
    return Idle(
        contender.name, count, kib, (cuts[0][49] * 1000, cuts[1][49] * 1000), (cuts[0][98] * 1000, cuts[1][98] * 1000),
        (spread(used[0]).least, spread(used[1]).least),
    )  # fmt: skip


def measure(plan: Plan) -> list[Message | Idle | Reloads]:
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    if plan.idle + 200 > hard:
        raise RuntimeError(f"{plan.idle} idle connections need a descriptor limit above {hard}")
    return [
        *measure_messages(plan),
        *measure_idle(plan),
        kept_reloads.measure(plan.workers, plan.kept, plan.reloads, plan.idle),
    ]


def report(found: Sequence[Message | Idle | Reloads]) -> Iterator[str]:
    messages = [each for each in found if isinstance(each, Message)]
    for pattern, what in PATTERNS.items():
        yield f"kept, {pattern}: {what}; {messages[0].rounds} rounds"
        order = [each.name for each in CONTENDERS]
        those = sorted(
            (each for each in messages if each.pattern == pattern), key=lambda each: order.index(each.contender)
        )
        rows = [[each.contender, str(each.us), str(each.times)] for each in those]
        yield table(("CPU per message", "µs", "÷ pool, kept"), rows) + "\n"
    idle = [each for each in found if isinstance(each, Idle)]
    yield "kept, idle: without and with idle connections beside the busy ones, open loop"
    head = ("idle", "connections", "KiB each", "p50, ms", "p99, ms", "CPU of a message, µs")
    yield table(head, [
        [each.contender, str(each.idle), f"{each.kib:.2f}", _two(each.p50, 2), _two(each.p99, 2), _two(each.us, 0)]
        for each in idle
    ]) + "\n"  # fmt: skip
    for each in found:
        if isinstance(each, Reloads):
            yield kept_reloads.report(each)


def _two(pair: tuple[float, float], digits: int) -> str:
    without, beside = pair
    return f"{without:.{digits}f} → {beside:.{digits}f}"
