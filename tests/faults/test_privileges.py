"""Started as root: what is left of that where clients are served, and that the master still does all that it should.

And a worker that has been taken over: what it tries, and what becomes of it.
"""

import errno
import os
import shutil
import signal
import ssl
import subprocess
from pathlib import Path
from time import monotonic, sleep
from typing import Any

import psutil
import pytest

from prefork.sockets.addresses import address_text
from tests.faults.injection.injector import CALLS
from tests.faults.test_surroundings import surrounded
from tests.support.clients.connections import Connection, dial
from tests.support.clients.controlling import asked, ctl, looked_at, open_folder, until
from tests.support.clients.scraping import get
from tests.support.hosts.users import become, dropped, seen
from tests.support.programs.command import HUNG, MODULE, ROOT
from tests.support.programs.served import RELOADS
from tests.support.programs.service import Service, Watch, script
from tests.support.tools.certificates import CERTIFICATE, KEY, client_context, make_certificate
from tests.support.tools.figures import figure

pytestmark = [
    pytest.mark.once,
    pytest.mark.skipif(os.getuid() != 0, reason="only root can change the user of a worker"),
]

USER, GROUP = 54321, 54322
IDS: dict[str, Any] = {"user": str(USER), "group": str(GROUP)}
PRIVILEGED = "from tests.process.programs.privileged import Handler, Hooks, companion\n"
FILE = f"""\
[prefork]
target = "program:Server"
bind = "127.0.0.1:0"
control = "unix:c"
metrics = "unix:m"
max_children = 2
log_file = "logs/log"
user = "{USER}"
group = "{GROUP}"
no_new_privs = true
tls_certificate = "{CERTIFICATE}"
tls_key = "{KEY}"
"""
EXPECTED = dropped(USER, GROUP, no_new=1)


def secured(service: Service) -> Connection:
    """A client that trusts only the certificate that lies there now."""
    context: ssl.SSLContext = client_context(service.directory, certified=False)
    return Connection(context.wrap_socket(dial(service.address), server_hostname="localhost"))


def verified(service: Service) -> int:
    """How many children there are: each has nothing left, as root sees it and as it sees itself."""
    assert get(os.path.relpath(service.directory / "m"), "/-/ready").status == 200  # the exporter has begun
    children = psutil.Process(service.pid).children()
    assert {seen(child.pid) for child in children} == {EXPECTED}
    with secured(service) as client:
        assert client.ask(b"status").decode() == EXPECTED
        assert client.ask(b"attack setuid") == b"PermissionError"
    assert set(psutil.Process(service.pid).uids()) == {0}
    return len(children)


def rotated(service: Service, number: int) -> None:
    """The log goes on in a new file, which only root may open, in every process."""
    log = service.directory / "logs" / "log"
    log.rename(log.with_name(f"log.{number}"))
    done = ctl(service.directory / "c", "reopen")
    assert (done.returncode, done.stdout) == (0, "reopened by 4 of 4 processes\n")  # companions follow


@pytest.mark.parametrize("before", [(), ("setpriv", "--bounding-set=-all,+kill,+setgid,+setuid")], ids=["all", "three"])
def test_started_as_root(before: tuple[str, ...], tmp_path: Path) -> None:
    """All ids and groups are changed, without a way back, in each process that serves, over deaths and two reloads;
    logs, certificates, control and reload, which need root, work throughout, by three capabilities,
    and it ends with status 0."""
    (tmp_path / "logs").mkdir(mode=0o700)
    make_certificate(tmp_path)
    (tmp_path / "s.toml").write_text(FILE)
    source = script(PRIVILEGED + "Hooks.companions = {'beside': companion}\n")
    argv = ["-m", "prefork", "run", "--config", "s.toml"]
    checked = since = 0
    with Service(tmp_path, source, argv=argv, before=before, env={RELOADS: "1"}) as service:
        path = tmp_path / "c"
        for number in range(1, 4):
            service.wait_ready(2, replaced=4 * (number - 1))  # by new certificates, and by a reload
            service.wait("began", lambda fact: fact["what"] == "companion", after=since)
            checked += verified(service)
            rotated(service, number)
            victim = service.workers()[0]
            with Watch(victim) as watch:
                service.signal(signal.SIGKILL, victim)
                watch.wait_dead()
            service.wait_ready(2, killed=number)
            checked += verified(service)
            make_certificate(tmp_path)
            assert ctl(path, "reload-tls").returncode == 0
            service.wait_ready(2, replaced=4 * number - 2)
            with secured(service) as client:
                held = int(client.ask(b"pid"))
                stacks = {each["pid"]: each["stacks"] for each in asked(path, "stacks")["workers"]}
                assert "in handle" in stacks[held]
            since = service.mark()
            if number < 3:
                done = ctl(path, "reload")
                assert done.returncode == 0, done.stderr
    figure("processes that serve, verified over two reloads", checked, "4 each time")


def test_a_user_who_is_it_already() -> None:
    """Where a filter forbids every call that changes users, as a hardened unit has it, `user` may say what the service
    is already: nothing is asked for, and it serves."""
    forbidden = (f"refused={CALLS[call]}:{errno.EPERM}" for call in ("setgroups", "setresuid", "setresgid"))
    with open_folder() as folder:
        os.chown(folder, USER, GROUP)
        before = [*become(USER, GROUP), *surrounded(*forbidden)]
        with Service(folder, script(PRIVILEGED, max_children=1, **IDS), before=before) as service:
            service.wait_ready(1)


@pytest.mark.parametrize(
    ("how", "last"),
    [
        ((), "prefork: could not start a worker: 3 died before they were ready, the last of: "),
        (("--single",), "prefork: could not serve: "),
    ],
)
def test_a_kernel_that_refuses(how: tuple[str, ...], last: str, tmp_path: Path) -> None:
    """Where a filter lets nobody change his groups, no process serves: one sentence, status 3."""
    argv = [*surrounded(f"refused={CALLS['setgroups']}:{errno.EPERM}"), *MODULE, "run", "prefork.examples:Upper"]
    argv += ["--bind", "127.0.0.1:0", "--max-children", "1", "--user", str(USER), "--group", str(GROUP), *how]
    environ = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(argv, cwd=tmp_path, env=environ, capture_output=True, text=True, timeout=HUNG, check=False)
    assert done.returncode == 3, done.stderr
    assert done.stderr.splitlines()[-1] == f"{last}could not set the groups of user {USER}: operation not permitted"
    assert "Traceback" not in done.stderr


# (what it tries, what comes of it). PATHS are filled in.
TRIES = {
    "kill the master": ("kill {master}", "PermissionError"),
    "read the master's memory": ("read /proc/{master}/mem", "PermissionError"),
    "trace the master": ("trace {master}", "PermissionError"),
    "read another worker's memory": ("read /proc/{other}/mem", "PermissionError"),
    "read another worker's environment": ("read /proc/{other}/environ", "PermissionError"),
    "trace another worker": ("trace {other}", "PermissionError"),
    "read the key": ("read {folder}/key.pem", "PermissionError"),
    "write the program": ("write {folder}/program.py", "PermissionError"),
    "command the service": ("connect {folder}/c", "PermissionError"),
    "remove the control socket": ("unlink {folder}/c", "PermissionError"),
    "take a port below 1024": ("bind 80", "PermissionError"),
    "become root": ("setuid", "PermissionError"),
}


def test_what_a_worker_cannot_do() -> None:
    """It gets no further than its own process: not at the master, another worker, the key, the program, the control
    socket or a privileged port; and the service serves on."""
    with open_folder() as folder:
        make_certificate(folder)
        settings: dict[str, Any] = IDS | {"max_children": 2, "control_socket": str(folder / "c")}
        with Service(folder, script(PRIVILEGED, **settings)) as service:
            service.wait_ready(2)
            with service.hold() as held:
                (other,) = set(service.workers()) - {held.pid}
                names = {"master": service.pid, "other": other, "folder": folder}
                found = {
                    what: held.ask(b"attack " + order.format_map(names).encode()).decode()
                    for what, (order, _) in TRIES.items()
                }
            assert found == {what: end for what, (_, end) in TRIES.items()}
            with service.connect() as client:
                assert client.ask(b"pid")
            assert set(service.workers()) == {held.pid, other}


@pytest.mark.parametrize("no_new_privs", [True, False])
def test_a_setuid_program(no_new_privs: bool) -> None:
    """With no_new_privs a program that belongs to root and is setuid gives a worker nothing; without it, root."""
    with open_folder() as folder:
        shutil.copy("/usr/bin/id", folder)
        (folder / "id").chmod(0o4755)
        settings = IDS | {"max_children": 1, "no_new_privs": no_new_privs}
        with Service(folder, script(PRIVILEGED, **settings)) as service:
            service.wait_ready(1)
            with service.connect() as client:
                assert client.ask(b"attack run %s/id" % str(folder).encode()) == (
                    b"%d" % USER if no_new_privs else b"0"
                )


def connected(service: Service) -> Connection:
    """A client, as soon as one is let in."""
    deadline = monotonic() + HUNG
    while True:
        try:
            return service.connect()
        except (ConnectionRefusedError, FileNotFoundError):
            assert monotonic() < deadline, "hung: every client is refused"
            sleep(0.01)


def test_what_a_worker_can_do_to_the_service() -> None:
    """It has the listener, so it can have the kernel refuse every client, again and again: the master listens again,
    where it did. It has the log, so it can write what it likes there; and it may ask for the end. The master goes on,
    obeys, and ends with status 0."""
    with open_folder() as folder:
        settings: dict[str, Any] = IDS | {"max_children": 2, "graceful_timeout": 2, "control_socket": str(folder / "c")}
        with Service(folder, script(PRIVILEGED, **settings), env={RELOADS: "1"}) as service:
            service.wait_ready(2)
            service.expect(f"{address_text(service.address)} was shut down by a process of the service: it listens")
            service.allow("could not accept: get_request")
            for _ in range(3):
                with connected(service) as client:
                    client.ask(b"attack shut")
            connected(service).close()
            assert ctl(folder / "c", "reload").returncode == 0
            with connected(service) as client:
                client.ask(b"attack log INFO running, as the master says it")
                client.ask(b"shutdown")
            assert service.wait_exit() == 0
            assert "INFO running, as the master says it\n" in service.log


def test_a_unix_socket_that_a_worker_has_shut_down(monkeypatch: pytest.MonkeyPatch) -> None:
    """Another one is bound at its path, as often as it takes; ready stays green, and a reload goes on with it."""
    with open_folder() as folder:
        monkeypatch.chdir(folder)
        settings: dict[str, Any] = IDS | {"max_children": 2, "address": "s", "metrics_address": "m"}
        source = script(PRIVILEGED, bases="PreForkingUnixStreamServer", **settings)
        with Service(folder, source, env={RELOADS: "1"}) as service:
            service.wait_ready(2)
            service.expect("s was shut down by a process of the service: its path is bound anew")
            for times in (1, 2, 3):
                with connected(service) as client:
                    client.ask(b"attack shut")
                service.wait_ready(2, replaced=2 * times)
            assert get("m", "/-/ready").status == 200
            service.signal(signal.SIGHUP)
            service.wait_ready(2, replaced=8)
            with connected(service) as client:
                client.ask(b"status")


@pytest.mark.parametrize("more", ["", ",+sys_ptrace"])
def test_the_clients_of_a_worker(more: str, tmp_path: Path) -> None:
    """The master finds them by the right to look into another user's process; without it they are not told."""
    before = ("setpriv", f"--bounding-set=-all,+kill,+setgid,+setuid{more}")
    settings = IDS | {"max_children": 1, "control_socket": str(tmp_path / "c")}
    with Service(tmp_path, script(PRIVILEGED, **settings), before=before) as service:
        service.wait_ready(1)
        with service.hold() as held:
            peer = ":".join(map(str, held.sock.getsockname()[:2]))
            found = until(lambda found: looked_at(found) or not more, lambda: asked(tmp_path / "c", "workers"))
            assert found["workers"][0]["peers"] == ([peer] if more else [])


def test_without_a_user() -> None:
    """A worker that is of the master's user reads the master's memory, and changes what it will run."""
    with open_folder() as folder:
        os.chown(folder, USER, GROUP)
        with Service(folder, script(PRIVILEGED, max_children=1), before=become(USER, GROUP)) as service:
            service.wait_ready(1)
            os.chown(folder / "program.py", USER, GROUP)
            with service.hold() as held:
                assert held.ask(b"attack write %s/program.py" % str(folder).encode()) == b"opened"
                assert held.ask(b"attack map %d" % service.pid) == b"read"


def test_what_a_worker_can_do_to_its_siblings() -> None:
    """They are of one user, so it can kill another worker; the master replaces it, and nobody else is touched. The same
    goes for a companion and for the exporter."""
    with open_folder() as folder:
        source = script(
            PRIVILEGED + "Hooks.companions = {'beside': companion}\n", max_children=2, metrics_address="m", **IDS
        )
        with Service(folder, source) as service:
            service.wait_ready(2)
            exporter = os.path.relpath(folder / "m")
            companion = service.wait("began", lambda fact: fact["what"] == "companion")["pid"]
            assert get(exporter, "/-/ready").status == 200
            with service.hold() as held:
                children = {child.pid for child in psutil.Process(service.pid).children()} - {held.pid}
                for pid in children:
                    service.allow(rf"pid={pid}: ")
                    assert held.ask(b"attack kill %d" % pid) == b"killed"
                service.wait_ready(2, killed=1)
                assert get(exporter, "/-/ready").status == 200
                service.wait("began", lambda fact: fact["what"] == "companion" and fact["pid"] != companion)
                assert held.pid in service.workers()
