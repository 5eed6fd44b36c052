"""The edge: what TLS, PROXY headers, limits and socket options cost a connection, beside the same pool without.

Each is a pool of its own that runs all the time, with clients that speak as they must; a round measures each once, in
an order drawn anew, and ratios are taken within a round, as in ratios.py. `pool again` is the same once more: what it
differs by is noise.
"""

import contextlib
import json
import random
import tempfile
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.support.tools.certificates import CERTIFICATE, KEY, make_certificate

from .contenders import POOL, Contender, Started, started
from .figures import Spread, ratio, spread, table
from .ratios import Plan, burst
from .traffic import EDGE, LOADS

WARM_UP = 30  # requests
SETTINGS: dict[str, tuple[str, dict[str, Any]]] = {
    POOL: ("recv", {}),
    f"{POOL} again": ("recv", {}),
    "allowed_clients": ("recv", {"allowed_clients": "127.0.0.0/8, 10.0.0.0/8"}),
    "max_queue_wait": ("recv", {"max_queue_wait": 10.0}),
    "first_byte_timeout": ("recv", {"first_byte_timeout": 10.0}),
    "max_connections": ("recv", {"max_connections": 1000}),
    "max_connections_per_client": ("recv", {"max_connections_per_client": 1000}),
    "options of the socket": (
        "recv", {"tcp_keepalive": 60.0, "tcp_nodelay": True, "receive_buffer": 1 << 17, "send_buffer": 1 << 17},
    ),
    "PROXY, version 1": ("proxied, v1", {"proxy_trusted": "127.0.0.1"}),
    "PROXY, version 2": ("proxied, v2", {"proxy_trusted": "127.0.0.1"}),
    "TLS 1.3, resumed": ("resumed", {"tls_certificate": CERTIFICATE, "tls_key": KEY}),
    "TLS 1.3": ("tls", {"tls_certificate": CERTIFICATE, "tls_key": KEY}),
}  # fmt: skip


@dataclass(frozen=True)
class Edge:
    """A setting under one load; `times` is the ratio to the pool without."""

    setting: str
    load: str
    rounds: int
    us: Spread
    times: Spread


def contenders(folder: str) -> Iterator[tuple[str, Contender]]:
    """The traffic and the contender of each setting. The certificate lies in the folder."""
    for name, (traffic, settings) in SETTINGS.items():
        there = {key: f"{folder}/{value}" if key.startswith("tls_") else value for key, value in settings.items()}
        yield traffic, Contender(name, "ours.edge", (traffic,), arguments=(json.dumps(there),))


def measure(plan: Plan) -> list[Edge]:
    samples: dict[tuple[str, str], list[float]] = {(name, load): [] for load in LOADS for name in SETTINGS}
    draw = random.Random(plan.seed)
    with tempfile.TemporaryDirectory() as folder, ProcessPoolExecutor(max(LOADS.values())) as clients:
        make_certificate(Path(folder))
        for _ in range(plan.launches):
            with contextlib.ExitStack() as stack:
                servers = [
                    stack.enter_context(started([each], traffic, plan.workers))[0]
                    for traffic, each in contenders(folder)
                ]
                _rounds(clients, servers, plan, draw, samples)
    return [
        Edge(name, load, len(those), spread(those), ratio(those, samples[POOL, load]))
        for (name, load), those in samples.items()
    ]


def _rounds(
    clients: ProcessPoolExecutor, servers: Sequence[Started], plan: Plan, draw: random.Random,
    samples: dict[tuple[str, str], list[float]],
) -> None:  # fmt: skip
    for server in servers:
        burst(clients, server, max(LOADS.values()), 0, WARM_UP)
    deadline, took = time.monotonic() + plan.seconds / plan.launches, 0.0
    while not took or time.monotonic() + took < deadline:
        began = time.monotonic()
        for load, number in LOADS.items():
            for server in draw.sample(servers, len(servers)):
                samples[server.contender.name, load].append(burst(clients, server, number, plan.burst_s)[0])
        took = time.monotonic() - began


def report(found: Sequence[Edge]) -> Iterator[str]:
    for load in dict.fromkeys(each.load for each in found):
        those = [each for each in found if each.load == load]
        yield f"edge, {load}: a TCP connection for each line; {those[0].rounds} rounds"
        head = (f"CPU per connection, {LOADS[load]} client" + "s" * (LOADS[load] > 1), "µs", "÷ pool", "µs more")
        least = those[0].us.least
        yield table(head, [[e.setting, str(e.us), str(e.times), f"{e.us.least - least:.1f}"] for e in those]) + "\n"
    yield "; ".join(f"{name}: {what}" for name, what in EDGE.items())
