"""deploy/systemd under the real systemd of Debian 12 and of Debian 13, which is PID 1 of a small host of its own:
the page's lines do what it says, everything that the unit forbids is forbidden and the service does not miss it, and
its queue outlives its master."""

import os
import re
import signal
import socket
from collections.abc import Iterator
from pathlib import Path
from time import monotonic

import pytest

from tests.support.clients.connections import HUNG, Load, connect
from tests.support.clients.scraping import Answer, get
from tests.support.hosts.booted import (
    INSTANCE,
    METRICS,
    PACKAGES,
    RELEASES,
    SERVICE,
    UNITS,
    Release,
    Systemd,
    installed,
    page_commands,
    page_dropin,
    page_exposure,
    page_lines,
    page_unit,
    possible,
)  # fmt: skip
from tests.support.hosts.namespaces import ROOT
from tests.support.hosts.roots import debian, keeping
from tests.support.programs.service import Service
from tests.support.tools.figures import figure

pytestmark = pytest.mark.skipif(not possible(), reason="needs root, mmdebstrap and a cgroup of version 2")

PROJECT = ROOT / "pyproject.toml"
UNIT, SOCKET = f"prefork@{INSTANCE}.service", f"prefork@{INSTANCE}.socket"
APP = "from prefork.examples import Upper\n"
SECOND = """
from prefork import StreamRequestHandler
class Upper(StreamRequestHandler):
    def handle(self):
        for line in self.rfile:
            self.wfile.write(b"second " + line)
"""
BROKEN = "raise RuntimeError('broken release')\n"
TOML = '[prefork]\ntarget = "app:Upper"\nmetrics = "0.0.0.0:9465"\nmax_children = 3\n'
KILLED = 'prefork_worker_exits_total{reason="killed"}'
RELOADED = 'prefork_reloads_total{result="ok"}'
STARTS_OF_ITSELF = 5  # DefaultStartLimitBurst=
WAITING = 20  # connections
NO_ANSWER_S = 0.5  # to a connect() that the kernel drops
ELSEWHERE = "10.0.0.1"  # not in 127.0.0.0/8, so not `localhost` to the unit's filter


@pytest.fixture(scope="module", params=list(RELEASES))
def release(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Release]:
    with keeping() as folder:
        root = debian(request.param, PACKAGES, folder)
        yield installed(request.param, root, tmp_path_factory.mktemp(request.param))


def files(**settings: object) -> dict[str, str]:
    return {"app.py": APP, "upper.toml": TOML + "".join(f"{name} = {value!r}\n" for name, value in settings.items())}


def wait_scrape(systemd: Systemd, sample: str, value: float) -> Answer:
    """The first scrape in which this sample has this value."""
    deadline = monotonic() + HUNG
    while True:
        try:
            if (answer := get(METRICS)).samples.get(sample) == value:
                return answer
        except OSError:
            pass  # it is not there yet
        assert monotonic() < deadline, f"hung: {sample} does not get {value:g}\n{systemd.log}"


def wait_shown(systemd: Systemd, **properties: str) -> None:
    """Until `systemctl show` has these of the service."""
    deadline = monotonic() + HUNG
    while (found := {name: systemd.shown(name) for name in properties}) != properties:
        assert monotonic() < deadline, f"hung: {found} does not get {properties}\n{systemd.log}"


def wait_restarts(systemd: Systemd, count: int) -> None:
    """Until the manager has started the service anew this often."""
    deadline = monotonic() + HUNG
    while int(systemd.shown("NRestarts")) < count:
        assert monotonic() < deadline, f"hung: {UNIT} is not started anew\n{systemd.log}"


def kill_a_worker(systemd: Systemd) -> set[str]:
    """The names of all metrics that are served once it is replaced."""
    os.kill(systemd.pid_of("worker"), signal.SIGKILL)
    wait_scrape(systemd, KILLED, 1)
    found = wait_scrape(systemd, "prefork_lanes", 3)
    return {sample.partition("{")[0] for sample in found.samples}


def wait_second() -> None:
    """Until nobody else serves: an old worker that is told to leave may answer once more."""
    deadline = monotonic() + HUNG
    while answer() != b"second x":
        assert monotonic() < deadline, "hung: the second release does not serve"


def answer(address: tuple[str, int] = SERVICE) -> bytes:
    with connect(address) as client:
        return client.ask(b"x")


def test_the_page(release: Release, tmp_path: Path) -> None:
    """From nothing by the page's own lines to a service that answers, and on by each command of its table; no tool
    has anything to complain about. The release by the link is another program, and so the answer."""
    with Systemd(release, tmp_path) as systemd:
        said = systemd.said + systemd.shell(page_lines("enable --now"))
        assert answer() == b"X"
        look, new, link, end = (
            page_commands()[job] for job in ("look", "release new code", "release by the link", "drain and end")
        )
        assert "  running  generation 1  " in systemd.shell(look)
        said += systemd.shell(new)
        systemd.write("/srv/upper-2/app.py", SECOND)
        toml = f"/etc/prefork/{INSTANCE}.toml"
        systemd.write(toml, systemd.path(toml).read_text().replace("prefork.examples:", "app:"))
        said += systemd.shell(link)
        wait_second()
        said += systemd.run("systemd-analyze", "verify", f"{UNITS}/{UNIT}", f"{UNITS}/{SOCKET}")
        said += systemd.shell(end)
        assert (systemd.shown("ActiveState"), systemd.shown("Result")) == ("inactive", "success")
    expected = r"Created symlink|Creating (user|group)|/usr/lib/tmpfiles.d/legacy.conf:"  # the last is Debian's own
    assert [line for line in said.splitlines() if not re.match(expected, line)] == []


@pytest.mark.parametrize("release", ["bookworm"], indirect=True)
def test_the_oldest_libraries(release: Release, tmp_path: Path) -> None:
    """The lower bounds of the package on Python 3.11 are what Debian 12 has, with which all this runs."""
    asked = "from importlib.metadata import version; print(version('psutil'), version('setproctitle'))"
    with Systemd(release, tmp_path) as systemd:
        found = systemd.run("/opt/prefork/bin/python", "-c", asked).split()
    bounds = dict(re.findall(r'"(psutil|setproctitle)>=([\d.]+)(?:"|; python_version <)', PROJECT.read_text()))
    assert found == [bounds["psutil"], bounds["setproctitle"]]


def test_a_unit_of_your_own(release: Release, tmp_path: Path) -> None:
    """The two units that the page shows serve, and by HUP a release replaces the other; systemd-analyze is silent."""
    with Systemd(release, tmp_path, files()) as systemd:
        systemd.path("/srv/upper/.venv").symlink_to("/opt/prefork")
        for name in ("upper.socket", "upper.service"):
            systemd.write(f"{UNITS}/{name}", page_unit(name))
        systemd.systemctl("daemon-reload")
        assert systemd.run("systemd-analyze", "verify", f"{UNITS}/upper.service", f"{UNITS}/upper.socket") == ""
        systemd.systemctl("start", "upper.socket", "upper.service")
        assert answer() == b"X"
        systemd.write("/srv/upper/app.py", SECOND)
        systemd.systemctl("reload", "upper.service")
        wait_second()


def test_the_exposure(release: Release, tmp_path: Path) -> None:
    """The two figures of the page are what systemd-analyze says of the unit as it is there."""

    def exposure() -> float:
        said = systemd.run("systemd-analyze", "security", "--no-pager", UNIT)
        return float(re.findall(r"Overall exposure level for \S+: ([0-9.]+)", said)[0])

    with Systemd(release, tmp_path, files()) as systemd:
        plain = exposure()
        systemd.shell(page_lines("privileged-port.conf"))
        port = exposure()
    figure(f"exposure under systemd {release.version}: the unit, with a port of its own", f"{plain}, {port}", "1.6")
    assert (plain, port) == page_exposure()


@pytest.mark.parametrize("denied", ["EPERM", "kill"])
def test_the_unit_for_real(release: Release, denied: str, tmp_path: Path) -> None:
    """Start, serve, scrape, release by a link, refuse a broken one, kill a worker, drain: nothing is missed that the
    unit forbids. Once as shipped; once so that the first system call outside the filter is a death by SIGSYS. With
    the drop-in for 257 on 252 as well, where that is ignored."""
    dropin = f"[Service]\nSystemCallErrorNumber={denied}\n"
    with Systemd(release, tmp_path, files(), {"denied.conf": dropin}, newer=True) as systemd:
        systemd.systemctl("start", SOCKET, UNIT)  # returns when it is READY
        with Load(SERVICE, 2, right=rb"PID\n|second pid\n") as load:
            load.wait_answered()
            wait_scrape(systemd, "prefork_lanes", 3)
            confined(systemd)
            main = systemd.shown("MainPID")
            systemd.write("/srv/upper-2/app.py", SECOND)
            systemd.shell(page_commands()["release by the link"])  # returns when all that is new is in service
            wait_second()
            systemd.write("/srv/upper/app.py", BROKEN)
            with pytest.raises(AssertionError, match="broken release"):
                systemd.systemctl("reload", UNIT)
            tally = load.stop()
        served = kill_a_worker(systemd)
        assert systemd.shown("MainPID") == main
        systemd.systemctl("stop", SOCKET, UNIT)
        assert (systemd.shown("Result"), systemd.shown("NRestarts")) == ("success", "0")
        free = served_where_nothing_is_forbidden(systemd, tmp_path)
        log = systemd.log
    figure("under the unit: answered over a reload, failed", f"{tally.answered}, {tally.failures}", "0 failed")
    assert tally.failures == 0
    assert "not permitted" not in log
    assert "SIGSYS" not in log
    assert free - served == set()


def confined(systemd: Systemd) -> None:
    """The kernel says of master, worker and exporter that they may do nothing more."""
    for title in ("master", "worker", "exporter"):
        lines = Path(f"/proc/{systemd.pid_of(title)}/status").read_text().splitlines()
        status = {name: value.strip() for name, _, value in (line.partition(":") for line in lines)}
        assert (status["Seccomp"], status["NoNewPrivs"]) == ("2", "1"), title
        assert int(status["CapEff"], 16) == int(status["CapBnd"], 16) == 0, title
        assert "0" not in status["Uid"].split(), title


def served_where_nothing_is_forbidden(systemd: Systemd, folder: Path) -> set[str]:
    """The names of the metrics of the same service by hand, to which the same has happened."""
    for name, text in files().items():
        (folder / name).write_text(text)
    argv = ["-m", "prefork", "run", "--config", "upper.toml", "--bind", "127.0.0.1:9999"]
    with Service(folder, argv=argv, accounts=False) as service:
        wait_scrape(systemd, "prefork_lanes", 3)
        assert answer() == b"X"
        service.signal(signal.SIGHUP)
        wait_scrape(systemd, RELOADED, 1)
        service.signal(signal.SIGKILL, service.workers()[0])
        wait_scrape(systemd, KILLED, 1)
        return {sample.partition("{")[0] for sample in wait_scrape(systemd, "prefork_lanes", 3).samples}


@pytest.mark.parametrize("release", [name for name, version in RELEASES.items() if version >= 253], indirect=True)
def test_a_reload_without_a_command(release: Release, tmp_path: Path) -> None:
    """By Type=notify-reload: once it returns the new code is in service, and was asked for once; of a broken one the
    log tells, and what served serves on."""
    with Systemd(release, tmp_path, files(), page_dropin("notify-reload.conf")) as systemd:
        systemd.systemctl("start", SOCKET, UNIT)
        systemd.write("/srv/upper/app.py", SECOND)
        systemd.systemctl("reload", UNIT)
        wait_second()
        assert systemd.log.count("command: reload") == 1
        systemd.write("/srv/upper/app.py", BROKEN)
        systemd.systemctl("reload", UNIT)
        assert "reload failed" in systemd.log
        assert answer() == b"second x"


def test_the_queue_outlives_the_master(release: Release, tmp_path: Path) -> None:
    """An instance with a low port of its own, its master killed with connections in the queue: systemd starts it
    anew with the listener that it kept, and each connection is answered. Its socket unit is not wanted back."""
    with Systemd(release, tmp_path, files(bind="0.0.0.0:80")) as systemd:
        systemd.shell(page_lines("privileged-port.conf"))
        systemd.systemctl("start", UNIT)
        assert systemd.run("systemctl", "is-active", SOCKET, check=False).strip() == "inactive"
        held = [connect(("127.0.0.1", 80)) for _ in range(3)]
        for connection in held:
            assert connection.ask(b"x") == b"X"  # every worker has one
        waiting = [connect(("127.0.0.1", 80)) for _ in range(WAITING)]
        for connection in waiting:
            connection.send(b"y")
        os.kill(systemd.pid_of("master"), signal.SIGKILL)
        answers = [connection.answer() for connection in waiting[:3]]
        for connection in (*held, *waiting[:3]):
            connection.close()
        for connection in waiting[3:]:
            connection.sock.shutdown(socket.SHUT_WR)
        answers += [connection.answer() for connection in waiting[3:]]
        for connection in waiting[3:]:
            connection.close()
        assert systemd.shown("NRestarts") == "1"
    figure(f"under systemd, master killed with {WAITING} in the queue: answered", answers.count(b"Y"), WAITING)
    assert answers == [b"Y"] * WAITING


def test_a_start_that_fails(release: Release, tmp_path: Path) -> None:
    """What the service needs is not to be had at its start: `systemctl start` fails and the log has the reason. It is
    tried anew, more often than the manager does by itself, and serves once that can be had."""
    quick = {"quick.conf": "[Service]\nRestartSec=100ms\nRestartMaxDelaySec=100ms\n"}
    with Systemd(release, tmp_path, files(), quick, newer=False) as systemd:
        with socket.create_server(METRICS):
            with pytest.raises(AssertionError, match=f"could not bind.*{METRICS[1]}"):
                systemd.systemctl("start", SOCKET, UNIT)
            wait_restarts(systemd, STARTS_OF_ITSELF + 1)
        wait_shown(systemd, ActiveState="active")
        assert answer() == b"X"


@pytest.mark.parametrize("release", [name for name, version in RELEASES.items() if version >= 257], indirect=True)
def test_the_next_start_is_later(release: Release, tmp_path: Path) -> None:
    """With the drop-in for 257 a service that does not start is tried after a second, and then after a longer time."""
    with Systemd(release, tmp_path, files()) as systemd, socket.create_server(METRICS):
        systemd.run("systemctl", "start", SOCKET, UNIT, check=False)
        assert systemd.shown("RestartUSecNext") == "1s"
        wait_restarts(systemd, 1)
        wait_shown(systemd, SubState="auto-restart")
        assert systemd.shown("RestartUSecNext") != "1s"


def test_who_is_let_in(release: Release, tmp_path: Path) -> None:
    """From elsewhere the socket unit's address answers; one that the service bound itself, such as that of its
    metrics, does once the page's drop-in says so."""
    with Systemd(release, tmp_path, files()) as systemd:
        systemd.run("ip", "address", "add", f"{ELSEWHERE}/32", "dev", "lo")
        systemd.systemctl("start", SOCKET, UNIT)
        wait_scrape(systemd, "prefork_lanes", 3)
        assert answer((ELSEWHERE, 9999)) == b"X"
        with pytest.raises(TimeoutError):
            connect((ELSEWHERE, 9465), timeout=NO_ANSWER_S)
        systemd.dropin(page_dropin("scrape.conf"))
        systemd.systemctl("restart", UNIT)
        wait_scrape(systemd, "prefork_lanes", 3)
        assert get((ELSEWHERE, 9465), "/-/ready").status == 200


def test_who_commands(release: Release, tmp_path: Path) -> None:
    """A user that the page's lines let in may command, and one beside him in the group may not. Before 257 that
    takes the page's drop-in as well."""
    scale = f"/opt/prefork/bin/prefork ctl --control unix:/run/prefork/{INSTANCE}/control.sock scale"
    with Systemd(release, tmp_path, files(), {} if release.version >= 257 else page_dropin("users.conf")) as systemd:
        systemd.run("useradd", "deployer")
        systemd.run("useradd", "--groups", "prefork", "other")
        systemd.systemctl("start", SOCKET)
        systemd.shell(page_lines("usermod"))
        systemd.run("runuser", "-u", "deployer", "--", *scale.split(), "2")
        wait_scrape(systemd, "prefork_lanes", 2)
        with pytest.raises(AssertionError, match="may not"):
            systemd.run("runuser", "-u", "other", "--", *scale.split(), "3")


def test_a_master_that_hangs_is_started_anew(release: Release, tmp_path: Path) -> None:
    """A stopped master feeds no watchdog: systemd kills it and starts another, on the socket unit's queue, in which
    nobody was lost."""
    with Systemd(release, tmp_path, files(), {"watchdog.conf": "[Service]\nWatchdogSec=2\n"}) as systemd:
        systemd.systemctl("start", SOCKET, UNIT)
        first = systemd.shown("MainPID")
        os.kill(systemd.pid_of("master"), signal.SIGSTOP)
        held = [connect(SERVICE) for _ in range(3)]
        for connection in held:
            assert connection.ask(b"x") == b"X"  # the workers serve on; every one has a client
        with connect(SERVICE) as waiting:
            waiting.send(b"y")
            assert waiting.answer() == b"Y"
        for connection in held:
            connection.close()
        assert systemd.shown("NRestarts") == "1"
        assert systemd.shown("MainPID") != first
