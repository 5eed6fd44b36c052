"""What a program starts at its import, over reloads: the processes of a rehearsal, of an earlier image, of nobody."""

import signal
from pathlib import Path
from time import monotonic

import psutil
import pytest

from tests.support.programs.releases import AFTERWARDS, Released, numbered
from tests.support.programs.service import HUNG, in_session

STARTS = "from tests.process.programs.starting_processes import HELD\n"


def is_zombie(child: psutil.Process) -> bool:
    try:
        return child.status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:  # reaped in between
        return False


def wait_processes(service: Released, processes: int, zombies: int) -> None:
    """Until so many live in the session of the service, and so many children of the master wait to be reaped."""
    deadline = monotonic() + HUNG
    while True:
        found = (len(in_session(service.pid)), sum(map(is_zombie, psutil.Process(service.pid).children())))
        if found == (processes, zombies):
            return
        assert monotonic() < deadline, f"hung: {found}, not {(processes, zombies)}"


def test_processes_that_a_program_starts(tmp_path: Path) -> None:
    """A rehearsal's end with it, also when it fails; an earlier image's are used by its workers, and told to end with
    the last of them; what ends is reaped; what was there before the program stays."""
    before = ["sh", "-c", 'sleep 1000 & echo $! > sidecar; exec "$@"', "sh"]
    with Released(tmp_path, STARTS + numbered(1), max_children=1, before=before) as service:
        service.expect("reload failed: .*rehearsal ended", "reload failed: the program failed: RuntimeError: only here")
        service.allow("(?s)RuntimeError: (not|only) here")
        service.wait_ready(1)
        sidecar = int((tmp_path / "sidecar").read_text())
        processes = len(in_session(service.pid))
        assert processes == 5  # master, worker, manager, helper, sidecar
        wait_processes(service, processes, 1)
        service.release(STARTS + "raise RuntimeError('not here')\n")
        service.signal(signal.SIGHUP)
        service.wait_reloads(failed=1)
        wait_processes(service, processes, 1)
        with service.hold() as held:
            service.release(STARTS + numbered(2))
            service.signal(signal.SIGHUP)
            service.wait_reloads(ok=1)
            wait_processes(service, processes + 3, 1)  # the old worker, its manager and its helper
            held.close()
        service.wait_ready(1, replaced=1)
        wait_processes(service, processes, 1)
        service.release(STARTS + numbered(3) + AFTERWARDS + "raise RuntimeError('only here')\n")
        service.signal(signal.SIGHUP)
        wait_processes(service, processes, 0)
        service.release(STARTS + numbered(4))
        service.signal(signal.SIGHUP)
        service.wait_reloads(ok=2)
        service.wait_ready(1, replaced=2)
        wait_processes(service, processes, 1)
        service.signal(signal.SIGTERM)
        assert service.wait_exit() == 0
        assert in_session(service.pid) == [sidecar]
        left = psutil.Process(sidecar)
        left.kill()
        left.wait(HUNG)


FORKS = {
    "waits to be told": "os.fork() or signal.pause()",
    "exits": "os.fork() or sys.exit(0)",
    "raises": "os.fork() or int('not a number')",
}


@pytest.mark.parametrize("ends", FORKS)
def test_a_process_that_a_program_forks(ends: str, tmp_path: Path) -> None:
    """At its import, after an exec: it is no second master, which would take the clients from the first, but ends as it
    does where a program is started first."""
    with Released(tmp_path, max_children=1) as service:
        service.wait_ready(1)
        service.release(numbered(2) + AFTERWARDS + FORKS[ends])
        service.signal(signal.SIGHUP)
        service.wait_reloads(ok=1)
        service.release(numbered(3))
        service.signal(signal.SIGHUP)
        service.wait_reloads(ok=2)
        service.wait_ready(1, replaced=2)
        wait_processes(service, 2, 0)
        service.wait_answering("r3")
        if ends == "raises":
            service.expect("(?s)ValueError: invalid literal")
