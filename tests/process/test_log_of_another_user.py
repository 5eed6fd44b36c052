"""A log file that only the master can open: workers that changed their user, and the exporter, go on in the new one."""

import os
import signal
from pathlib import Path

import pytest

from tests.support.clients.controlling import ctl
from tests.support.clients.scraping import get
from tests.support.programs.served import RELOADS
from tests.support.programs.service import Service, Watch, script

pytestmark = [
    pytest.mark.once,
    pytest.mark.skipif(os.getuid() != 0, reason="only root can change the user of a worker"),
]

FILE = """\
[prefork]
target = "program:Server"
bind = "127.0.0.1:0"
control = "unix:c"
metrics = "127.0.0.1:0"
max_children = 2
access_log = true
log_file = "logs/log"
log_level = "debug"
"""


class Rotated:
    """The service, and what stands in its log and in the files that were the log before."""

    def __init__(self, service: Service, folder: Path) -> None:
        self.service, self.folder, self._count = service, folder, 0

    def rotate(self) -> tuple[str, Path]:
        """Rename the log, and have it reopened; return what is said, and where the old one is."""
        self._count += 1
        old = self.folder / f"log.{self._count}"
        (self.folder / "log").rename(old)
        done = ctl(self.folder.parent / "c", "reopen")
        assert (done.returncode, done.stderr) == (0, "")
        return done.stdout, old

    def requests(self, pid: int) -> int:
        """The lines in the log about requests of this worker."""
        lines = (self.folder / "log").read_text().splitlines()
        return sum(": request " in line and f" pid={pid}" in line for line in lines)


def test_reopened_by_everybody(tmp_path: Path) -> None:
    """All of them, also those that are forked later, those of the previous image, and those that are busy: as many as
    `reopen` says, and none writes to the old file any more."""
    folder = tmp_path / "logs"
    folder.mkdir(mode=0o700)
    (tmp_path / "s.toml").write_text(FILE)
    source = script("from tests.process.programs.dropping import Handler, Hooks")
    argv = ["-m", "prefork", "run", "--config", "s.toml"]
    with Service(tmp_path, source, argv=argv, env={RELOADS: "1"}) as service:
        service.wait_ready(2)
        log = Rotated(service, folder)
        exporter = tuple(service.wait("exporting")["address"])
        assert get(exporter).status == 200  # it has begun
        with service.hold() as held, service.hold() as other:
            assert held.ask(b"open %s" % str(folder / "log").encode()) == b"PermissionError"
            said, old = log.rotate()
            assert said.splitlines()[0] == "reopened by 2 of 4 processes"  # the master and the exporter
            assert sorted(line.partition(" is busy")[0].rpartition("=")[2] for line in said.splitlines()[1:]) == sorted(
                map(str, (held.pid, other.pid))
            )
        service.settled()
        before = old.read_text()
        said, older = log.rotate()
        assert said == "reopened by 4 of 4 processes\n"
        for _ in range(4):
            with service.hold() as held, service.hold() as other:
                pids = held.pid, other.pid
        service.settled()
        assert get(exporter).status == 200
        assert all(log.requests(pid) == 4 for pid in pids)

        service.signal(signal.SIGUSR2)
        service.wait_ready(2, replaced=2)
        with service.hold() as old_one, Watch(old_one.pid) as leaving:
            assert old_one.pid not in pids
            service.signal(signal.SIGHUP)
            service.wait_pool(lambda pool: pool["reloads"].get("ok") == 1 and pool["ready"] == 2)
            said, oldest = log.rotate()
            assert said.splitlines()[0] == "reopened by 4 of 5 processes"
            rotated = [path.read_text() for path in (old, older, oldest)]
            with service.hold() as new_one:
                assert new_one.pid != old_one.pid
            old_one.close()
            leaving.wait_dead()
        service.settled()
        assert log.requests(old_one.pid) == log.requests(new_one.pid) == 1
        assert rotated[0] == before
        assert rotated == [path.read_text() for path in (old, older, oldest)]


def test_what_hands_it_on_was_shut_down(tmp_path: Path) -> None:
    """By a handler, for all processes: the next `reopen` makes another one, and who has the old one is replaced."""
    folder = tmp_path / "logs"
    folder.mkdir(mode=0o700)
    (tmp_path / "s.toml").write_text(FILE)
    source = script("from tests.process.programs.dropping import Handler, Hooks")
    with Service(tmp_path, source, argv=["-m", "prefork", "run", "--config", "s.toml"]) as service:
        service.wait_ready(2)
        exporter = tuple(service.wait("exporting")["address"])
        assert get(exporter).status == 200
        log = Rotated(service, folder)
        with service.connect() as client:
            assert client.ask(b"shut") == b"AF_UNIX SOCK_SEQPACKET, AF_UNIX SOCK_SEQPACKET, listener"
        before = service.workers()
        log.rotate()
        service.wait_ready(2, replaced=2)
        assert get(exporter).status == 200
        assert not set(before) & set(service.workers())
        said, old = log.rotate()
        assert said == "reopened by 4 of 4 processes\n"
        rotated = old.read_text()
        assert rotated.count("what hands on a new log file was shut down") == 1
        with service.hold() as held:
            pass
        service.settled()
        assert log.requests(held.pid) == 1
        assert old.read_text() == rotated
