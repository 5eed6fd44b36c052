"""A program that counts with prometheus_client in a master and in workers, and prints what a scrape would say.

Run by the tests under several versions of prometheus_client: `python -m tests.support.programs.counting SCENARIO`.
Forks like the service does, but by hand: a region each, one worker dead and folded, the others alive.
"""

import logging
import mmap
import os
import sys
from collections.abc import Callable
from typing import Any

if sys.argv[1:] == ["imported_early"]:
    from prometheus_client import Counter, Gauge, Histogram

    Counter("early_counter", "").inc()
    Histogram("early_histogram", "")
    Counter("early_without_children", "", ["path"])
    Gauge("early_children", "", ["path"]).labels("early").inc()

import prefork  # noqa: F401  # which leaves the hook
from prefork.metrics.application import values as user_values
from prefork.metrics.application.hook import VALUES
from prefork.metrics.application.region import FOLDED_BYTES, REGION_BYTES, Folded, Glance, Region
from prefork.metrics.application.sums import merge

GAUGE_MODES = ["all", "liveall", "sum", "livesum", "min", "livemin", "max", "livemax", "mostrecent", "livemostrecent"]
WORKERS = 3


def scrape(copies: list[Glance]) -> None:
    """Print what the exporter would serve."""
    from prometheus_client import CollectorRegistry, generate_latest
    from prometheus_client.openmetrics.exposition import generate_latest as generate_openmetrics

    from prefork.metrics.application.exposition import application_families

    class Once:
        def collect(self) -> Any:
            return application_families(merge(copies))

    registry = CollectorRegistry()
    registry.register(Once())
    print(generate_latest(registry).decode(), end="")
    assert generate_openmetrics(registry).endswith(b"# EOF\n")  # type: ignore[no-untyped-call]


def in_workers(work: Callable[[int], None]) -> list[Glance]:
    """Run `work(number)` in workers, of which the first is dead and the others are alive when they are read."""
    regions = []
    master, totals = memoryview(mmap.mmap(-1, REGION_BYTES)), memoryview(mmap.mmap(-1, FOLDED_BYTES))
    assert user_values.adopt(master)
    if VALUES in sys.modules:
        from prefork.metrics.application.exposition import say_what_is_not_served

        say_what_is_not_served()
    for number in range(1, WORKERS + 1):
        memory = memoryview(mmap.mmap(-1, REGION_BYTES))
        regions.append(Region(memory, str(number)))
        pid = os.fork()
        if pid == 0:
            user_values.begin(memory)
            work(number)
            os._exit(0)
        assert os.waitpid(pid, 0)[1] == 0
    Folded(totals).fold(regions[0])
    youngest_first = [*reversed(regions[1:]), Region(master, "master")]
    return [region.copy() for region in (*youngest_first, Region(totals, None))]


def everything() -> None:
    """Every kind, in master and workers."""
    assert "prometheus_client" not in sys.modules
    from prometheus_client import REGISTRY, Counter, Enum, Gauge, Histogram, Info, Summary, core, values

    assert values.ValueClass is user_values.Value
    assert values.__loader__ is values.__spec__.loader is not None

    hits = Counter("hits", "Hits.", ["path", "method"])
    hits.labels("/", "GET").inc(10)  # in the master, before the fork: counts once
    before = Counter("before", "Counted in the master only.")
    before.inc(0.5)
    Counter("never", "Counted by nobody.")
    gauges = [Gauge(f"gauge_{mode}", "A gauge.", multiprocess_mode=mode) for mode in GAUGE_MODES]  # type: ignore[arg-type]
    duration = Histogram("duration", "Durations.", ["path"], unit="seconds", buckets=(0.5, 1))
    change = Histogram("change", "With negative ones.", buckets=(-1, 1))
    size = Summary("size_bytes", "Sizes.")
    Info("build", "About the build.").info({"version": "1"})
    Enum("state", "The state.", states=["on", "off"]).state("off")
    function = Gauge("function", "A function.", ["kind"], multiprocess_mode="sum")
    function.labels("called").set_function(lambda: 42)
    function.labels("broken").set_function(lambda: 1 / 0)

    class Custom:
        def describe(self) -> Any:
            return []  # else the registry collects at once

        def collect(self) -> Any:
            yield core.GaugeMetricFamily("custom", "A collector.", value=7)
            yield core.GaugeMetricFamily("hits", "A name that is taken.", value=7)

    class Broken(Custom):
        def collect(self) -> Any:
            raise OSError("broken")

    REGISTRY.register(Custom())
    REGISTRY.register(Broken())

    def work(number: int) -> None:
        hits.labels("/", "GET").inc()
        hits.labels(method="POST", path=f'/{number}"\n\\é').inc(number)  # a label that only this worker has
        for gauge in gauges:
            gauge.set(number)
        duration.labels("/").observe(0.25 * number)
        change.observe(-number)
        size.observe(number)
        function.labels("set").inc()
        Histogram("late", "Built in the worker.", buckets=(1,)).observe(number)
        assert hits.labels("/", "GET")._value.get() == 1
        with duration.labels("/timed").time(), gauges[2].track_inprogress():
            pass
        hits.labels("/", "GET").inc(1, exemplar={"trace": "x"})
        strangers_child()

    def strangers_child() -> None:
        """A process that user code forks counts for itself."""
        pid = os.fork()
        if pid == 0:
            hits.labels("/", "GET").inc(1000)
            os._exit(0)
        os.waitpid(pid, 0)

    copies = in_workers(work)
    scrape(copies)


def imported_early() -> None:
    """Metrics that were built before prefork was imported (above), and after."""
    from prometheus_client import Counter

    late = Counter("late", "")
    scrape(in_workers(lambda number: late.inc()))


def chosen_by_user() -> None:
    """PROMETHEUS_MULTIPROC_DIR is set."""
    from prometheus_client import Counter, values

    hits = Counter("hits", "")
    copies = in_workers(lambda number: hits.inc())
    scrape(copies)
    print(values.ValueClass.__name__, len(os.listdir(os.environ["PROMETHEUS_MULTIPROC_DIR"])), "files")


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(message)s", stream=sys.stderr)
    {"everything": everything, "imported_early": imported_early, "chosen_by_user": chosen_by_user}[sys.argv[1]]()
