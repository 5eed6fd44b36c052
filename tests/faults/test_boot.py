"""Workers that cannot start: they die at boot, or the kernel refuses to fork."""

import itertools
import signal
from pathlib import Path

import psutil
import pytest

from tests.support.clients.connections import ask
from tests.support.programs.service import Service, script
from tests.support.tools.figures import figure

# A worker that boots while the file `broken` is there comes to the end that the file names.
BROKEN = "from tests.faults.programs.broken import Hooks"
# RLIMIT_NPROC does not hold for root. The program limits itself, at a signal, and lifts it at the next.
LIMITED = "import tests.support.programs.limited"
LIMIT = signal.SIGRTMIN + 1


def forks_after(service: Service, mark: int, count: int) -> list[float]:
    """When the next so many attempts to boot were made."""
    return [fact["at"] for fact in service.wait_each("broken", count, after=mark)]


def test_for_ever_beside_healthy_ones(tmp_path: Path) -> None:
    """Deaths at boot: back-off doubles, the healthy serve on, CPU stays at rest, and it recovers by itself."""
    with Service(tmp_path, script(BROKEN, max_children=3)) as service:
        service.expect("(?s)boot_failed.*RuntimeError: no database")
        service.wait_ready(3)
        healthy = set(service.workers()[1:])
        (tmp_path / "broken").write_text("raises")
        mark, cpu = service.mark(), sum(psutil.Process(service.pid).cpu_times()[:4])
        service.signal(signal.SIGKILL, service.workers()[0])
        moments = forks_after(service, mark, 6)
        cpu = (sum(psutil.Process(service.pid).cpu_times()[:4]) - cpu) / (moments[-1] - moments[0])
        assert {int(ask(service.address, b"pid\n")) for _ in range(50)} <= healthy
        service.wait_ready(2, boot_failed=6)
        assert set(service.workers()) == healthy
    gaps = [later - earlier for earlier, later in itertools.pairwise(moments)]
    in_15_s = sum(moment <= moments[0] + 15 for moment in moments)
    figure("deaths at boot: seconds between starts", " ".join(f"{gap:.2f}" for gap in gaps), "0.5 doubling")
    figure("deaths at boot: forks in 15 s", in_15_s, 10)
    figure("deaths at boot: CPU", f"{cpu:.1%}", "3 %")
    assert moments[-1] - moments[0] >= 15
    assert in_15_s <= 10
    assert cpu < 0.03
    for gap, expected in zip(gaps, (0.5, 1, 2, 4, 8), strict=True):
        assert expected * 0.95 < gap < expected * 1.1 + 0.2


@pytest.mark.quick_faults
def test_recovers(tmp_path: Path) -> None:
    """max_restart_delay caps the back-off; the cause gone, the pool is full within that delay, all of it at once."""
    with Service(tmp_path, script(BROKEN, max_children=4, max_restart_delay=0.6)) as service:
        service.expect(r"boot_failed \(exit status 5\)")
        service.wait_ready(4)
        (tmp_path / "broken").write_text("exits")
        mark = service.mark()
        for pid in service.workers():
            service.signal(signal.SIGKILL, pid)
        moments = forks_after(service, mark, 8)
        (tmp_path / "broken").unlink()
        removed = moments[-1]
        full = service.wait_ready(4, killed=4)["at"]
    gaps = [later - earlier for earlier, later in itertools.pairwise(moments[4:])]
    figure("back-off capped at 0.6 s: starts apart", " ".join(f"{gap:.2f}" for gap in gaps), 0.6)
    figure("cause gone: full pool after", f"{full - removed:.2f} s", "0.6 s + 0.5 s")
    assert min(gaps) > 0.55
    assert max(gaps) < 0.8
    assert full - removed < 1.1


COMPLAINTS = {
    "raises": [r"(?s)boot_failed \(exit status 1\).*RuntimeError: no database"],
    "exits": [r"boot_failed \(exit status 5\)"],
    "SIGSEGV": [r"boot_failed \(killed by SIGSEGV\)"],
    "SIGKILL": [r"killed \(killed by SIGKILL\)"],
    "hangs": [],  # what we did ourselves is no error
}


@pytest.mark.parametrize("end", COMPLAINTS)
def test_nobody_was_ever_ready(end: str, tmp_path: Path) -> None:
    """Three deaths before the first READY end `prefork run` with 3 and a sentence; in a row, if it was SIGKILL."""
    (tmp_path / "app.py").write_text(script(BROKEN))
    (tmp_path / "broken").write_text(end)
    argv = ["-m", "prefork", "run", "app:Server", "--bind", "127.0.0.1:0", "--max-children", "1"]
    with Service(tmp_path, argv=[*argv, "--boot-timeout", "0.3", "--max-restart-delay", "0.5"]) as service:
        service.expect(*COMPLAINTS[end])
        assert service.wait_exit() == 3
        starts = len([fact for fact in service.facts if fact["event"] == "broken"])
    figure(f"{end}: starts before it gave up", starts)
    assert starts == (5 if end == "SIGKILL" else 3)
    last = service.log.splitlines()[-1]
    assert last.startswith("prefork: could not start a worker: ")
    assert {"raises": "no database", "exits": "exit status 5"}.get(end, "SIG") in last


@pytest.mark.quick_faults
def test_fork_fails(tmp_path: Path) -> None:
    """Under EAGAIN the pool serves with what it has, tries now and then, says so once, and is full soon after."""
    with Service(tmp_path, script(LIMITED, max_children=4)) as service:
        service.expect("could not fork a worker: resource temporarily unavailable")
        service.wait_ready(4)
        service.signal(LIMIT)
        service.wait("limited")
        for pid in service.workers()[:2]:
            service.signal(signal.SIGKILL, pid)
        failed = service.wait_pool(lambda pool: pool["fork_failures"] >= 3)
        first = next(fact for fact in service.facts if fact.get("fork_failures"))
        assert failed["ready"] == 2
        assert {int(ask(service.address, b"pid\n")) for _ in range(50)} <= set(service.workers())
        service.signal(LIMIT)
        since = service.wait("lifted")["at"]
        full = service.wait_ready(4, killed=2)
    rate = (failed["fork_failures"] - first["fork_failures"]) / (failed["at"] - first["at"])
    figure("fork fails: tries a second", f"{rate:.1f}", 3)
    figure("fork fails: full pool after it was lifted", f"{full['at'] - since:.2f} s", "2 s")
    assert 1 < rate < 3
    assert full["at"] - since < 2
    assert service.log.count("could not fork a worker") == 1


@pytest.mark.parametrize("bases", ["ForkingTCPServer", "ThreadingTCPServer"])
def test_fork_or_thread_fails_in_a_plain_server(bases: str, tmp_path: Path) -> None:
    """A plain server that gets no process, or thread, closes that connection, counts it failed, and goes on."""
    with Service(tmp_path, script(LIMITED, bases=bases)) as service:
        service.expect("could not finish the request")
        assert int(ask(service.address, b"pid\n"))
        service.signal(LIMIT)
        service.wait("limited")
        with service.connect() as connection:
            connection.wait_end()
        service.signal(LIMIT)
        service.wait("lifted")
        assert int(ask(service.address, b"pid\n"))
        statistics = service.statistics()
        figure(f"{bases}, no process or thread: failed", statistics["failed"], 1)
        assert (statistics["accepted"], statistics["failed"], statistics["lost"]) == (3, 1, 0)
        assert "command:" not in service.log
        service.signal(signal.SIGKILL)
        service.wait_exit()
        service.wait_gone()
