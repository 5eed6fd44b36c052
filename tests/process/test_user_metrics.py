"""The user's own metrics with real processes and real prometheus_clients: killed, forked, the oldest, the newest."""

import mmap
import os
import random
import re
import select
import signal
import subprocess
import sys
import threading
import time
import tomllib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NoReturn

import pytest

from prefork.metrics.application import values as user_values
from prefork.metrics.application.region import Folded, Region
from prefork.metrics.application.series import Series
from prefork.metrics.application.sums import merge
from prefork.metrics.application.values import Value
from tests.support.programs.command import ROOT

HUNG = 60.0
KILLS = 200
SERIES = 300

# Every byte differs from one to the other: half of one is neither.
PATTERNS = (-1.1102230246251565e-16, 6.02214076e23)


# Killed at any moment.


def count_without_end(region: memoryview, truth: memoryview) -> NoReturn:
    """Count on ever more series, and say in `truth` what was counted, as a worker does that is never told to end."""
    user_values.begin(region)
    total = Value("counter", "all", "all_total", (), (), "All.")
    number = 0
    while True:
        path = str(number % SERIES)
        Value("counter", "hits", "hits_total", ("path",), (path,), "Hits.").inc(1)
        truth[0] += 1
        Value("gauge", "pattern", "pattern", ("path",), (path,), "", "mostrecent").set(PATTERNS[number % 2], number + 1)
        if number < SERIES:
            for suffix, le in (("_sum", ()), ("_bucket", ("1.0",)), ("_bucket", ("+Inf",))):
                Value("histogram", "h", "h" + suffix, ("path", "le")[: 1 + len(le)], (path, *le), "H.")
        total.inc(1)
        number += 1


def check(values: dict[Series, float], before: dict[Series, float]) -> None:
    """One look: no value in half, no total that fell, no histogram in part."""
    for series, value in before.items():
        assert series in values
        if series.family.kind == "counter":
            assert values[series] >= value
    patterns = {value for series, value in values.items() if series.family.name == "pattern"}
    assert patterns <= {0.0, *PATTERNS}
    assert sum(series.family.name == "h" for series in values) % 3 == 0


def total(values: dict[Series, float], name: str) -> float:
    return sum(value for series, value in values.items() if series.family.name == name)


def test_killed_at_any_moment(rng: random.Random) -> None:
    """200 workers are killed while they count: no look ever sees a value in half or a total that fell, and what was
    counted is what they counted, but for at most the one increment each had in hand."""
    dead = memoryview(mmap.mmap(-1, 1 << 20))
    folded, totals = Folded(dead), Region(dead, None)
    before: dict[Series, float] = {}
    counted = looks = 0
    for kill in range(KILLS):
        memory, truth = memoryview(mmap.mmap(-1, 1 << 18)), memoryview(mmap.mmap(-1, 4096)).cast("Q")
        region = Region(memory, str(kill % 4))
        pid = os.fork()
        if pid == 0:
            try:
                count_without_end(memory, truth)
            finally:
                os._exit(1)
        end = time.monotonic() + rng.uniform(0, 0.02)
        try:
            while time.monotonic() < end:
                merged = merge([region.copy(), totals.copy()])
                check(merged.values, before)
                before = merged.values
                looks += 1
        finally:
            os.kill(pid, signal.SIGKILL)
            status = os.waitpid(pid, 0)[1]
        assert status == signal.SIGKILL
        merged = merge([region.copy(), totals.copy()])
        check(merged.values, before)
        assert (folded.fold(region), merged.dropped, merged.rejected) == (0, 0, 0)
        before = merge([totals.copy()]).values
        hits, every = total(before, "hits"), total(before, "all")
        assert hits == total(merged.values, "hits")
        counted += truth[0]
        assert counted <= hits <= counted + kill + 1
        assert every <= hits <= every + kill + 1
    assert looks > KILLS
    assert counted > 10 * KILLS


# Forks.


def in_child(work: Callable[[], None]) -> None:
    """Run this in a process that user code forks, and wait for it. Fails where it raises or hangs."""
    pid = os.fork()
    if pid == 0:
        try:
            work()
            os._exit(0)
        finally:
            os._exit(1)
    pidfd = os.pidfd_open(pid)
    try:
        if not select.select([pidfd], [], [], HUNG)[0]:
            os.kill(pid, signal.SIGKILL)
    finally:
        os.close(pidfd)
        status = os.waitpid(pid, 0)[1]
    assert status == 0


@pytest.fixture
def region() -> Iterator[Region]:
    """The region that the values of this process are in."""
    memory = memoryview(mmap.mmap(-1, 1 << 16))
    assert user_values.adopt(memory)
    yield Region(memory, "master")
    user_values.release()


def test_child_of_a_stranger_counts_for_itself(region: Region) -> None:
    """A process that user code forks never writes into the region of the one it comes from; one of ours has its own."""
    value = Value("counter", "c", "c_total", (), (), "")
    value.inc(1)
    own = memoryview(mmap.mmap(-1, 1 << 16))

    def count() -> None:
        assert value.get() == 0
        value.inc(10)
        Value("counter", "new", "new_total", (), (), "").inc(1)
        assert value.get() == 10

    def count_as_ours() -> None:
        user_values.begin(own)
        count()

    in_child(count)
    in_child(count_as_ours)
    assert list(merge([region.copy()]).values.values()) == [1.0]
    assert sorted(merge([Region(own, "1").copy()]).values.values()) == [1.0, 10.0]


def test_fork_while_a_thread_counts(region: Region) -> None:
    """A child that is forked while another thread is in the middle of counting can count."""
    value = Value("gauge", "g", "g", (), (), "", "sum")
    counting, go_on = threading.Event(), threading.Event()

    class Slow(float):
        def __radd__(self, other: float) -> float:
            counting.set()
            go_on.wait(HUNG)
            return other + 1

    thread = threading.Thread(target=value.inc, args=(Slow(),))
    thread.start()
    assert counting.wait(HUNG)
    try:
        in_child(lambda: value.inc(1))
    finally:
        go_on.set()
        thread.join(HUNG)
    assert list(merge([region.copy()]).values.values()) == [1.0]


def test_import_prefork_leaves_prometheus_client_alone() -> None:
    """The hook imports nothing, goes away when it has done its work, and hides nothing of the module it looked at."""
    code = (
        "import prefork, sys; from prefork.metrics.application import hook, values as prometheus\n"
        "hook.install_hook(); found = len(sys.meta_path)\n"
        "assert not [name for name in sys.modules if name.startswith('prometheus_client')]\n"
        "import inspect, prometheus_client.values as values\n"
        "assert len(sys.meta_path) == found - 1\n"
        "assert values.ValueClass is prometheus.Value and 'class MutexValue' in inspect.getsource(values)\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT, timeout=HUNG)


# Contract.

EVERYTHING = r"""
before_total 0.5
change_bucket{le="-1.0"} 3.0
change_bucket{le="1.0"} 3.0
change_bucket{le="+Inf"} 3.0
change_count 3.0
duration_seconds_bucket{le="0.5",path="/"} 2.0
duration_seconds_bucket{le="1.0",path="/"} 3.0
duration_seconds_bucket{le="+Inf",path="/"} 3.0
duration_seconds_count{path="/"} 3.0
duration_seconds_sum{path="/"} 1.5
duration_seconds_bucket{le="0.5",path="/timed"} 3.0
duration_seconds_bucket{le="1.0",path="/timed"} 3.0
duration_seconds_bucket{le="+Inf",path="/timed"} 3.0
duration_seconds_count{path="/timed"} 3.0
duration_seconds_sum{path="/timed"} …
function{kind="set"} 3.0
function{kind="called"} 42.0
gauge_all{slot="1"} 1.0
gauge_all{slot="2"} 2.0
gauge_all{slot="3"} 3.0
gauge_liveall{slot="2"} 2.0
gauge_liveall{slot="3"} 3.0
gauge_livemax 3.0
gauge_livemin 2.0
gauge_livemostrecent 3.0
gauge_livesum 5.0
gauge_max 3.0
gauge_min 1.0
gauge_mostrecent 3.0
gauge_sum 6.0
hits_total{method="GET",path="/"} 16.0
hits_total{method="POST",path="/1\"\n\\é"} 1.0
hits_total{method="POST",path="/2\"\n\\é"} 2.0
hits_total{method="POST",path="/3\"\n\\é"} 3.0
late_bucket{le="1.0"} 1.0
late_bucket{le="+Inf"} 3.0
late_count 3.0
late_sum 6.0
never_total 0.0
size_bytes_count 3.0
size_bytes_sum 6.0
build_info{version="1"} 1.0
state{state="on"} 0.0
state{state="off"} 1.0
custom 7.0
"""


def oldest() -> str:
    """The oldest prometheus_client that the project says it supports."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    names: list[str] = project["dependencies"]
    return next(name.replace(">=", "==") for name in names if name.startswith("prometheus-client"))


@pytest.fixture(scope="module", params=["oldest", "newest"])
def library(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with nothing but one version of prometheus_client."""
    folder = tmp_path_factory.mktemp(request.param)
    name = oldest() if request.param == "oldest" else "prometheus-client"
    pip = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--disable-pip-version-check"]
    subprocess.run([*pip, "--target", folder, name], check=True, timeout=HUNG)
    return folder


def run(library: Path, scenario: str, **environ: str) -> "subprocess.CompletedProcess[str]":
    done = subprocess.run(
        [sys.executable, "-m", "tests.support.programs.counting", scenario],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(library)} | environ,
        capture_output=True,
        text=True,
        timeout=HUNG,
    )
    assert done.returncode == 0, done.stderr
    return done


def test_every_kind_is_summed(library: Path) -> None:
    """Each kind and mode comes out as documented, over a dead worker, two living ones and the master; what has no
    values is evaluated; what fails is said and harms nothing else."""
    done = run(library, "everything")
    lines = [line for line in done.stdout.splitlines() if not line.startswith("#")]
    timed = re.compile(r'(duration_seconds_sum{path="/timed"}) [\d.e-]+$')
    assert [timed.sub(r"\1 …", line) for line in lines] == EVERYTHING.split("\n")[1:-1]
    types = [line.split()[2:] for line in done.stdout.splitlines() if line.startswith("# TYPE")]
    assert ["hits_total", "counter"] in types
    assert ["duration_seconds", "histogram"] in types
    assert len(types) == len({name for name, _ in types})
    assert "evaluated in the exporter only, with the state of its start: build, state, function" in done.stderr
    assert done.stderr.count("WARNING") == 2
    assert "WARNING could not collect function" in done.stderr


def test_early_metrics_are_named(library: Path) -> None:
    """prometheus_client imported before us: metrics that have values already are named, once; later ones count."""
    done = run(library, "imported_early")
    assert [line for line in done.stdout.splitlines() if not line.startswith("#")] == ["late_total 3.0"]
    assert re.findall(r"WARNING could not count (.*?) over all", done.stderr) == [
        "early_counter, early_histogram, early_children"
    ]
    assert done.stderr.count("\n") == 1


def test_choice_of_the_user_stands(library: Path, tmp_path: Path) -> None:
    """With PROMETHEUS_MULTIPROC_DIR prometheus_client's own way is left alone, and we serve nothing of it."""
    done = run(library, "chosen_by_user", PROMETHEUS_MULTIPROC_DIR=str(tmp_path))
    assert done.stdout == "MmapedValue 4 files\n"
    assert "INFO the program's own metrics are not served here" in done.stderr
