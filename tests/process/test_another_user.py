"""A service that is not root's: it obeys its own user, is reloaded, is scraped and drains.

Where the tests run as root it is another user's from its first instruction; else it is theirs. That user may read what
the interpreter is made of, wherever that lies, and nothing else that is not his.
"""

import errno
import os
import signal
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.support.clients.controlling import OTHER, as_other, asked, ctl, looked_at, open_folder, printed, until
from tests.support.clients.scraping import Answer, get, total
from tests.support.hosts.users import become
from tests.support.programs.releases import Released, numbered
from tests.support.programs.service import Service, script

pytestmark = pytest.mark.once

ROOT = os.getuid() == 0
USER = 54321 if ROOT else os.getuid()
AS_USER = become(USER) if ROOT else ()
WORKERS = 2


@pytest.fixture
def service() -> Iterator[Released]:
    """In a folder of the user's."""
    with open_folder() as folder:
        if ROOT:
            os.chown(folder, USER, USER)
        settings: dict[str, Any] = {
            "max_children": WORKERS,
            "control_socket": str(folder / "c"),
            "metrics_address": "m",
        }
        with Released(folder, before=AS_USER, **settings) as service:
            service.wait_ready(WORKERS)
            yield service
        assert not (folder / "c").exists()
        assert not (folder / "m").exists()


def scrape(service: Service) -> Answer:
    return get(os.path.relpath(service.directory / "m"))


def users(service: Service) -> set[int]:
    """Of the master and all its children: real, effective and saved."""
    master = psutil.Process(service.pid)
    return {uid for process in [master, *master.children(recursive=True)] for uid in process.uids()}


def test_control(service: Released) -> None:
    """Its own user may look and command, and so may root; for anybody else the path is shut. What is said of a worker
    is as true as what root is told of his."""
    path = service.directory / "c"
    assert users(service) == {USER}
    assert (path.stat().st_uid, path.stat().st_mode & 0o777) == (USER, 0o600)
    with service.hold() as held:
        found = until(looked_at, lambda: printed(path, "workers", before=AS_USER))
        workers = {worker["pid"]: worker for worker in found["workers"]}
        stacks = {worker["pid"]: worker["stacks"] for worker in printed(path, "stacks", before=AS_USER)["workers"]}
        peer = ":".join(map(str, held.sock.getsockname()[:2]))
    assert set(workers) == set(stacks) == set(service.workers())
    assert workers[held.pid]["peers"] == [peer]
    assert "in handle" in stacks[held.pid]
    assert all(worker["rss_bytes"] > 1 << 20 for worker in workers.values())
    assert printed(path, "scale", "3", before=AS_USER)["max_children"] == 3
    service.wait_ready(3)
    if ROOT:
        assert asked(path, "scale", 1)["max_children"] == 1
        service.wait_ready(1, scaled_down=2)
        assert as_other(path, "status", OTHER) == {"errno": 13}


def test_reload(service: Released) -> None:
    """A reload is rehearsed and put in service, by whom the command comes and by HUP; the user, the pid and both paths
    stay, and a broken release is refused with its reason."""
    service.expect("(?s)reload failed: the rehearsal .*RuntimeError: no such table")
    path, paths = service.directory / "c", [service.directory / name for name in "cm"]
    inodes = [each.stat().st_ino for each in paths]
    service.release(numbered(2))
    done = ctl(path, "reload", before=AS_USER)
    assert (done.returncode, done.stdout) == (0, "reloaded: generation 2 is in service\n")
    service.wait_answering("r2")
    service.release("raise RuntimeError('no such table')\n")
    done = ctl(path, "reload", before=AS_USER)
    assert done.returncode == 1
    assert "no such table" in done.stderr
    service.release(numbered(3))
    service.signal(signal.SIGHUP)
    service.wait_reloads(ok=2, failed=1)
    service.wait_ready(WORKERS, replaced=2 * WORKERS)
    assert service.answering() == "r3"
    assert users(service) == {USER}
    assert [each.stat().st_ino for each in paths] == inodes
    assert scrape(service).samples["prefork_generation"] == 3


FROM_THE_KERNEL = (
    "prefork_worker_private_memory_bytes", "prefork_worker_open_fds_max", "prefork_worker_fds_limit",
    "prefork_listen_queue_limit",
)  # fmt: skip


def test_metrics(service: Released, tmp_path: Path) -> None:
    """A scrape has every metric that the tests' own user's has, and what the kernel told; the exporter is the service's
    user."""
    with service.connect() as connection:
        assert connection.ask(b"pid")
    service.settled()
    found = scrape(service).samples
    assert users(service) == {USER}
    assert total(found, "prefork_connections_accepted_total") == 1
    assert all(total(found, name) > 0 for name in FROM_THE_KERNEL), found
    with Service(tmp_path, script(max_children=WORKERS, metrics_address="m", control_socket="c")) as mine:
        mine.wait_ready(WORKERS)
        assert metrics(found) == metrics(scrape(mine).samples)


def metrics(found: dict[str, float]) -> set[str]:
    return {sample.partition("{")[0] for sample in found}


@pytest.mark.parametrize("how", ["TERM", "ctl drain"])
def test_drain(how: str, service: Released) -> None:
    """What is in hand is finished, the status is 0, and both paths are gone."""
    with service.hold() as held:
        if how == "TERM":
            service.signal(signal.SIGTERM)
        else:
            assert ctl(service.directory / "c", "drain", "--no-wait", before=AS_USER).returncode == 0
        service.wait_pool(lambda pool: pool["draining"] == 1)
        assert int(held.ask(b"pid")) == held.pid
    assert service.wait_exit() == 0
    ended = service.wait("ended")
    assert (ended["exits"], ended["completed"]) == ({"drained": WORKERS}, 1)


GIVES_UP_ROOT = """
class Hooks:
    def serve_forever(self, poll_interval=None):
        os.setgroups([])
        os.setgid(54321)
        os.setuid(54321)
        super().serve_forever(poll_interval)
"""


@pytest.mark.skipif(not ROOT, reason="only root can give up root")
@pytest.mark.parametrize("bases", ["PreForkingUnixStreamServer", "PreForkingUnixDatagramServer"])
def test_a_path_in_a_folder_that_is_no_longer_ours(bases: str) -> None:
    """Bound by root, who is another user since: the service drains, with status 0; the path, which that user may not
    remove, is left and said, and nobody listens there."""
    with open_folder() as folder:
        source = script(GIVES_UP_ROOT, bases=bases, address="s", max_children=WORKERS)
        with Service(folder, source) as service:
            service.wait_ready(WORKERS)
            assert users(service) == {USER}
            service.signal(signal.SIGTERM)
            assert service.wait_exit() == 0
            assert service.wait("ended")["exits"] == {"drained": WORKERS}
            assert f"WARNING could not remove {folder / 's'}, it is left: permission denied\n" in service.log
        kind = socket.SOCK_STREAM if "Stream" in bases else socket.SOCK_DGRAM
        with socket.socket(socket.AF_UNIX, kind) as late:
            assert late.connect_ex(os.path.relpath(folder / "s")) == errno.ECONNREFUSED
