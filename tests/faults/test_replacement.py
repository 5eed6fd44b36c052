"""Workers that are replaced at full load: by USR2, again and again, and by each limit they can reach."""

import itertools
import signal
from pathlib import Path
from typing import Any

import pytest

from tests.support.clients.connections import Load
from tests.support.programs.service import Fact, Service, script
from tests.support.tools.figures import figure, ms

WORKERS = 4
REPLACEMENTS = 200
SLOWEST = 1.0  # seconds
# A request leaves something behind, as a leak does.
LEAKING = """
class Handler(Who):
    kept = []
    def do_pid(self):
        self.kept.append(bytearray(1 << 18))
"""
# Samples of memory come every 10 s; once one was too large, every second.
OFTEN = """
import prefork.workers.limits
prefork.workers.limits.SAMPLE_EVERY_S = prefork.workers.limits.CONFIRM_EVERY_S = 0.1
"""
LIMITS: dict[str, tuple[str, dict[str, Any], int]] = {  # of replacements, so many are waited for
    "max_requests": ("", {"max_requests": 50}, 100),
    "max_lifetime": ("", {"max_lifetime": 0.5}, 20),
    "max_memory": (OFTEN + LEAKING, {"max_memory": 64 << 20}, 8),
}


def steps(facts: list[Fact]) -> list[tuple[int, int]]:
    """Of each turn of a pool that was once full: how many were READY, and how many it told to leave."""
    pools = [fact for fact in facts if fact["event"] == "pool"]
    full = next(index for index, pool in enumerate(pools) if pool["ready"] == WORKERS)
    left = [pool["draining"] + sum(pool["exits"].values()) for pool in pools[full:]]
    ready = [pool["ready"] for pool in pools[full:]]
    return [(now, after - before) for now, (before, after) in zip(ready[1:], itertools.pairwise(left), strict=True)]


@pytest.mark.quick_faults
def test_all_again_and_again(tmp_path: Path) -> None:
    """USR2 after USR2 under load, two hundred replacements: no connection fails, none waits for a second."""
    with Service(tmp_path, script(max_children=WORKERS)) as service:
        service.wait_ready(WORKERS)
        first = set(service.workers())
        with Load(service.address, 4) as load:
            load.wait_answered(20)
            began = service.statistics()["at"]
            for replaced in range(WORKERS, REPLACEMENTS + 1, WORKERS):
                service.signal(signal.SIGUSR2)
                service.wait_ready(WORKERS, replaced=replaced)
            took = service.statistics()["at"] - began
        assert not first & set(service.workers())
        statistics = service.settled()
        turns = steps(service.facts)
    tally = load.tally
    figure("USR2 under load: replacements", f"{statistics['exits']['replaced']} in {took:.1f} s", REPLACEMENTS)
    figure("USR2 under load: failed", f"{tally.failures} of {tally.opened}", 0)
    figure("USR2 under load: slowest answer", ms(tally.max_latency), ms(SLOWEST))
    assert statistics["exits"] == {"replaced": REPLACEMENTS}
    assert tally.failures == 0
    assert tally.max_latency < SLOWEST
    assert statistics["accepted"] == statistics["completed"] == tally.opened
    assert min(ready for ready, _ in turns) == WORKERS
    assert max(left for _, left in turns) == 1


@pytest.mark.parametrize("bases", ["PreForkingTCPServer", "PreForkingMixIn, ThreadingTCPServer"])
@pytest.mark.parametrize("limit", LIMITS)
def test_recycled_at_full_load(limit: str, bases: str, tmp_path: Path) -> None:
    """A limit reached at full load: the replacement is READY first, no two leave together, no connection fails."""
    definitions, settings, count = LIMITS[limit]
    with Service(tmp_path, script(definitions, bases=bases, max_children=WORKERS, **settings)) as service:
        service.wait_ready(WORKERS)
        with Load(service.address, 2 * WORKERS) as load:
            service.wait_pool(lambda pool: pool["exits"].get(limit, 0) >= count)
        statistics = service.settled()
        turns = steps(service.facts)
    tally = load.tally
    name = f"{bases}, {limit}"
    figure(f"{name}: recycled", statistics["exits"], f"{limit}: {count}")
    figure(f"{name}: failed", f"{tally.failures} of {tally.opened}", 0)
    figure(f"{name}: fewest READY", min(ready for ready, _ in turns), WORKERS)
    figure(f"{name}: most told to leave in one turn", max(left for _, left in turns), 1)
    assert set(statistics["exits"]) == {limit}
    assert tally.failures == 0
    assert statistics["accepted"] == statistics["completed"] == tally.opened
    assert min(ready for ready, _ in turns) == WORKERS
    assert max(left for _, left in turns) == 1
