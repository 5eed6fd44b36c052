"""Signals to the whole process group, by a terminal, a service manager or `kill -- -PGID`: as to the master alone."""

import contextlib
import os
import re
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from prefork.workers.signals import DRAIN_SIGNAL
from tests.support.clients.scraping import get
from tests.support.programs.releases import Released, numbered
from tests.support.programs.served import RELOADS
from tests.support.programs.service import HUNG, Service, script
from tests.support.tools.figures import figure

pytestmark = pytest.mark.once

WORKERS = 2
QUEUED = 8
# Milliseconds after a HUP: its arrival by small steps, then rehearsal, exec and new workers by larger ones.
MOMENTS = (0, 2, 7, 13, 25, 60, 110, 160, 220, 300)
TO_GROUP = (signal.SIGUSR1, signal.SIGUSR2, signal.SIGHUP)


def exporter(service: Service) -> int:
    """The pid of the exporter, by its title, once it answers."""
    assert get(str(service.directory / "m"), "/-/ready").status in (200, 503)
    children = psutil.Process(service.pid).children()
    return next(child.pid for child in children if child.cmdline()[:1] == ["prefork: exporter"])


@contextlib.contextmanager
def queue_of(service: Service, clients: int) -> Iterator[None]:
    """Every worker is busy, and so many clients wait behind; at the end of the block each must be answered."""
    with contextlib.ExitStack() as stack:
        held = [stack.enter_context(service.hold()) for _ in range(WORKERS)]
        waiting = [stack.enter_context(service.connect()) for _ in range(clients)]
        for client in waiting:
            client.send(b"pid")
            client.sock.shutdown(1)
        yield
        for connection in held:
            connection.close()
        for client in waiting:
            assert int(client.answer())


def test_term_to_the_group_serves_the_queue(tmp_path: Path) -> None:
    """TERM to the group with eight clients queued behind two busy workers: each is answered, the workers leave when
    their master says so, and meanwhile the exporter says that the service is not ready."""
    metrics = str(tmp_path / "m")
    with Service(tmp_path, script(max_children=WORKERS, metrics_address=metrics)) as service:
        service.wait_ready(WORKERS)
        first = exporter(service)
        with queue_of(service, QUEUED):
            os.killpg(service.pid, signal.SIGTERM)
            deadline = time.monotonic() + HUNG
            while get(metrics, "/-/ready").status != 503:
                assert time.monotonic() < deadline, "hung: it does not drain"
            assert exporter(service) == first
        assert service.wait_exit() == 0
        assert service.wait("ended")["exits"] == {"drained": WORKERS}
    figure("queued clients answered after TERM to the group", QUEUED, QUEUED)


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGQUIT])
def test_stop_to_the_group(signum: int, tmp_path: Path) -> None:
    """INT and QUIT to the group stop the service as they do when sent to the master: status 0, nobody crashed."""
    with Service(tmp_path, script(max_children=WORKERS, metrics_address=str(tmp_path / "m"))) as service:
        service.wait_ready(WORKERS)
        os.killpg(service.pid, signum)
        assert service.wait_exit() == 0
        assert service.wait("ended")["exits"] == {"stopped": WORKERS}


def test_term_to_one_worker_is_a_replacement(tmp_path: Path) -> None:
    """TERM to one worker alone is as `ctl restart SLOT`: it serves until another one is ready, and is then drained."""
    with Service(tmp_path, script(max_children=1)) as service:
        service.wait_ready(1)
        with service.hold() as held:
            after = service.mark()
            service.signal(signal.SIGTERM, held.pid)
            fresh = service.wait("worker_started", after=after)["pid"]
            service.wait_pool(lambda pool: pool["draining"] == 1 and pool["ready"] == 1)
            assert int(held.ask(b"pid")) == held.pid
        service.wait_ready(1, replaced=1)
        assert service.workers() == [fresh]
    assert service.log.count("was sent TERM; to be replaced") == 1


def test_the_masters_signal_from_somebody_else(tmp_path: Path) -> None:
    """URG, by which a master tells its children to drain, does nothing when it comes from elsewhere, to the group or to
    each child; from the master it does, also from the new image after a reload."""
    metrics = str(tmp_path / "m")
    source = "from tests.process.programs.accompanied import *\nclass Hooks: companions = {'steady': steady}"
    with Service(
        tmp_path, script(source, max_children=WORKERS, metrics_address=metrics), env={RELOADS: "1"}
    ) as service:
        for image in range(2):
            service.wait_ready(WORKERS, **({"replaced": WORKERS} if image else {}))
            service.wait_each("begun", image + 1)
            children = [*sorted(service.workers()), exporter(service)]
            os.killpg(service.pid, DRAIN_SIGNAL)
            for child in psutil.Process(service.pid).children():
                child.send_signal(DRAIN_SIGNAL)
            with contextlib.ExitStack() as stack:
                held = [stack.enter_context(service.hold()).pid for _ in range(WORKERS)]
                assert [*sorted(held), exporter(service)] == children
            assert len([fact for fact in service.facts if fact["event"] == "told"]) == image
            if not image:
                service.signal(signal.SIGHUP)
        service.signal(signal.SIGTERM)
        assert service.wait_exit() == 0
        assert service.wait("ended")["exits"] == {"replaced": WORKERS, "drained": WORKERS}
    assert "killed after" not in service.log


def test_hup_and_usr_to_the_group_at_any_moment_of_a_reload(tmp_path: Path) -> None:
    """USR1, USR2 and HUP to the group 0 to 300 ms after a HUP: no client fails, no exporter and no rehearsal dies."""
    metrics = str(tmp_path / "m")
    with Released(tmp_path, max_children=WORKERS, metrics_address=metrics) as service:
        service.allow("reload failed: the service is about to end")  # the last HUP is for a reload of its own
        service.wait_ready(WORKERS)
        for number, delay_ms in enumerate(MOMENTS):
            service.release(numbered(number + 2))
            after = service.mark()
            os.killpg(service.pid, signal.SIGHUP)
            time.sleep(delay_ms / 1000)
            os.killpg(service.pid, TO_GROUP[number % len(TO_GROUP)])
            service.wait("worker_stopping", after=after)
            service.wait_answering(f"r{number + 2}")
        service.wait_ready(WORKERS)
        assert service.statistics()["reloads"]["failed"] == 0
    assert not re.search(r"(exporter|rehearsal) pid=\d+: killed by SIG(?!KILL)", service.log)
    figure("moments of a reload at which the group was signalled, none failed", len(MOMENTS), len(MOMENTS))


@pytest.mark.parametrize("delay_ms", [0, 25, 200])
def test_term_to_the_group_at_any_moment_of_a_reload(delay_ms: int, tmp_path: Path) -> None:
    """TERM to the group 0 to 200 ms after a HUP, with clients queued: each is answered, and the service ends with 0."""
    with Released(tmp_path, max_children=WORKERS, graceful_timeout=10.0) as service:
        service.allow("reload failed: the service is about to end")
        service.wait_ready(WORKERS)
        service.release(numbered(2))
        with queue_of(service, QUEUED):
            service.signal(signal.SIGHUP)
            time.sleep(delay_ms / 1000)
            os.killpg(service.pid, signal.SIGTERM)
        assert service.wait_exit() == 0
        service.wait_gone()
