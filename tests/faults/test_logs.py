"""FAULTS.md, Outside: a log that stalls, closes, fills up or is rotated never stops service, and loses no count."""

import json
import mmap
import os
import random
import re
import select
import shutil
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from time import monotonic

import pytest

from tests.support.clients.connections import Load, ask
from tests.support.programs.service import HUNG, Service, script
from tests.support.programs.storm import Storm
from tests.support.tools.figures import figure

ACCESS = re.compile(
    rb"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d\.\d{3} INFO prefork\.access: worker slot=\d gen=\d pid=\d+: request "
    rb"listener=127\.0\.0\.1:\d+ peer=127\.0\.\d+\.\d+:\d+ slot=\d outcome=ok duration_ms=[\d.]+ received=4 sent=\d+ "
    rb"queue_wait_ms=\d+"
)
BEGINNING = re.compile(rb'\d{4}-\d\d-\d\d \d\d:\d\d:\d\d\.\d{3} [A-Z]+ prefork|\{"time": ')
NOTICE = re.compile(rb".* WARNING prefork\.supervisor: (\d+) log messages were dropped")


def run(tmp_path: Path, *options: str, before: tuple[str, ...] = (), workers: int = 2) -> Service:
    """`prefork run` with an access log. At level `error` nothing else is logged, so that every line is one request."""
    argv = ["-m", "prefork", "run", "program:Server", "--bind", "127.0.0.1:0", "--max-children", str(workers),
            "--access-log", "yes", "--log-level", "error", *options]  # fmt: skip
    return Service(tmp_path, script(), argv=argv, before=before)


class Reader:
    """The other end of a named pipe that is the service's stderr. Owns its descriptor."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self.data = b""
        self.open()

    def open(self) -> None:
        self._fd = os.open(self._path, os.O_RDONLY | os.O_NONBLOCK)

    def close(self) -> None:
        os.close(self._fd)

    @property
    def told(self) -> int:
        return sum(int(found[1]) for line in self.data.split(b"\n") if (found := NOTICE.fullmatch(line)))

    @property
    def requests(self) -> int:
        return sum(ACCESS.fullmatch(line) is not None for line in self.data.split(b"\n"))

    def read_until(self, told: int, requests: int) -> None:
        """Until so many dropped lines were told of and so many records came; then every byte of it is a whole line."""
        deadline = monotonic() + HUNG
        while (self.told, self.requests) != (told, requests):
            assert monotonic() < deadline, f"hung: told {self.told} of {told}, records {self.requests} of {requests}"
            if select.select([self._fd], [], [], 1)[0]:
                self.data += os.read(self._fd, 1 << 20)
        lines = [line for line in self.data.split(b"\n") if line]
        assert [line for line in lines if not (ACCESS.fullmatch(line) or NOTICE.fullmatch(line))] == []


@contextmanager
def fifo(tmp_path: Path) -> Iterator[tuple[Reader, tuple[str, ...]]]:
    path = tmp_path / "stderr"
    os.mkfifo(path)
    reader = Reader(path)
    try:
        yield reader, ("sh", "-c", 'exec "$@" 2>"$0"', str(path))
    finally:
        reader.close()


def ask_often(service: Service, count: int) -> None:
    for _ in range(count):
        assert int(ask(service.address, b"pid\n"))


@pytest.mark.quick_faults
def test_stderr_that_nobody_reads(tmp_path: Path) -> None:
    """stderr is a pipe that nobody reads: every request is served, each line is read or counted as dropped, and as
    soon as somebody reads the drop is told and no further line is missing."""
    with fifo(tmp_path) as (reader, before), run(tmp_path, before=before) as service:
        ask_often(service, 1500)
        dropped = service.settled()["log_dropped"]
        assert dropped > 0
        reader.read_until(dropped, 1500 - dropped)
        ask_often(service, 50)
        reader.read_until(dropped, 1550 - dropped)
        assert service.settled()["log_dropped"] == dropped
        assert (service.settled()["completed"], service.settled()["failed"]) == (1550, 0)


@pytest.mark.quick_faults
def test_stderr_whose_reader_is_gone(tmp_path: Path) -> None:
    """The reader of stderr is gone: every request is served, each line is counted, and a new reader gets the rest."""
    with fifo(tmp_path) as (reader, before), run(tmp_path, before=before) as service:
        ask_often(service, 20)
        service.settled()
        reader.read_until(0, 20)
        reader.close()
        ask_often(service, 200)
        assert service.settled()["log_dropped"] == 200
        reader.open()
        ask_often(service, 20)
        reader.read_until(200, 40)
        assert service.settled()["failed"] == 0


@pytest.mark.quick_faults
def test_stderr_that_is_closed(tmp_path: Path) -> None:
    """Started without any stderr, a service serves."""
    with run(tmp_path, before=("sh", "-c", 'exec "$@" 2>&-', "sh")) as service:
        ask_often(service, 50)
        assert service.settled()["completed"] == 50


@pytest.mark.quick_faults
def test_a_full_disk(tmp_path: Path) -> None:
    """The disk of the log file is full: every request is served, each line is in the file whole or counted; with room
    again the drop is told and lines come."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = 'mount -t tmpfs -o size=64k tmpfs "$0" && head -c 32768 /dev/zero >"$0/filler" && exec "$@"'
    before = ("unshare", "--mount", "sh", "-c", mount, str(disk))
    if os.geteuid() or shutil.which("unshare") is None:
        pytest.skip("mounting a tmpfs takes root")
    with run(tmp_path, "--log-file", str(disk / "log"), before=before) as service:
        ask_often(service, 600)
        there = Path(f"/proc/{service.pid}/root{disk}")
        dropped = service.settled()["log_dropped"]
        assert dropped > 0
        (there / "filler").unlink()
        deadline = monotonic() + HUNG
        while b"log messages were dropped" not in (there / "log").read_bytes():
            assert monotonic() < deadline, "hung: the drop is not told"
            service.statistics()
        ask_often(service, 20)
        assert service.settled()["log_dropped"] == dropped
        lines = (there / "log").read_bytes().split(b"\n")
        assert sum(ACCESS.fullmatch(line) is not None for line in lines) == 620 - dropped
        assert sum(int(found[1]) for line in lines if (found := NOTICE.fullmatch(line))) == dropped


def test_rotation_loses_no_line(tmp_path: Path) -> None:
    """The log file is renamed, then USR1 sent, every 50 ms under load: each request has its one whole line."""
    log = tmp_path / "access"
    with run(tmp_path, "--log-file", str(log), workers=4) as service:
        with Load(service.address, 4, processes=1) as load:
            load.wait_answered()
            for number in range(50):
                time.sleep(0.05)  # the period that the claim is about
                log.rename(tmp_path / f"access.{number}")
                service.signal(signal.SIGUSR1)
                wait_for(log)
            tally = load.stop()
        accepted = service.settled()["accepted"]
    assert tally.failures == 0
    lines = [line for path in tmp_path.glob("access*") for line in path.read_bytes().split(b"\n")[:-1]]
    torn = [line for line in lines if ACCESS.fullmatch(line) is None]
    assert torn == []
    assert len(lines) == accepted == tally.opened
    figure("log rotation", f"{len(lines)} requests, 50 rotations, {len(lines)} lines, 0 torn")


def wait_for(path: Path) -> None:
    deadline = monotonic() + HUNG
    while not path.exists():
        assert monotonic() < deadline, f"hung: {path.name} is not made anew"


@pytest.mark.quick_faults
@pytest.mark.parametrize("format", ["text", "json"])
def test_no_line_is_torn_by_a_kill(format: str, tmp_path: Path, rng: random.Random) -> None:
    """Workers are killed at random under load: each line is whole, and there as soon as the request has ended. None is
    missing but of a worker that was killed after it had counted the request and before it had written the record; and
    none is cut but where the kernel ends the write of a process that is killed, at the end of a page of the file."""
    log = tmp_path / "access"
    with run(tmp_path, "--log-file", str(log), "--log-format", format, workers=4) as service:
        service.wait_ready(4)
        storm = Storm(service, rng)
        with Load(service.address, 4, processes=1) as load:
            load.wait_answered()
            storm.rage(3.0)
            storm.wait_full(4)
            load.stop()
        statistics = service.settled()
        written = log.read_bytes()
    begins = [found.start() for found in BEGINNING.finditer(written)]
    assert all(written[at - 1 : at] in (b"", b"\n") or at % mmap.PAGESIZE == 0 for at in begins)
    lines = [written[begin:end] for begin, end in pairwise([*begins, len(written)])]
    cut = [line for line in lines if not line.endswith(b"\n")]
    records = [line[:-1] for line in lines if b"prefork.access" in line and line not in cut]
    whole = ACCESS.fullmatch if format == "text" else json.loads
    assert not [record for record in records if not whole(record)]
    assert len(cut) + sum(line.count(b"\n") for line in lines) == len(lines)
    missing = statistics["completed"] - len(records)
    figure(
        f"{format}: records missing (cut), of requests completed; kills",
        f"{missing} ({len(cut)}), {statistics['completed']}; {storm.kills}",
    )
    assert 0 <= missing <= storm.kills
