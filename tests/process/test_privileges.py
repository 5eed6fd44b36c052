"""Privileges: what root was needed for is done, then every process that serves is somebody else, or does not serve."""

import os
import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.support.clients.connections import Connection, ask, dial
from tests.support.clients.controlling import ctl, open_folder
from tests.support.clients.scraping import get, total
from tests.support.hosts.users import become, dropped, namespace, seen
from tests.support.programs.command import HUNG, MODULE, ROOT
from tests.support.programs.served import RELOADS
from tests.support.programs.service import Service, script
from tests.support.tools.certificates import CERTIFICATE, KEY, client_context, make_certificate

pytestmark = [
    pytest.mark.once,
    pytest.mark.skipif(os.getuid() != 0, reason="only root can change the user of a worker"),
]

USER, GROUP, OTHER = 54321, 54322, 54323
BASES = ["PreForkingTCPServer", "PreForkingMixIn, ThreadingTCPServer", "PreForkingMixIn, ForkingTCPServer"]
PRIVILEGED = "from tests.process.programs.privileged import Handler, Hooks, companion\n"
SINGLE = "tests.process.programs.privileged"
COMPANION = PRIVILEGED + "Hooks.companions = {'beside': companion}\n"
IDS: dict[str, Any] = {"user": str(USER), "group": str(GROUP)}
ROOTS = re.compile(r"handlers run as root")


def users(service: Service) -> dict[str, set[int]]:
    """The real, effective and saved users of each kind of process, by title."""
    found: dict[str, set[int]] = {}
    for process in psutil.Process(service.pid).children():
        what = process.cmdline()[0].removeprefix("prefork: ").split()[0]
        found.setdefault(what, set()).update(process.uids())
    return found


@pytest.mark.parametrize("bases", BASES)
def test_every_process_that_serves(bases: str, tmp_path: Path) -> None:
    """Workers, companions and the exporter have these ids, no group, no capability and no way back, before the
    program's first line runs there; the master stays root. What they use is measured."""
    settings = IDS | {"umask": 0o027, "no_new_privs": True, "max_children": 2, "metrics_address": str(tmp_path / "m")}
    with Service(tmp_path, script(COMPANION, bases=bases, **settings)) as service:
        service.wait_ready(2)
        assert get(os.path.relpath(tmp_path / "m")).status == 200
        service.wait("began", lambda fact: fact["what"] == "companion")
        expected = dropped(USER, GROUP, umask="0027", no_new=1)
        assert {fact["status"] for fact in service.facts if fact["event"] == "began"} == {expected}
        assert users(service) == {"worker": {USER}, "companion": {USER}, "exporter": {USER}}
        assert all(seen(child.pid) == expected for child in psutil.Process(service.pid).children())
        assert set(psutil.Process(service.pid).uids()) == {0}
        with service.hold() as held:
            assert held.ask(b"status").decode() == expected
            for how in (b"setuid", b"seteuid", b"setgid", b"setgroups"):
                assert held.ask(b"attack " + how) == b"PermissionError"
    assert not ROOTS.search(service.log)


def test_what_runs_at_the_fork(tmp_path: Path) -> None:
    """What the program has registered to run in each child runs there without privileges, its threads as well."""
    source = script(PRIVILEGED, max_children=2, no_new_privs=True, **IDS)
    with Service(tmp_path, source, env={"AT_FORK": "1"}) as service:
        service.wait_ready(2)
        assert {fact["status"] for fact in service.wait_each("began", 4)} == {dropped(USER, GROUP, no_new=1)}
        assert {fact["what"] for fact in service.facts if fact["event"] == "began"} == {"fork", "worker"}


def test_memory_is_measured(tmp_path: Path) -> None:
    """A worker that has given up root measures itself as before: private memory and descriptors are told."""
    with Service(tmp_path, script(PRIVILEGED, max_children=1, metrics_address=str(tmp_path / "m"), **IDS)) as service:
        service.wait_ready(1)
        found = get(os.path.relpath(tmp_path / "m")).samples
        assert total(found, "prefork_worker_private_memory_bytes") > 1 << 20
        assert total(found, "prefork_worker_open_fds_max") > 3
    assert "could not measure" not in service.log


@pytest.mark.parametrize("group", [None, "spool"])
def test_groups_of_a_user(group: str | None, tmp_path: Path) -> None:
    """A user who is named has the groups of a login of his, and no other; a group that is named is beside them."""
    for name, line in {
        "passwd": "web:x:701:801::/:/bin/sh",
        "group": "web:x:801:\nlogs:x:802:web\nspool:x:804:\n",
    }.items():
        (tmp_path / name).write_text(f"root:x:0:{'0::/:/bin/sh' if name == 'passwd' else ''}\n{line}\n")
    mount = 'mount --bind passwd /etc/passwd && mount --bind group /etc/group && exec "$@"'
    before = ("unshare", "--mount", "sh", "-c", mount, "sh")
    settings: dict[str, Any] = {"user": "web", "group": group, "max_children": 1}
    with Service(tmp_path, script(PRIVILEGED, **settings), before=before) as service:
        service.wait_ready(1)
        found = ask(service.address, b"status\n").decode().strip()
        assert found == (dropped(701, 801, "801 802") if group is None else dropped(701, 804, "802 804"))


def file(folder: Path, user: str) -> None:
    lines = ["[prefork]", "target = 'program:Server'", "bind = '127.0.0.1:0'", "max_children = 1", "control = 'unix:c'"]
    (folder / "s.toml").write_text("\n".join([*lines, f"user = '{user}'", f"group = '{GROUP}'"]))


def test_a_reload_changes_the_user(tmp_path: Path) -> None:
    """The new generation is another user, and its rehearsal was; one that does not exist changes nothing."""
    file(tmp_path, str(USER))
    argv = ["-m", "prefork", "run", "--config", "s.toml"]
    with Service(tmp_path, script(PRIVILEGED), argv=argv, env={RELOADS: "1"}) as service:
        service.wait_ready(1)
        assert ask(service.address, b"status\n").decode().strip() == dropped(USER, GROUP)
        file(tmp_path, str(OTHER))
        assert ctl(tmp_path / "c", "reload").returncode == 0
        service.wait_ready(1, replaced=1)
        assert ask(service.address, b"status\n").decode().strip() == dropped(OTHER, GROUP)
        file(tmp_path, "no-such")
        service.expect("reload failed: ")
        done = ctl(tmp_path / "c", "reload")
        assert (done.returncode, "could not set user to 'no-such' (from s.toml: user)" in done.stderr) == (1, True), (
            done
        )
        assert ask(service.address, b"status\n").decode().strip() == dropped(OTHER, GROUP)


def run(folder: Path, verb: str, *argv: str, before: tuple[str, ...] = ()) -> "subprocess.CompletedProcess[str]":
    command = [*before, *MODULE, verb, "prefork.examples:Upper", "--bind", "127.0.0.1:0", "--max-children", "1", *argv]
    environ = os.environ | {"PYTHONPATH": str(ROOT)}
    return subprocess.run(command, cwd=folder, env=environ, capture_output=True, text=True, timeout=HUNG)


AS_USER = become(USER, GROUP)
MISTAKES: list[tuple[tuple[str, ...], tuple[str, ...], str]] = [
    ((), ("--user", "no-such"), "could not set user to 'no-such' (from --user): there is no user no-such"),
    ((), ("--user", "54321"), "could not set user to '54321' (from --user): there is no user of that number, so that"),
    (
        (),
        ("--user", "root", "--group", "no-such"),
        "could not set group to 'no-such' (from --group): there is no group",
    ),
    ((), ("--group", "root"), "could not set group to 'root' (from --group): there is no user, which has to be set"),
    ((), ("--umask", "999"), "could not set umask to '999' (from --umask): it must be an octal mode"),
    (
        AS_USER,
        ("--user", "root"),
        f"could not set user to 'root' (from --user): this process is of user {USER}, and may",
    ),
    (
        AS_USER,
        ("--user", str(USER), "--group", "root"),
        "could not set group to 'root' (from --group): this process is",
    ),
    (("setpriv", "--bounding-set=-kill"), ("--user", "nobody"), "(CAP_SETUID, CAP_SETGID, CAP_KILL)"),
    (
        ("unshare", "--user", "--map-root-user"),
        ("--user", "nobody"),
        "this user namespace lets nobody change his groups (/proc/self/setgroups)",
    ),
    (
        namespace("0 0 1000", "0 0 2000"),
        ("--user", "1000", "--group", "5"),
        "this user namespace has not its uid 1000 (/proc/self/uid_map)",
    ),
    (
        namespace("0 0 2000", "0 0 1000"),
        ("--user", "1000", "--group", "1000"),
        "this user namespace has not its gid 1000 (/proc/self/gid_map)",
    ),
]


@pytest.mark.parametrize("verb", ["run", "check"])
@pytest.mark.parametrize(("before", "argv", "said"), MISTAKES)
def test_mistakes(verb: str, before: tuple[str, ...], argv: tuple[str, ...], said: str) -> None:
    """Each is one sentence, status 2, before anything is bound; `prefork check` says the same."""
    with open_folder() as folder:
        done = run(folder, verb, *argv, before=before)
    assert (done.returncode, said in done.stderr) == (2, True), done.stderr
    assert "listening" not in done.stderr
    assert "Traceback" not in done.stderr


def test_a_user_who_is_it_already(tmp_path: Path) -> None:
    """Without root, a service may be told to be the user that it is, by a file that serves for root as well; what
    capabilities it was started with are given up."""
    with open_folder() as folder:
        os.chown(folder, USER, GROUP)
        with Service(folder, script(PRIVILEGED, max_children=1, **IDS), before=AS_USER) as service:
            service.wait_ready(1)
            assert ask(service.address, b"status\n").decode().strip() == dropped(USER, GROUP).replace(
                f"Groups: {GROUP}", "Groups:"
            )


@pytest.mark.parametrize("user", [None, "root"])
def test_root_is_said_once(user: str | None, tmp_path: Path) -> None:
    """A service whose handlers run as root says so when it starts, not at a reload, and not where it was asked for."""
    with Service(tmp_path, script(max_children=1, user=user), env={RELOADS: "1"}) as service:
        service.wait_ready(1)
        service.signal(signal.SIGHUP)
        service.wait_ready(1, replaced=1)
    assert len(ROOTS.findall(service.log)) == (user is None)


def test_single(tmp_path: Path) -> None:
    """The only process of --single becomes that user too, once the key is read and before worker_started()."""
    make_certificate(tmp_path)
    argv = ["-m", "prefork", "run", f"{SINGLE}:Single", "--bind", "127.0.0.1:0", "--single"]
    ids = ["--user", str(USER), "--group", str(GROUP)]
    files = ["--tls-certificate", CERTIFICATE, "--tls-key", KEY]
    with Service(tmp_path, argv=[*argv, *ids, *files], accounts=False) as service:
        assert service.wait("began")["status"] == dropped(USER, GROUP)
        context = client_context(tmp_path, certified=False)
        with Connection(context.wrap_socket(dial(service.address), server_hostname="localhost")) as client:
            assert client.ask(b"status").decode() == dropped(USER, GROUP)


def test_by_hand(tmp_path: Path) -> None:
    """handle_request() of a pool would serve as root: it does not."""
    done = subprocess.run([sys.executable, "-m", SINGLE], cwd=ROOT, capture_output=True, text=True, timeout=HUNG)
    assert "ConfigError: could not serve by handle_request(): user is set" in done.stderr


def test_a_plain_server_says_that_it_has_no_pool(tmp_path: Path) -> None:
    """Each of the settings is named there as one without effect."""
    settings: dict[str, Any] = IDS | {"umask": 0o077, "no_new_privs": True}
    source = script(
        "from tests.support.programs.served import EndedByTerm as Hooks\n", bases="ThreadingTCPServer", **settings
    )
    with Service(tmp_path, source) as service:
        assert ask(service.address, b"pid\n").strip().isdigit()
    for name in settings:
        assert f"{name} has no effect: it is a setting of a pool" in service.log


# Who is at the other end.


@pytest.mark.parametrize("bases", ["PreForkingUnixStreamServer", "PreForkingMixIn, ThreadingUnixStreamServer"])
def test_peer_credentials(bases: str, tmp_path: Path) -> None:
    """A handler at a Unix socket knows the process, the user and the group of its client, from the kernel."""
    with open_folder() as folder:
        source = script(PRIVILEGED, bases=bases, address="s", max_children=1, socket_mode=0o666, **IDS)
        with Service(folder, source) as service:
            service.wait_ready(1)
            pipe = subprocess.PIPE
            command = [*AS_USER, "nc", "-N", "-U", str(folder / "s")]
            client = subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True)
            said, _ = client.communicate("peer\n", HUNG)
            assert said == f"PeerCredentials(pid={client.pid}, uid={USER}, gid={GROUP})\n"
            with service.connect() as mine:
                assert mine.ask(b"peer").decode() == f"PeerCredentials(pid={os.getpid()}, uid=0, gid=0)"


def test_peer_credentials_elsewhere(tmp_path: Path) -> None:
    """Over TCP nobody knows them, and they are None."""
    with Service(tmp_path, script(PRIVILEGED, max_children=1)) as service:
        service.wait_ready(1)
        assert ask(service.address, b"peer\n") == b"None\n"
