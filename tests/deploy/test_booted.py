"""deploy/systemd under a real systemd, which is PID 1 of a small host of its own: everything that the unit forbids is
forbidden, and the service does not miss it; its queue outlives its master."""

import signal
import socket
from pathlib import Path
from time import monotonic

import pytest

from tests.support.booted import DEPLOY, INSTANCE, METRICS, SERVICE, Systemd, possible
from tests.support.clients import HUNG, Load, connect
from tests.support.figures import figure
from tests.support.scraping import Answer, get
from tests.support.service import Service

pytestmark = pytest.mark.skipif(not possible(), reason="needs root, systemd and a cgroup of version 2")

UNIT, SOCKET = f"prefork@{INSTANCE}.service", f"prefork@{INSTANCE}.socket"
APP = "from prefork.examples import Upper\n"
SECOND = """
from prefork import StreamRequestHandler
class Upper(StreamRequestHandler):
    def handle(self):
        for line in self.rfile:
            self.wfile.write(b"second " + line)
"""
TOML = '[prefork]\ntarget = "app:Upper"\nmetrics = "0.0.0.0:9465"\nmax_children = 3\n'
KILLED = 'prefork_worker_exits_total{reason="killed"}'
WAITING = 20  # connections
NO_ANSWER_S = 0.5  # to a connect() that the kernel drops


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


def kill_a_worker(systemd: Systemd, worker: int) -> set[str]:
    """The names of all metrics that are served once it is replaced."""
    systemd.run("kill", "-KILL", str(worker))
    wait_scrape(systemd, KILLED, 1)
    found = wait_scrape(systemd, "prefork_lanes", 3)
    return {sample.partition("{")[0] for sample in found.samples}


@pytest.mark.parametrize("denied", ["EPERM", "kill"])
def test_the_unit_for_real(denied: str, tmp_path: Path) -> None:
    """Start, serve, scrape, release by a link, refuse a broken one, kill a worker, drain: nothing is missed that the
    unit forbids. Once as shipped; once so that the first system call outside the filter is a death by SIGSYS."""
    dropin = f"[Service]\nSystemCallErrorNumber={denied}\n"
    with Systemd(tmp_path, files(), {"denied.conf": dropin}) as systemd:
        systemd.systemctl("start", SOCKET, UNIT)  # returns when it is READY
        with Load(SERVICE, 2) as load:
            load.wait_answered()
            wait_scrape(systemd, "prefork_lanes", 3)
            confined(systemd)
            main = systemd.shown("MainPID")
            systemd.run("mkdir", "/srv/releases/2")
            systemd.path("/srv/releases/2/app.py").write_text(SECOND)
            systemd.run("ln", "-sfn", "releases/2", "/srv/upper")
            systemd.systemctl("reload", UNIT)  # returns when all that is new is in service
            with connect(SERVICE) as client:
                assert client.ask(b"x") == b"second x"
            systemd.path("/srv/upper/app.py").write_text("raise RuntimeError('broken release')\n")
            with pytest.raises(AssertionError, match="broken release"):
                systemd.systemctl("reload", UNIT)
            tally = load.stop()
        served = kill_a_worker(systemd, systemd.inside("worker"))
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
        lines = Path(f"/proc/{systemd.outside(title)}/status").read_text().splitlines()
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
        with connect(SERVICE) as client:
            assert client.ask(b"x") == b"X"
        service.signal(signal.SIGHUP)
        wait_scrape(systemd, "prefork_generation", 2)
        service.signal(signal.SIGKILL, service.workers()[0])
        wait_scrape(systemd, KILLED, 1)
        return {sample.partition("{")[0] for sample in wait_scrape(systemd, "prefork_lanes", 3).samples}


def test_the_queue_outlives_the_master(tmp_path: Path) -> None:
    """An instance with a low port of its own, its master killed with connections in the queue: systemd starts it
    anew with the listener that it kept, and each connection is answered."""
    dropin = (DEPLOY / "privileged-port.conf").read_text()
    settings = files(bind="0.0.0.0:80")
    with Systemd(tmp_path, settings, {"port.conf": dropin}) as systemd:
        systemd.systemctl("start", UNIT)
        held = [connect(("127.0.0.1", 80)) for _ in range(3)]
        for connection in held:
            assert connection.ask(b"x") == b"X"  # every worker has one
        waiting = [connect(("127.0.0.1", 80)) for _ in range(WAITING)]
        for connection in waiting:
            connection.send(b"y")
        systemd.run("kill", "-KILL", systemd.shown("MainPID"))
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


def test_who_is_let_in(tmp_path: Path) -> None:
    """From elsewhere the socket unit's address answers; one that the service bound itself, such as that of its
    metrics, does once a drop-in says so. By another drop-in the control socket can be given to a group."""
    elsewhere = "10.0.0.1"  # not in 127.0.0.0/8, so not `localhost` to the unit's filter
    settings = files(control_owner=":prefork", control_mode="0660")
    with Systemd(tmp_path, settings, {"group.conf": "[Service]\nSystemCallFilter=@chown\n"}) as systemd:
        systemd.run("ip", "address", "add", f"{elsewhere}/32", "dev", "lo")
        systemd.systemctl("start", SOCKET, UNIT)
        wait_scrape(systemd, "prefork_lanes", 3)
        with connect((elsewhere, 9999)) as client:
            assert client.ask(b"x") == b"X"
        with pytest.raises(TimeoutError):
            connect((elsewhere, 9465), timeout=NO_ANSWER_S)
        dropin = systemd.path(f"/etc/systemd/system/{UNIT}.d/clients.conf")
        dropin.write_text(f"[Service]\nIPAddressAllow={elsewhere}/8\n")
        systemd.systemctl("daemon-reload")
        systemd.systemctl("restart", UNIT)
        wait_scrape(systemd, "prefork_lanes", 3)
        assert get((elsewhere, 9465), "/-/ready").status == 200


def test_a_master_that_hangs_is_started_anew(tmp_path: Path) -> None:
    """A stopped master feeds no watchdog: systemd kills it and starts another, on the socket unit's queue, in which
    nobody was lost."""
    with Systemd(tmp_path, files(), {"watchdog.conf": "[Service]\nWatchdogSec=2\n"}) as systemd:
        systemd.systemctl("start", SOCKET, UNIT)
        first = systemd.shown("MainPID")
        systemd.run("kill", "-STOP", first)
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
