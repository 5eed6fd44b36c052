"""`prefork check`: a service is loaded and one worker booted, and nobody who listens there feels it."""

import os
import shutil
import socket
import subprocess
from pathlib import Path

import pytest

from tests.support.clients.connections import ask
from tests.support.clients.controlling import asked
from tests.support.programs.command import HUNG, MODULE, ROOT, running

pytestmark = pytest.mark.once  # nothing of it is the interpreter's

PROGRAMS = Path(__file__).parent / "programs"


@pytest.fixture
def here(tmp_path: Path) -> Path:
    shutil.copy(PROGRAMS / "checked_app.py", tmp_path / "app.py")
    shutil.copy(PROGRAMS / "mistaken.py", tmp_path)
    (tmp_path / "broken.py").write_text("1 / 0\n")
    return tmp_path


def check(
    here: Path, *argv: str, fds: tuple[int, ...] = (), before: tuple[str, ...] = ()
) -> "subprocess.CompletedProcess[str]":
    environ = os.environ | {"PYTHONPATH": str(ROOT)}
    return subprocess.run(
        [*before, *MODULE, "check", *argv],
        cwd=here,
        env=environ,
        capture_output=True,
        text=True,
        timeout=HUNG,
        pass_fds=fds,
    )


def test_what_would_start(here: Path) -> None:
    """All is loaded, a worker boots once, in a process that knows that it is a trial; no path is left."""
    (here / "s.toml").write_text("[prefork]\ntarget = 'app:Server'\nmax_children = 3\nmetrics = 'unix:metrics.sock'\n")
    done = check(here, "--config", "s.toml", "--bind", "127.0.0.1:0")
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    lines = done.stdout.splitlines()
    assert lines.pop(2) == "booting True"
    assert lines[0] == "target    app:Server is loaded"
    assert lines[1] == "settings  2 of s.toml, --bind"
    assert lines[2:4] == ["address   127.0.0.1:0: free", "address   metrics.sock: free"]
    assert lines[4].startswith("worker    booted in ")
    assert lines[5:] == ["ok"]
    assert not (here / "metrics.sock").exists()


@pytest.mark.parametrize(
    ("target", "of_its_own"),
    [
        (
            "Server",
            ["get_request() waits for the TLS handshake", "Handler cannot be called", "max_threads has no"],
        ),
        (
            "Wrapped",
            ["the listener is wrapped so that the TLS", "StreamRequestHandler does nothing"],
        ),
        (
            "pairs",
            ["verify_request() waits for the TLS", "process_request() waits for the TLS", "two_things cannot be"],
        ),
        ("Patient", []),
        (
            "OwnLoop",
            ["StreamRequestHandler does nothing", "serve_forever() of OwnLoop has no effect: a pool is served by"],
        ),
    ],
)
def test_what_shows_only_under_load(target: str, of_its_own: list[str], here: Path) -> None:
    """Each such mistake is a warning with its remedy, and the service would start."""
    done = check(here, f"mistaken:{target}", "--bind", "127.0.0.1:0")
    assert done.returncode == 0, done.stderr
    said = [line.removeprefix("warning   ") for line in done.stdout.splitlines() if line.startswith("warning   ")]
    wanted = ["the thread reaper is alive at the fork", "socket.setdefaulttimeout(5) is in force", *of_its_own]
    assert [line.startswith(beginning) for line, beginning in zip(said, wanted, strict=True)] == [True] * len(wanted)
    assert done.stdout.endswith("\nok\n")


@pytest.mark.skipif(os.getuid() != 0, reason="only root can be somebody else")
@pytest.mark.parametrize(("name", "mode", "owner"), [
    ("app.py", 0o644, 54321), ("app.py", 0o664, 0), ("app.py", 0o646, 0), (".", 0o775, 0), (".", 0o1777, 0),
    ("s.toml", 0o666, 0), ("app.py", 0o644, 0),
])  # fmt: skip
def test_code_that_its_user_may_change(name: str, mode: int, owner: int, here: Path) -> None:
    """Root would run at a reload what a worker that was taken over has written: that is a warning, with the file."""
    (here / "s.toml").write_text("[prefork]\ntarget = 'app:Handler'\nuser = '54321'\ngroup = '54322'\n")
    os.chown(here / name, owner, 54322)
    (here / name).chmod(mode)
    done = check(here, "--config", "s.toml", "--bind", "127.0.0.1:0")
    assert done.returncode == 0, done.stderr
    warned = [line for line in done.stdout.splitlines() if "can be changed by the user of the service" in line]
    assert len(warned) == ((mode, owner) != (0o644, 0))
    assert all(str(name if name == "s.toml" else here / name).rstrip("./") in line for line in warned)


def test_more_workers_than_descriptors(here: Path) -> None:
    """What `prefork run` would refuse for want of descriptors is refused, with the number."""
    done = check(here, "app:Server", "--bind", ":0", "--max-children", "400", before=("prlimit", "--nofile=256"))
    assert (done.returncode, "could not serve with max_children=400" in done.stderr) == (2, True), done.stderr


def test_beside_the_running_service(here: Path) -> None:
    """At the addresses of the service that runs it says so and boots all the same; the service serves on."""
    path = here / "s.sock"
    argv = ["app:Handler", "--bind", f"unix:{path}", "--control", "unix:c.sock", "--max-children", "1"]
    with running(["run", *argv], cwd=here):
        done = check(here, *argv)
        assert done.returncode == 0, done.stderr
        assert f"address   {path}: in use now, so not tried" in done.stdout
        assert "address   c.sock: in use now, so not tried" in done.stdout
        assert asked(here / "c.sock", "status")["requests"]["accepted"] == 0
        assert ask(str(path), b"") == b"served"


@pytest.mark.parametrize("family", [socket.AF_INET, socket.AF_INET6, socket.AF_UNIX])
def test_who_listens_there_does_not_feel_it(family: socket.AddressFamily, here: Path) -> None:
    """No connection is made to an address in use, and its listener's queue is left as it is."""
    with socket.socket(family) as listener:
        listener.bind({socket.AF_INET: ("127.0.0.1", 0), socket.AF_INET6: ("::1", 0)}.get(family, str(here / "s.sock")))
        listener.listen(7)
        name = listener.getsockname()
        bind = f"unix:{name}" if isinstance(name, str) else f"[{name[0]}]:{name[1]}" if ":" in name[0] else ""
        done = check(here, "app:Handler", "--bind", bind or f"127.0.0.1:{name[1]}")
        assert done.returncode == 0, done.stderr
        assert ": in use now" in done.stdout
        listener.setblocking(False)
        with pytest.raises(BlockingIOError):
            listener.accept()


def test_datagrams_of_others_are_left_alone(here: Path) -> None:
    """A UDP port in use is not shared, not even for a moment: what is sent there meanwhile arrives."""
    with socket.socket(type=socket.SOCK_DGRAM) as server:
        server.bind(("127.0.0.1", 0))
        server.settimeout(HUNG)
        port = server.getsockname()[1]
        done = check(here, "prefork.examples:UpperDatagram", "--bind", f"udp://127.0.0.1:{port}")
        assert done.returncode == 0, done.stderr
        assert f"address   udp://127.0.0.1:{port}: in use now" in done.stdout


def test_two_kinds_at_one_port(here: Path) -> None:
    """Of TCP and UDP at one port each is named, so that one tells which of them is in use."""
    with socket.socket(type=socket.SOCK_DGRAM) as server:
        server.bind(("127.0.0.1", 0))
        port = server.getsockname()[1]
        (here / "s.toml").write_text(
            f"[prefork]\ntarget = 'app:Handler'\nbind = '127.0.0.1:{port}'\n"
            f"[[prefork.also]]\ntarget = 'prefork.examples:UpperDatagram'\nbind = 'udp://127.0.0.1:{port}'\n"
        )
        done = check(here, "--config", "s.toml")
    assert done.returncode == 0, done.stderr
    tcp, udp = (line for line in done.stdout.splitlines() if line.startswith("address "))
    assert tcp.startswith(f"address   127.0.0.1:{port}: ")
    assert udp.startswith(f"address   udp://127.0.0.1:{port}: in use now")


def test_stale_path_is_left(here: Path) -> None:
    """A socket that a dead server left is said to be removed by a start, and is not removed by a check."""
    path = here / "s.sock"
    with socket.socket(socket.AF_UNIX) as left:
        left.bind(str(path))
    done = check(here, "app:Handler", "--bind", f"unix:{path}")
    assert done.returncode == 0, done.stderr
    assert f"address   {path}: a stale socket, which would be removed" in done.stdout
    assert path.exists()


def test_inherited_descriptor_is_left(here: Path) -> None:
    """A listener that was inherited is taken as it is: its queue keeps its length, and nobody is taken from it."""
    with socket.create_server(("127.0.0.1", 0), backlog=7) as listener:
        before = _backlog(listener)
        done = check(here, "app:Server", "--bind", f"fd://{listener.fileno()}", fds=(listener.fileno(),))
        assert done.returncode == 0, done.stderr
        assert _backlog(listener) == before


def _backlog(listener: socket.socket) -> int:
    """tcp_info: of a listening socket, tcpi_sacked is the limit of its queue; tcp(7), net/ipv4/tcp.c."""
    info = listener.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 104)
    return int.from_bytes(info[28:32], "little")


@pytest.mark.parametrize(
    ("argv", "status", "said"),
    [
        (
            ["app:Server", "--bind", ":0", "--control", "unix:no/c"],
            4,
            "could not bind no/c (from --control): no such",
        ),
        (["app:Broken", "--bind", "127.0.0.1:0"], 3, "RuntimeError: no database"),
        (["app:Hanging", "--bind", "127.0.0.1:0"], 3, "not ready within 0.5 s (boot_timeout)"),
        (
            ["app:Server", "--bind", "192.0.2.1:1"],
            4,
            "could not bind 192.0.2.1:1 (from --bind): cannot assign",
        ),
        (
            ["app:Handler", "--bind", "unix:/no/such/folder/s"],
            4,
            "could not bind /no/such/folder/s (from --bind): no such",
        ),
        (["app:Handler", "--bind", "unix:app.py"], 4, "could not bind app.py (from --bind): it exists and is"),
        (["app:Server", "--bind", ":0", "--max-children", "0"], 2, "could not set max_children to '0'"),
        (["app:Server", "--bind", ":0", "--log-file", "/no/such/log"], 2, "could not open the log file /no/such/log"),
        (["broken:Server", "--bind", ":0"], 2, "prefork: could not import broken: ZeroDivisionError: division by zero"),
        (["app:Server", "--bind", ":0", "--tls-certificate", "no.pem"], 2, "could not read tls_certificate no.pem"),
        (["app:Server", "--bind", ":0", "--tls-key", "no.pem"], 2, "could not set tls_key: there is no tls_cert"),
        (["app:Server", "--bind", ":0", "--control", "unix:c", "--control-allow", "x.y"], 2, "control_allow"),
        (["app:Handler", "--bind", "udp://127.0.0.1:0", "--tls-certificate", "no.pem"], 2, "could not"),
        (["app:Server"], 2, "it needs an address; say --bind HOST:PORT"),
    ],
)
def test_what_would_not_start(argv: list[str], status: int, said: str, here: Path) -> None:
    """What would keep the service from starting is said, with the status that `prefork run` would have."""
    done = check(here, *argv)
    assert done.returncode == status
    assert said in done.stderr
    assert "ok\n" not in done.stdout
