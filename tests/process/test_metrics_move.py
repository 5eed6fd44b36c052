"""Every metric of the table, moved in a real service by what it is there for, and read from a real scrape.

Each test says by `@moves(...)` which names move in it, by `@shows(...)` which stay, and its scrapes are held against
that; the last one holds these lists against the table.
"""

import contextlib
import functools
import os
import signal
import socket
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import psutil
import pytest

import prefork
from prefork.metrics.collector import METRIC_TABLE
from tests.support.clients.connections import Load, ask, free_ports
from tests.support.clients.controlling import ctl
from tests.support.clients.keeping import holder, staying
from tests.support.clients.scraping import HUNG, get, labelled, total
from tests.support.programs.served import RELOADS
from tests.support.programs.service import Service, script
from tests.support.tools.certificates import CERTIFICATE, KEY, make_certificate
from tests.support.tools.proc import datagrams, no_descriptor_left, nothing_for

pytestmark = pytest.mark.once  # nothing of it is the interpreter's

Samples = dict[str, float]
QUEUED = 3
WAIT = 0.2  # seconds

_seen: set[str] = set()
_scrapes: list[Samples] = []  # of the test that runs
_KINDS = {row.name: row.kind for row in METRIC_TABLE}
_SUFFIXES = {"gauge": ("",), "counter": ("_total",), "histogram": ("_bucket", "_count", "_sum")}

Test = Callable[..., None]


def moves(*names: str) -> Callable[[Test], Test]:
    """These, without their prefix, move in the test: two of its scrapes differ in them."""
    return _held(names, lambda looks: any(look != looks[0] for look in looks))


def shows(*names: str) -> Callable[[Test], Test]:
    """These are constant, and there in every scrape of the test."""
    return _held(names, lambda looks: all(looks) and all(look == looks[0] for look in looks))


def _held(names: Iterable[str], true: Callable[[list[Samples]], bool]) -> Callable[[Test], Test]:
    whole = {f"prefork_{name}" for name in names}
    _seen.update(whole)

    def held(test: Test) -> Test:
        @functools.wraps(test)
        def run(*args: Any, **kwargs: Any) -> None:
            _scrapes.clear()
            test(*args, **kwargs)
            assert {name for name in whole if not true([_of_metric(found, name) for found in _scrapes])} == set()

        return run

    return held


def _of_metric(found: Samples, name: str) -> Samples:
    """The samples of a metric, whatever its kind appends to the name."""
    served = {name + suffix for suffix in _SUFFIXES[_KINDS[name]]}
    return {sample: value for sample, value in found.items() if sample.partition("{")[0] in served}


def service(tmp_path: Path, definitions: str = "", **settings: Any) -> Service:
    source = script(definitions, **{"max_children": 2, "metrics_address": "m", **settings})
    return Service(tmp_path, source, env={RELOADS: "1"})


def scrape(running: Service) -> Samples:
    return scrape_at(os.path.relpath(running.directory / "m"))


def scrape_at(address: Any) -> Samples:
    _scrapes.append(get(address).samples)
    return _scrapes[-1]


def scrape_until(running: Service, true: Callable[[Samples], bool]) -> Samples:
    """The first scrape of which this is true, each after a turn of the master."""
    deadline = time.monotonic() + HUNG
    while not true(found := scrape(running)):
        assert time.monotonic() < deadline, f"hung: {found}"
        running.statistics()
    return found


def of(found: Samples, name: str) -> Samples:
    return labelled(found, f"prefork_{name}")


@shows("build_info", "start_time_seconds")
def test_identity(tmp_path: Path) -> None:
    """The version that runs, and when the master started."""
    began = time.time()
    with service(tmp_path) as running:
        running.wait_ready(2)
        found = scrape(running)
    (build,) = (name for name in found if name.startswith("prefork_build_info{"))
    assert f'version="{prefork.__version__}"' in build
    assert found[build] == 1
    assert began <= found["prefork_start_time_seconds"] <= time.time()


@shows("listen_queue_limit")
@moves("workers", "lanes_busy", "requests_in_flight", "oldest_request_age_seconds", "saturated_seconds",
       "listen_queue_length", "listen_queue_length_max", "queue_wait_seconds",
       "connections_accepted", "requests", "request_duration_seconds")  # fmt: skip
def test_a_full_pool(tmp_path: Path) -> None:
    """Every worker busy and a queue behind them; then all is served, and what was remains as totals and a maximum."""
    with service(tmp_path, request_queue_size=9) as running, contextlib.ExitStack() as stack:
        running.wait_ready(2)
        before = scrape(running)
        held = [stack.enter_context(running.hold()) for _ in range(2)]
        waiting = [stack.enter_context(running.connect()) for _ in range(QUEUED)]
        waited = nothing_for(WAIT, *(client.sock for client in waiting))
        full = scrape_until(running, lambda found: found["prefork_saturated_seconds_total"] >= WAIT)
        for client in (*held, *waiting):
            client.close()
        with running.hold():  # after them
            pass
        running.settled()
        after = scrape(running)
    assert of(before, "workers") == {"idle": 2}
    assert of(full, "workers") == {"busy": 2}
    assert full["prefork_lanes"] == full["prefork_lanes_busy"] == total(full, "prefork_requests_in_flight") == 2
    assert WAIT <= full["prefork_oldest_request_age_seconds"] < HUNG
    assert before["prefork_oldest_request_age_seconds"] == 0
    length, limit, most = (f"prefork_listen_queue_{name}" for name in ("length", "limit", "length_max"))
    assert [total(found, length) for found in (before, full, after)] == [0, QUEUED, 0]
    assert [total(found, limit) for found in (before, full, after)] == [9, 9, 9]
    assert [total(found, most) for found in (full, after)] == [QUEUED, QUEUED]
    assert total(after, "prefork_connections_accepted_total") == 2 + QUEUED + 1
    assert of(after, "requests_total") == {"ok": 2 + QUEUED + 1}
    assert total(after, "prefork_request_duration_seconds_count") == 2 + QUEUED + 1
    assert total(after, "prefork_request_duration_seconds_sum") >= 2 * waited
    assert total(after, "prefork_queue_wait_seconds_count") > total(full, "prefork_queue_wait_seconds_count")
    assert total(after, "prefork_queue_wait_seconds_sum") >= waited - 0.02  # in jiffies


@moves("netns_listen_overflows", "netns_listen_drops")
def test_a_queue_that_overflows(tmp_path: Path) -> None:
    """What the kernel has no room for is counted by it, for all of the network namespace."""
    with service(tmp_path, max_children=1, request_queue_size=1) as running, contextlib.ExitStack() as stack:
        running.wait_ready(1)
        stack.enter_context(running.hold())
        before = scrape(running)
        for _ in range(10):
            client = stack.enter_context(socket.socket())
            client.setblocking(False)
            client.connect_ex(running.address)
        counts = ("prefork_netns_listen_overflows_total", "prefork_netns_listen_drops_total")
        scrape_until(running, lambda found: all(found[name] > before[name] for name in counts))


DAM = "from tests.support.programs.dam import Handler, Hooks"


@moves("datagram_receive_drops", "datagram_queue_bytes", "datagrams_truncated")
def test_datagrams(tmp_path: Path) -> None:
    """What waits at a datagram socket, in bytes, and what was dropped there: as the kernel has it. And what was cut."""
    os.mkfifo(tmp_path / "gate")
    with service(tmp_path, DAM, bases="PreForkingUDPServer", max_children=1, max_packet_size=100) as running:
        running.wait_ready(1)
        scrape(running)
        with socket.socket(type=socket.SOCK_DGRAM) as client:
            client.sendto(b"x" * 101, running.address)
            client.sendto(b"hold", running.address)
            running.wait("held")
            for _ in range(200):
                client.sendto(b"x" * 100, running.address)
        found = scrape(running)
        waiting, dropped = datagrams(running.address[1])
        running.signal(signal.SIGQUIT)
        assert running.wait_exit() == 0
    assert total(found, "prefork_datagram_queue_bytes") == waiting > 0
    assert total(found, "prefork_datagram_receive_drops_total") == dropped > 0
    assert total(found, "prefork_datagrams_truncated_total") == 1


ENDS = """
class Handler(Who):
    def do_segv(self):
        os.kill(os.getpid(), signal.SIGSEGV)

class Hooks:
    def verify_request(self, request, client_address):
        return client_address[0] != "127.0.0.2"
"""


@moves("requests", "connections_rejected", "worker_exits", "worker_signal_deaths", "worker_spawns",
       "worker_boot_seconds", "workers_min", "workers_max", "lanes")  # fmt: skip
def test_ends(tmp_path: Path) -> None:
    """Requests and workers come to their ends, each by its reason."""
    with service(tmp_path, ENDS) as running:
        running.expect("asked to raise", r"crashed \(killed by SIGSEGV\)", r"exited \(exit status 0\)")
        running.wait_ready(2)
        scrape(running)
        with socket.create_connection(running.address, HUNG, ("127.0.0.2", 0)) as refused:
            assert refused.recv(1) == b""
        for word in ("pid", "raise", "segv", "exit 0"):
            ask(running.address, f"{word}\n".encode())
        running.wait_ready(2, crashed=1, exited=1)
        with running.hold() as held:
            running.signal(signal.SIGKILL, held.pid)
        running.wait_ready(2, killed=1)
        running.signal(signal.SIGTTIN)
        running.wait_ready(3)
        wider = scrape(running)
        running.signal(signal.SIGTTOU)
        running.wait_ready(2, scaled_down=1)
        running.signal(signal.SIGUSR2)
        spawned = running.wait_ready(2, replaced=2)["spawned"]
        found = scrape(running)
    assert of(found, "requests_total") == {"ok": 1, "error": 2, "lost": 2}
    assert of(found, "connections_rejected_total") == {"verify": 1}
    assert of(found, "worker_exits_total") == {
        "crashed": 1, "exited": 1, "killed": 1, "scaled_down": 1, "replaced": 2
    }  # fmt: skip
    assert of(found, "worker_signal_deaths_total").keys() >= {"SIGSEGV", "SIGKILL"}
    assert found["prefork_worker_spawns_total"] == found["prefork_worker_boot_seconds_count"] == spawned == 8
    assert (wider["prefork_workers_min"], wider["prefork_workers_max"]) == (3, 3)
    assert (found["prefork_workers_min"], found["prefork_workers_max"]) == (2, 2)


@moves("requests", "worker_exits")
def test_the_end_of_a_request_without_end(tmp_path: Path) -> None:
    """The request and its worker end by the deadline."""
    with service(tmp_path, request_timeout=0.5) as running:
        running.expect("a request has run for longer than request_timeout")
        running.wait_ready(2)
        scrape(running)
        with running.connect() as held:
            held.wait_end()
        running.wait_ready(2, timeout=1)
        found = scrape(running)
    assert of(found, "requests_total") == {"timeout": 1}
    assert of(found, "worker_exits_total") == {"timeout": 1}


@moves("accept_errors")
def test_accept_errors(tmp_path: Path) -> None:
    """A worker without descriptors cannot accept."""
    with service(tmp_path, max_children=1) as running:
        running.wait_ready(1)
        scrape(running)
        with no_descriptor_left(*running.workers()), running.connect():
            scrape_until(running, lambda found: of(found, "accept_errors_total").keys() == {"emfile"})


# What the exporter imports, whose files another user may not be let read, first.
LIMITED = "import prefork.exporter.server, psutil, tests.support.programs.limited"


@moves("fork_failures")
def test_fork_failures(tmp_path: Path) -> None:
    """The kernel refuses to fork."""
    (port,) = free_ports(1)
    with service(tmp_path, LIMITED, metrics_address=("127.0.0.1", port)) as running:
        running.expect("could not fork a worker: resource temporarily unavailable")
        found: Samples = {}
        running.wait_ready(2)
        scrape_at(("127.0.0.1", port))
        running.signal(signal.SIGRTMIN + 1)
        running.wait("limited")
        running.signal(signal.SIGKILL, running.workers()[0])
        failures = running.wait_pool(lambda pool: pool["fork_failures"] > 0)["fork_failures"]
        found = scrape_at(("127.0.0.1", port))
        running.signal(signal.SIGRTMIN + 1)
        running.wait_ready(2, killed=1)
    assert of(found, "fork_failures_total").keys() == {"EAGAIN"}
    assert of(found, "fork_failures_total")["EAGAIN"] >= failures


BROKEN = """
class Hooks:
    def worker_started(self):
        if os.path.exists("broken"):
            raise RuntimeError("broken")
        super().worker_started()
"""


@moves("worker_backoff")
def test_backoff(tmp_path: Path) -> None:
    """Workers that die at boot are waited for."""
    with service(tmp_path, BROKEN) as running:
        running.expect("(?s)boot_failed.*RuntimeError: broken")
        running.wait_ready(2)
        (tmp_path / "broken").touch()
        running.signal(signal.SIGKILL, running.workers()[0])
        scrape_until(running, lambda found: found["prefork_worker_backoff"] == 1)
        (tmp_path / "broken").unlink()
        scrape_until(running, lambda found: found["prefork_worker_backoff"] == 0)


@moves("generation", "reloads", "last_reload_successful", "last_reload_timestamp_seconds")
def test_reloads(tmp_path: Path) -> None:
    """A reload that fails, and one that does not; before the first there is no last one."""
    program = tmp_path / "program.py"
    with service(tmp_path) as running:
        running.expect("(?s)reload failed: .*RuntimeError: released in a hurry")
        running.wait_ready(2)
        none, began, good = scrape(running), time.time(), program.read_text()
        program.write_text("raise RuntimeError('released in a hurry')")
        running.signal(signal.SIGHUP)
        running.wait_pool(lambda pool: pool["reloads"] == {"ok": 0, "failed": 1})
        failed = scrape(running)
        program.write_text(good)
        running.signal(signal.SIGHUP)
        running.wait_pool(lambda pool: pool["reloads"] == {"ok": 1, "failed": 1})
        done = scrape(running)
    assert of(failed, "reloads_total") == {"failed": 1}
    assert of(done, "reloads_total") == {"failed": 1, "ok": 1}
    assert "prefork_last_reload_successful" not in none
    assert (failed["prefork_last_reload_successful"], done["prefork_last_reload_successful"]) == (0, 1)
    first, second = (found["prefork_last_reload_timestamp_seconds"] for found in (failed, done))
    assert began <= first <= second <= time.time()
    assert [found["prefork_generation"] for found in (none, failed, done)] == [1, 1, 2]
    assert len({found["prefork_start_time_seconds"] for found in (none, failed, done)}) == 1


HEAVY = "from tests.process.programs.wasteful import Handler, Hooks"


@shows("worker_fds_limit")
@moves("worker_private_memory_bytes", "worker_open_fds_max", "worker_cpu_seconds")
def test_what_workers_use(tmp_path: Path) -> None:
    """Memory and descriptors of the living, and CPU of a dead one, as /proc has them."""
    with service(tmp_path, HEAVY) as running:
        running.expect(r"exited \(exit status 0\)")
        running.wait_ready(2)
        scrape(running)
        (tmp_path / "heavy").touch()
        running.signal(signal.SIGUSR2)
        running.wait_ready(2, replaced=2)
        workers = [psutil.Process(pid) for pid in running.workers()]
        descriptors, limit = max(worker.num_fds() for worker in workers), workers[0].rlimit(psutil.RLIMIT_NOFILE)[0]
        private = [worker.memory_full_info().uss for worker in workers]
        found = scrape(running)
        assert ask(running.address, b"burn\n") == b""
        running.wait_ready(2, exited=1)
        burnt = scrape(running)
    assert found["prefork_worker_open_fds_max"] == pytest.approx(descriptors, abs=5)
    assert found["prefork_worker_fds_limit"] == limit
    memory = of(found, "worker_private_memory_bytes")
    assert memory["max"] == pytest.approx(max(private), rel=0.2)
    assert memory["sum"] == pytest.approx(sum(private), rel=0.2)
    before, after = (sum(of(each, "worker_cpu_seconds_total").values()) for each in (found, burnt))
    assert 0.25 < after - before < HUNG


@moves("master_loop_delay_seconds")
def test_loop_delay(tmp_path: Path) -> None:
    """How late the timers of the master run, which has been stopped in its sleep."""
    with service(tmp_path) as running:
        running.wait_ready(2)
        scrape(running)
        while psutil.Process(running.pid).status() != psutil.STATUS_SLEEPING:
            running.statistics()
        running.signal(signal.SIGSTOP)
        with running.hold() as held:
            nothing_for(1.5, held.sock)  # its next timer is due within a second
        running.signal(signal.SIGCONT)
        scrape_until(running, lambda found: found["prefork_master_loop_delay_seconds_sum"] > 0.3)


@moves("control_requests")
def test_control_requests(tmp_path: Path) -> None:
    """A request on the control socket; without a socket there is no such figure."""
    with service(tmp_path, control_socket="c") as running, socket.socket(socket.AF_UNIX) as client:
        running.wait_ready(2)
        scrape(running)
        client.connect(os.path.relpath(tmp_path / "c"))
        client.sendall(b'{"verb":"version"}\n')
        assert client.recv(100)
        found = scrape(running)
    assert of(found, "control_requests_total") == {"ok": 1}


@moves("log_messages_dropped")
def test_log_messages_dropped(tmp_path: Path) -> None:
    """stderr is a pipe that nobody reads."""
    (tmp_path / "app.py").write_text(script())
    reading, writing = os.pipe()
    argv = ["-m", "prefork", "run", "app:Server", "--bind", "127.0.0.1:0", "--max-children", "2", "--access-log", "yes",
            "--metrics", "unix:m"]  # fmt: skip
    before = ("sh", "-c", f'exec "$@" 2>/proc/self/fd/{writing}', "sh")
    try:
        with Service(tmp_path, argv=argv, before=before, fds=[writing]) as running:
            running.wait_ready(2)
            scrape(running)
            with Load(running.address, 2) as load:
                load.wait_answered(1000)
            dropped = running.settled()["log_dropped"]
            found = scrape(running)
    finally:
        os.close(reading)
        os.close(writing)
    assert found["prefork_log_messages_dropped_total"] >= dropped > 0


FULL = "from tests.process.programs.many_series import Handler"


@moves("application_series_dropped", "slot_words_rejected")
def test_a_slot_misused(tmp_path: Path) -> None:
    """More series of the program's own than there is room for, and words that nobody can have meant."""
    with Service(tmp_path, script(FULL, max_children=1, metrics_address="m"), accounts=False) as running:
        running.expect("could not finish the request .*ValueError")
        running.wait_ready(1)
        none = scrape(running)
        assert ask(running.address, b"series\n")
        full = scrape(running)
        ask(running.address, b"fill\n")
        spoilt = scrape(running)
    series = sum(name.startswith("seen_total{") for name in full)
    assert full["prefork_application_series_dropped_total"] == 4000 - series > 0
    assert 1_850 < series < 2_000  # of half a KiB, in one MiB
    assert none["prefork_slot_words_rejected_total"] == full["prefork_slot_words_rejected_total"] == 0
    assert spoilt["prefork_slot_words_rejected_total"] > 0


ACCOMPANIED = """
from tests.process.programs.accompanied import *
class Hooks:
    companions = {"job": every(0.1, job)}
"""


@pytest.mark.timed
@moves("companion_up", "companion_restarts", "companion_runs", "companion_last_run_timestamp_seconds",
       "companion_last_run_duration_seconds")  # fmt: skip
def test_companions(tmp_path: Path) -> None:
    """A job that runs, raises, and is killed."""
    with service(tmp_path, ACCOMPANIED, max_children=1) as running:
        running.expect("companion job: a run raised", "RuntimeError: asked to raise")
        running.wait_ready(1)
        scrape_until(running, lambda found: of(found, "companion_runs_total").get("ok", 0) > 0)
        (tmp_path / "job").write_text("raise")
        found = scrape_until(running, lambda found: of(found, "companion_runs_total").get("error", 0) > 0)
        assert of(found, "companion_up") == {"job": 1}
        assert of(found, "companion_last_run_duration_seconds")["job"] < 1
        assert abs(of(found, "companion_last_run_timestamp_seconds")["job"] - time.time()) < HUNG
        while of(found, "companion_up"):  # it is back before long, each time a little later
            running.signal(signal.SIGKILL, running.wait("begun", after=running.mark())["pid"])
            running.statistics()
            found = scrape(running)
        assert of(found, "companion_restarts_total")["job"] >= 1


@shows("companion_interval_seconds")
def test_the_interval_of_a_companion(tmp_path: Path) -> None:
    """It is as the program says."""
    with service(tmp_path, "class Hooks:\n    companions = {'job': every(60, print)}\n", max_children=1) as running:
        running.wait_ready(1)
        assert of(scrape(running), "companion_interval_seconds") == {"job": 60}


@moves("tls_certificate_expiry_timestamp_seconds")
def test_certificate(tmp_path: Path) -> None:
    """When it expires, of the one in service."""
    make_certificate(tmp_path)
    files = {"tls_certificate": CERTIFICATE, "tls_key": KEY, "control_socket": "c"}
    with service(tmp_path, **files) as running:
        running.wait_ready(2)
        scrape(running)
        make_certificate(tmp_path, days=30)
        assert ctl(tmp_path / "c", "reload-tls").returncode == 0
        scrape(running)


@moves("connections", "connections_opened", "connections_closed", "connection_moves", "holder_up",
       "held_connections_limit")  # fmt: skip
def test_kept_connections(tmp_path: Path) -> None:
    """Where the open ones are, how the others have ended; and, when the holder ends again and again, that there is none
    for a while."""
    with service(tmp_path, "from tests.support.programs.kept import Handler", max_idle_connections=3) as running:
        running.allow("kept connections that ended with it")
        running.wait_ready(2)
        before = scrape(running)
        with staying(running.address, 5) as clients:
            full = scrape_until(running, lambda found: of(found, "connections_closed_total").get("evicted") == 2)
            clients[-1].say()
            moved = scrape_until(running, lambda found: of(found, "connections").get("held") == 3)
            gone = scrape(running)
            while gone["prefork_holder_up"] or "prefork_held_connections_limit" in gone:
                running.signal(signal.SIGKILL, holder(running))
                gone = scrape(running)
    assert of(before, "connections") == of(before, "connections_closed_total") == {}
    assert total(before, "prefork_connections_opened_total") == 0
    assert (before["prefork_holder_up"], before["prefork_held_connections_limit"]) == (1, 3)
    assert of(full, "connections") == {"held": 3}
    assert of(full, "connections_closed_total") == {"evicted": 2}
    assert total(moved, "prefork_connections_opened_total") == 5
    assert total(moved, "prefork_connection_moves_total") > total(before, "prefork_connection_moves_total")
    assert of(gone, "connections_closed_total") == {"evicted": 2, "lost": 3}


def test_every_metric_is_seen_to_move() -> None:
    """None of the table is left out above."""
    assert _seen == {row.name for row in METRIC_TABLE}
