"""Room for a pool: descriptors, what the kernel lets it do, and how it says what is missing."""

import errno
import os
import re
import resource
import signal
import socket
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from tests.faults.injection.injector import CALLS
from tests.faults.test_surroundings import surrounded
from tests.support.clients.connections import ask
from tests.support.clients.scraping import get
from tests.support.programs.releases import Released, numbered
from tests.support.programs.service import HUNG, ROOT, Service, script
from tests.support.tools.figures import figure

pytestmark = pytest.mark.once

SOFT, MANY = 64, 30
WITHOUT = {
    "no /proc": ("unshare", "--mount", "sh", "-c", 'mount -t tmpfs none /proc; exec "$@"', "sh"),
    "no capability": ("setpriv", "--bounding-set=-all", "--inh-caps=-all"),
}
LIMITS = """
class Handler(Who):
    def do_limit(self):
        import resource, subprocess
        child = subprocess.run(["sh", "-c", "ulimit -Sn"], capture_output=True, text=True).stdout.strip()
        return f"{resource.getrlimit(resource.RLIMIT_NOFILE)[0]} {child}"
RELEASE = ""
"""


def soft_limit(pid: int) -> int:
    """As proc(5) tells it, which may also be asked of a process that has changed its user."""
    found = re.search(r"Max open files +(\d+)", Path(f"/proc/{pid}/limits").read_text())
    assert found is not None
    return int(found[1])


def test_the_soft_limit_is_the_masters_alone(tmp_path: Path) -> None:
    """The master raises its soft limit to the hard one, over a reload too; worker, exporter and what a worker starts
    have the old one."""
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    source = script(LIMITS, max_children=2, metrics_address=str(tmp_path / "m"))
    with Released(tmp_path, source=source, before=surrounded(f"limit=NOFILE:{SOFT}:{hard}")) as service:
        service.wait_ready(2)
        for image in range(2):
            assert get(str(tmp_path / "m"), "/-/ready").status == 200
            assert soft_limit(service.pid) == min(hard, 1 << 20)
            assert {soft_limit(child.pid) for child in psutil.Process(service.pid).children()} == {SOFT}
            assert ask(service.address, b"limit\n") == b"%d %d\n" % (SOFT, SOFT)
            if not image:
                service.signal(signal.SIGHUP)
                service.wait_ready(2, replaced=2)


def test_two_descriptors_a_child(tmp_path: Path) -> None:
    """A child costs the master two descriptors, its pidfd and its memory; so many that they do not fit under its first
    soft limit are served by, told of by the exporter, and reloaded."""
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    before = surrounded(f"limit=NOFILE:{SOFT}:{hard}")
    with Released(tmp_path, before=before, max_children=1, metrics_address=str(tmp_path / "m")) as service:
        service.wait_ready(1)
        one = psutil.Process(service.pid).num_fds()
        for workers in range(2, MANY + 1):
            service.signal(signal.SIGTTIN)
            service.wait_ready(workers)
        all_of_them = psutil.Process(service.pid).num_fds()
        each = (all_of_them - one) / (MANY - 1)
        assert all_of_them > SOFT
        assert get(str(tmp_path / "m")).samples['prefork_workers{state="idle"}'] == MANY
        service.release(numbered(2))
        service.signal(signal.SIGHUP)
        service.wait_ready(1, replaced=MANY)
        assert service.answering() == "r2"
    figure("descriptors that a child costs the master", each, 2)
    assert each == 2


APP = """
from prefork import PreForkingTCPServer, StreamRequestHandler

class Server(PreForkingTCPServer):
    RequestHandlerClass = StreamRequestHandler
    max_children = 2
"""


def refused(
    tmp_path: Path, *what: str, options: tuple[str, ...] = ("--bind", "127.0.0.1:0"), target: str = "app:Server"
) -> tuple[int, str]:
    """How `prefork run` ends in these surroundings, where it does not serve: its status, and all that it says."""
    (tmp_path / "app.py").write_text(APP)
    ended = subprocess.run(
        [*surrounded(*what), sys.executable, "-m", "prefork", "run", target, *options], cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)}, stderr=subprocess.PIPE, text=True, timeout=HUNG, check=False,
    )  # fmt: skip
    return ended.returncode, ended.stderr


def test_too_few_descriptors(tmp_path: Path) -> None:
    """A hard limit under what both generations take is refused before anything is forked, with both numbers."""
    status, said = refused(tmp_path, "limit=NOFILE:100:100", options=("--bind", "127.0.0.1:0", "--max-children", "50"))
    assert status == 2
    assert re.match(
        r"prefork: could not serve with max_children=50: .* may take 2\d\d descriptors, and 100 is the limit\n", said
    )
    assert "forked" not in said


def test_more_workers_than_the_table_has_rows(tmp_path: Path) -> None:
    """More children than the board has rows for, twice over, are refused with the number."""
    status, said = refused(tmp_path, options=("--bind", "127.0.0.1:0", "--max-children", "1021"))
    assert (status, "1020" in said, said.count("\n")) == (2, True, 1)


@pytest.mark.parametrize("error", [errno.ENOSYS, errno.EPERM], ids=["ENOSYS", "EPERM"])
@pytest.mark.parametrize(
    "call", ["pidfd_open", "pidfd_send_signal", "memfd_create", "eventfd2", "epoll_create1", "pipe2", "socketpair"]
)
def test_a_call_that_a_filter_refuses(call: str, error: int, tmp_path: Path) -> None:
    """What a pool cannot do without is tried before it serves; one sentence names the call, and the status is 1."""
    status, said = refused(tmp_path, f"refused={CALLS[call]}:{error}")
    assert status == 1
    reason = os.strerror(error).lower()
    assert f"prefork: could not start a pool: the kernel refuses {call.rstrip('2')}: {reason}\n" in said
    assert "Traceback" not in said


@pytest.mark.parametrize(
    ("without", "called"),
    [("select.epoll", "epoll_create1"), ("os.pidfd_open", "pidfd_open"), ("os.eventfd", "eventfd"),
     ("os.memfd_create", "memfd_create"), ("signal.pidfd_send_signal", "pidfd_send_signal")],
)  # fmt: skip
def test_a_call_that_this_python_lacks(without: str, called: str, tmp_path: Path) -> None:
    """An interpreter that was built where a call was unknown, and a program that deletes it, as monkey-patching
    libraries do, is refused by the name of the call."""
    (tmp_path / "lacking.py").write_text(f"import os, select, signal\ndel {without}\nfrom app import *\n")
    status, said = refused(tmp_path, target="lacking:Server")
    assert status == 1
    assert f"prefork: could not start a pool: this Python has no {called}: " in said
    assert "Traceback" not in said


def test_a_limit_of_file_sizes(tmp_path: Path) -> None:
    """Under `ulimit -f 1` there is no shared memory: one sentence says so, and what to raise."""
    status, said = refused(tmp_path, "limit=FSIZE:1024:1024")
    assert status == 1
    assert "the kernel refuses memfd_create: file too large" in said
    assert "ulimit -f" in said


MEASURED = """
from pathlib import Path
import app, sys
class Server(app.Server):
    def serve_forever(self):
        if not Path("measured").exists():
            sys.exit(Path("/proc/self/status").read_text().partition("VmPeak:")[2].split()[0])
        super().serve_forever()
"""


def test_a_limit_of_memory(tmp_path: Path) -> None:
    """Under an `ulimit -v` that leaves room for the program, but not for a pool, one sentence says so, with a hint."""
    (tmp_path / "measuring.py").write_text(MEASURED)
    kilobytes = int(refused(tmp_path, target="measuring:Server")[1].split()[-1])
    (tmp_path / "measured").touch()
    most = (kilobytes + 512) * 1024
    status, said = refused(tmp_path, f"limit=AS:{most}:{most}", target="measuring:Server")
    assert (status, said.count("\n")) == (1, 2), said
    assert "prefork: could not start a pool: the kernel refuses memfd_create: cannot allocate memory\n" in said
    assert "ulimit -v" in said


def test_affinity_that_a_filter_refuses(tmp_path: Path) -> None:
    """Where the CPUs cannot be asked for, all of the machine count, and it serves."""
    before = surrounded(f"refused={CALLS['sched_getaffinity']}:{errno.EPERM}")
    with Service(tmp_path, script(max_children=1), before=before) as service:
        service.wait_ready(1)


@pytest.mark.parametrize("option", ["--bind", "--metrics"])
def test_no_ipv6(option: str, tmp_path: Path) -> None:
    """Where the kernel has no IPv6, an address of it could not be bound: one sentence, status 4."""
    options = ("--bind", "[::1]:0") if option == "--bind" else ("--bind", "127.0.0.1:0", "--metrics", "[::1]:0")
    what = f"refused={CALLS['socket']}:{errno.EAFNOSUPPORT}:{int(socket.AF_INET6)}"
    status, said = refused(tmp_path, what, options=options)
    assert status == 4, said
    assert re.match(r"prefork: could not .*: address family not supported by protocol\n$", said)
    assert "Traceback" not in said


@pytest.mark.parametrize("what", ["no /proc", "no capability"])
def test_metrics_where_root_can_do_little(what: str, tmp_path: Path) -> None:
    """Without /proc, and as root without any capability, the exporter serves like the pool, and stays the same one."""
    if os.geteuid() != 0:
        pytest.skip("needs root")
    before = WITHOUT[what]
    settings = script(max_children=1, metrics_address=str(tmp_path / "m"))
    with Service(tmp_path, settings, before=before) as service:
        service.wait_ready(1)
        assert ask(service.address, b"pid\n")
        for _ in range(2):
            assert get(str(tmp_path / "m"), "/-/ready").status == 200
    assert service.log.count("the exporter stays root, without the rights of root: could not ") == (
        what == "no capability"
    )
    assert "exit status 1" not in service.log
