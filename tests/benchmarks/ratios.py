"""CPU time of the whole server process tree per request, as ratios to a bare loop and to the standard library's class.

All contenders of a traffic run all the time; a measurement is a burst of requests to one of them, from clients in a
closed loop, and a round measures each once under each load, in an order drawn anew, so that whatever else the machine
does hits all alike. Ratios are taken within a round. All are launched several times: two processes of the same program
differ by a tenth for as long as they live, by where their memory happens to lie. Wall time is not compared: clients and
servers share the CPUs.
"""

import random
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field

from .contenders import BARE, Contender, Started, started
from .figures import Spread, ratio, spread, table
from .meter import faults
from .traffic import LOADS, TRAFFIC, drive

WARM_UP = 30  # requests
HUNG_S = 60.0


@dataclass(frozen=True)
class Row:
    """A contender under one load; a ratio is None where there is nothing to compare with."""

    traffic: str
    load: str
    contender: str
    rounds: int
    us: Spread
    to_bare: Spread | None
    to_standard: Spread | None
    to_beside: Spread | None
    faults: Spread


@dataclass
class Costs:
    """Of one traffic under one load: µs of CPU time and page faults per request, by contender, an entry a round."""

    traffic: str
    load: str
    samples: dict[str, list[float]] = field(default_factory=dict)
    faults: dict[str, list[float]] = field(default_factory=dict)


def burst(
    clients: ProcessPoolExecutor, server: Started, number: int, seconds: float, least: int = 1
) -> tuple[float, float]:
    """One measurement, with so many clients: µs of CPU time, and page faults, per request."""
    before, missed = server.meter.usage_ns(server.pid), faults(server.pid)
    jobs = [clients.submit(drive, server.traffic, server.address, seconds, least) for _ in range(number)]
    try:
        requests = sum(job.result(HUNG_S) for job in jobs)
    except Exception as exc:
        exc.add_note(f"asked: {server.contender.name}, {server.traffic}")
        raise
    return (settled_usage_ns(server) - before) / requests / 1000, (faults(server.pid) - missed) / requests


def settled_usage_ns(server: Started) -> int:
    """The usage once the last connection has been put away: two looks 5 ms apart that hardly differ."""
    last = server.meter.usage_ns(server.pid)
    for _ in range(20):
        time.sleep(0.005)
        now = server.meter.usage_ns(server.pid)
        if now - last < 50_000:
            return now
        last = now
    return last


@dataclass(frozen=True)
class Plan:
    """How long is measured: `seconds` in all, spread over the traffic by how many contenders each has."""

    seconds: float
    launches: int
    burst_s: float
    workers: int
    seed: int = 1


def measure(contenders: Sequence[Contender], traffic: Sequence[str], plan: Plan) -> list[Costs]:
    costs = {(each, load): Costs(each, load) for each in traffic for load in LOADS}
    entered = {each: [one for one in contenders if each in one.traffic] for each in traffic}
    everyone = sum(map(len, entered.values()))
    draw = random.Random(plan.seed)
    with ProcessPoolExecutor(max(LOADS.values())) as clients:
        for _ in range(plan.launches):
            for each, those in entered.items():
                share = plan.seconds * len(those) / everyone / plan.launches
                for load, name, (us, missed) in _launch(clients, those, each, share, plan, draw):
                    costs[each, load].samples.setdefault(name, []).append(us)
                    costs[each, load].faults.setdefault(name, []).append(missed)
    return list(costs.values())


def _launch(
    clients: ProcessPoolExecutor, contenders: Sequence[Contender], traffic: str, seconds: float, plan: Plan,
    draw: random.Random,
) -> Iterator[tuple[str, str, tuple[float, float]]]:  # fmt: skip
    """Start them all and measure rounds, as many as fit and at least one: load, contender, cost."""
    deadline = time.monotonic() + seconds
    with started(contenders, traffic, plan.workers) as servers:
        for server in servers:
            burst(clients, server, max(LOADS.values()), 0, WARM_UP)
        took = 0.0
        while not took or time.monotonic() + took < deadline:
            began = time.monotonic()
            for load, number in LOADS.items():
                for server in draw.sample(servers, len(servers)):
                    yield load, server.contender.name, burst(clients, server, number, plan.burst_s)
            took = time.monotonic() - began


def rows(costs: Sequence[Costs], contenders: Sequence[Contender]) -> Iterator[Row]:
    for each in costs:
        for contender in contenders:
            if mine := each.samples.get(contender.name):
                others = (BARE, contender.standard, contender.beside)
                bare, standard, other = (
                    ratio(mine, each.samples[name]) if name in each.samples else None for name in others
                )
                missed = spread(each.faults[contender.name])
                yield Row(
                    each.traffic, each.load, contender.name, len(mine), spread(mine), bare, standard, other, missed
                )


def report(found: Sequence[Row]) -> Iterator[str]:
    """A table for each traffic and load; the columns that it has nothing for are left out."""
    columns = {"µs": "us", "÷ bare loop": "to_bare", "÷ standard": "to_standard", "÷ beside": "to_beside"}
    for traffic, load in dict.fromkeys((row.traffic, row.load) for row in found):
        those = [row for row in found if (row.traffic, row.load) == (traffic, load)]
        shown = [title for title, key in columns.items() if any(getattr(row, key) for row in those)]
        cells = [
            [row.contender, *(str(getattr(row, columns[title]) or "") for title in shown), f"{row.faults.least:.0f}"]
            for row in those
        ]
        yield f"{traffic}, {load}: {TRAFFIC[traffic]}; {those[0].rounds} rounds"
        yield (
            table([f"CPU per request, {LOADS[load]} client" + "s" * (LOADS[load] > 1), *shown, "page faults"], cells)
            + "\n"
        )
