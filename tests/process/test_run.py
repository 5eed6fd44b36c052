"""`prefork run`: every kind of target at every kind of address, real clients, and every exit status."""

import http.client
import os
import shutil
import signal
import socket
from pathlib import Path

import psutil
import pytest

from tests.support.clients.connections import ask, ask_datagram
from tests.support.clients.controlling import ctl
from tests.support.programs.command import HUNG, running

APP = Path(__file__).parent / "programs" / "targets_app.py"
INSTANCE = "import app\nserver = app.alone()\n"
ANY_PORT = "127.0.0.1:0"


@pytest.fixture
def here(tmp_path: Path) -> Path:
    shutil.copy(APP, tmp_path / "app.py")
    (tmp_path / "instance.py").write_text(INSTANCE)
    return tmp_path


@pytest.mark.parametrize(
    ("target", "bind"),
    [
        ("app:Who", ["--bind", ANY_PORT]),
        ("app:Who", ["--bind", "[::1]:0"]),
        ("app:Inner.Handler", ["--bind", "localhost:0"]),
        ("app:Ours", ["--bind", ANY_PORT]),
        ("app:Own", ["--bind", ANY_PORT]),
        ("app:of_text", ["--bind", ANY_PORT]),
        ("app:named", ["--bind", ANY_PORT]),
        ("app:partly", ["--bind", ANY_PORT]),
        ("app:Maker.make", ["--bind", ANY_PORT]),
        ("app:maker", ["--bind", ANY_PORT]),
        ("app:Standard", ["--bind", ANY_PORT, "--max-threads", "2"]),
        ("app:factory", ["--bind", ANY_PORT]),
        ("app:alone", []),
        ("instance:server", []),
    ],
)
def test_every_kind_of_target_serves(target: str, bind: list[str], here: Path) -> None:
    """Handler, server class, ours or not, factory, instance: a worker of the master answers, and TERM is status 0."""
    with running(["run", target, *bind, "--max-children", "2"], cwd=here) as run:
        host = "::1" if "[::1]" in run.address else "127.0.0.1"
        word, pid, parent = ask((host, run.port), b"hello\n").split()
        assert word == b"HELLO"
        assert int(parent) == run.pid
        assert int(pid) != run.pid
        assert psutil.Process(run.pid).cmdline()[0].startswith(f"prefork: master {target}")
        assert run.ended(signal.SIGTERM) == 0
    assert "Traceback" not in run.log


@pytest.mark.parametrize(
    ("target", "said", "title"),
    [
        ("Mine", "'mine'", "mine"),
        ("make", "'mine'", "mine"),
        ("Empty", "''", "called:Empty"),
        ("Other", "('upper', 1)", "called:Other"),
        ("other", "('upper', 1)", "called:other"),
    ],
)
def test_name_of_the_service(target: str, said: str, title: str, tmp_path: Path) -> None:
    """A class may name its service; what a program has for itself under that name stays what it is."""
    shutil.copy(APP.parent / "called.py", tmp_path)
    with running(["run", f"called:{target}", "--bind", ANY_PORT, "--max-children", "1"], cwd=tmp_path) as run:
        assert ask(("127.0.0.1", run.port), b"").decode() == said
        assert psutil.Process(run.pid).cmdline()[0].startswith(f"prefork: master {title}")


@pytest.mark.parametrize("target", ["app:Who", "app:Unix"])
def test_unix_stream(target: str, here: Path) -> None:
    """unix:/path serves on a path that is there while it serves and gone afterwards."""
    path = here / "s.sock"
    with running(["run", target, "--bind", f"unix:{path}", "--max-children", "1"], cwd=here) as run:
        assert run.address == str(path)
        assert ask(str(path), b"hello\n").startswith(b"HELLO ")
    assert not path.exists()


def test_address_with_a_scope(here: Path) -> None:
    """An address may name its interface, whether or not it takes that (RFC 4007, 11), as `ip` and `ss` write it."""
    with running(["run", "app:Who", "--bind", "[::1%lo]:0", "--max-children", "1"], cwd=here) as run:
        port = int(run.address.rpartition(":")[2])
        assert ask(("::1", port), b"hello\n").startswith(b"HELLO ")


def test_abstract_name(here: Path) -> None:
    """unix:@name serves on an abstract name, of which there is no file, also after a reload; a drain frees it."""
    name = f"prefork-test-{os.getpid()}"
    argv = ["run", "app:Who", "--bind", f"unix:@{name}", "--max-children", "1", "--control", "c"]
    with running(argv, cwd=here) as run:
        assert run.address == f"@{name}"
        assert ask(f"\0{name}", b"hello\n").startswith(b"HELLO ")
        assert ctl(here / "c", "reload").returncode == 0
        assert ask(f"\0{name}", b"hello\n").startswith(b"HELLO ")
        assert run.ended(signal.SIGTERM) == 0
    with socket.socket(socket.AF_UNIX) as again:
        again.bind(f"\0{name}")
    assert not (here / f"@{name}").exists()


def test_control_socket_of_another(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """PREFORK_CONTROL is a service's own: where another has it, the refusal says what is for `prefork ctl` alone."""
    monkeypatch.setenv("PREFORK_CTL", "c")  # which means nothing to either
    with running(["run", "app:Who", "--bind", ANY_PORT, "--max-children", "1", "--control", "c"], cwd=here):
        monkeypatch.setenv("PREFORK_CONTROL", "./c")
        with running(["run", "app:Who", "--bind", ANY_PORT, "--max-children", "1"], cwd=here) as other:
            assert other.ended() == 4
        assert "could not bind ./c (from PREFORK_CONTROL): another server is listening there\n" in other.log
        assert "PREFORK_CONTROL is this service's own socket; for prefork ctl alone, set PREFORK_CTL.\n" in other.log


def test_datagrams(here: Path) -> None:
    """udp:// and unixgram: serve a datagram handler."""
    argv = ["run", "prefork.examples:UpperDatagram", "--max-children", "1", "--bind"]
    with running([*argv, "udp://127.0.0.1:0"], cwd=here) as run:
        assert ask_datagram(("127.0.0.1", run.port), b"hello") == b"HELLO"
    path = here / "d.sock"
    with running([*argv, f"unixgram:{path}"], cwd=here):
        assert ask_datagram(str(path), b"hello", str(here / "me.sock")) == b"HELLO"


def test_inherited_descriptor(here: Path) -> None:
    """fd://N serves on a socket that the parent bound; what was queued there before the start is answered."""
    with socket.create_server(("127.0.0.1", 0)) as listener, socket.create_connection(listener.getsockname()) as early:
        early.settimeout(HUNG)
        early.sendall(b"early\n")
        early.shutdown(socket.SHUT_WR)
        argv = ["run", "app:Ours", "--bind", f"fd://{listener.fileno()}", "--max-children", "1"]
        with running(argv, cwd=here, fds=[listener.fileno()]) as run:
            assert run.port == listener.getsockname()[1]
            assert early.recv(100).startswith(b"EARLY ")
            assert ask(("127.0.0.1", run.port), b"hello\n").startswith(b"HELLO ")


def test_threads_where_asked(here: Path) -> None:
    """With --max-threads a handler class is served by threads: two requests are in one worker at once."""
    argv = ["run", "app:Barrier", "--bind", ANY_PORT, "--max-children", "1", "--max-threads", "2"]
    with running(argv, cwd=here) as run, socket.create_connection(("127.0.0.1", run.port), HUNG) as first:
        assert ask(("127.0.0.1", run.port), b"") == b"together\n"
        assert first.recv(100) == b"together\n"


def test_http_example(here: Path) -> None:
    """The Http example answers a real HTTP client and says which worker did."""
    with running(["run", "prefork.examples:Http", "--bind", ANY_PORT, "--max-children", "1"], cwd=here) as run:
        client = http.client.HTTPConnection("127.0.0.1", run.port, timeout=HUNG)
        client.request("GET", "/")
        answer = client.getresponse()
        assert answer.status == 200
        assert b"prefork: worker 1" in answer.read()
        client.close()


def test_settings_are_in_force(here: Path) -> None:
    """A setting on the command line reaches the pool: after max_requests another worker answers."""
    argv = ["run", "app:Who", "--bind", ANY_PORT, "--max-children", "1", "--max-requests", "1"]
    with running(argv, cwd=here) as run:
        pids: set[bytes] = set()
        while len(pids) < 2:  # ends by the watchdog of running(), if it does not by itself
            pids.add(ask(("127.0.0.1", run.port), b"hello\n").split()[1])


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGQUIT])
def test_stopped_with_a_request_in_hand(signum: int, here: Path) -> None:
    """Ctrl-C ends it at once and quietly, although a client is connected: status 0, no traceback."""
    argv = ["run", "prefork.examples:Upper", "--bind", ANY_PORT, "--max-children", "2"]
    with running(argv, cwd=here) as run, socket.create_connection(("127.0.0.1", run.port), HUNG) as client:
        client.sendall(b"hello\n")
        assert client.recv(100) == b"HELLO\n"
        os.killpg(run.pid, signum)  # as a terminal does, to all of them
        assert run.ended() == 0
    assert "Traceback" not in run.log


@pytest.mark.parametrize("target", ["app:Who", "app:Standard", "app:factory"])
def test_port_in_use_is_4(target: str, here: Path) -> None:
    """A port that is taken is exit status 4 and one sentence with the address."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        with running(["run", target, "--bind", address], cwd=here) as run:
            assert run.ended() == 4
    assert run.log == f"prefork: could not bind {address} (from --bind): address already in use\n"


TOML = "[prefork]\n{}\n"
METRICS_BY_CLASS = "class Told(prefork.PreForkingTCPServer):\n    RequestHandlerClass = Who\n    metrics_address = "
NAMED = {
    "--bind": ("app:Who", ["--bind", "PORT"], "", ""),
    "PREFORK_BIND": ("app:Who", [], "PORT", ""),
    "s.toml: bind": ("app:Who", [], "", "bind = ['127.0.0.1:0', 'PORT']"),
    "s.toml: also 1: bind": ("app:Who", ["--bind", ANY_PORT], "", "[[prefork.also]]\nbind = 'PORT'"),
    "--metrics": ("app:Who", ["--bind", ANY_PORT, "--metrics", "PORT"], "", ""),
    "PREFORK_METRICS": ("app:Who", ["--bind", ANY_PORT], "PORT", ""),
    "s.toml: metrics": ("app:Who", ["--bind", ANY_PORT], "", "metrics = 'unix:PATH'"),
    "metrics_address": ("app:Told", ["--bind", ANY_PORT], "", ""),
    "--control": ("app:Who", ["--bind", ANY_PORT, "--control", "PATH"], "", ""),
    "s.toml: control": ("app:Who", ["--bind", ANY_PORT], "", "control = 'PATH'"),
}


@pytest.mark.parametrize("origin", NAMED)
def test_what_is_taken_is_named_with_its_setting(origin: str, here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever listens, and whoever says where: the sentence has the address, and what has asked for it."""
    target, argv, variable, table = NAMED[origin]
    monkeypatch.chdir(here)
    with socket.create_server(("127.0.0.1", 0)) as taken, socket.socket(socket.AF_UNIX) as taken_path:
        taken_path.bind("taken")
        taken_path.listen()
        port = "{}:{}".format(*taken.getsockname())
        (here / "s.toml").write_text(TOML.format(table.replace("PORT", port).replace("PATH", "taken")))
        (here / "app.py").write_text(f"{APP.read_text()}\n\n{METRICS_BY_CLASS}{taken.getsockname()}\n")
        if variable:
            monkeypatch.setenv(origin, port)
        argv = [each.replace("PORT", port).replace("PATH", "taken") for each in argv]
        with running(["run", target, *argv, "--config", "s.toml"], cwd=here) as run:
            assert run.ended() == 4
    address = "taken" if "control" in origin or "unix" in table else port
    assert f"prefork: could not bind {address} (from {origin}): " in run.log


def test_unknown_host_is_4(here: Path) -> None:
    """A host that has no address here is exit status 4 and one sentence."""
    with running(["run", "app:Who", "--bind", "host.invalid:0"], cwd=here) as run:
        assert run.ended() == 4
    assert run.log.startswith("prefork: could not bind host.invalid:0 (from --bind): ")
    assert run.log.count("\n") == 1


def test_no_worker_is_3(here: Path) -> None:
    """Workers that never get ready are exit status 3, and the last error is in the sentence."""
    with running(["run", "app:Unbootable", "--bind", ANY_PORT, "--max-children", "1"], cwd=here) as run:
        run.expect("(?s)boot_failed.*RuntimeError: no database")
        assert run.ended() == 3
    last = run.log.splitlines()[-1]
    assert last.startswith("prefork: could not ")
    assert "no database" in last


def test_wrong_usage_is_2(here: Path) -> None:
    """A mistake is exit status 2, and nothing is bound."""
    with running(["run", "app:Who", "--bind", f"unix:{here}/s.sock", "--max-children", "0"], cwd=here) as run:
        assert run.ended() == 2
    why = "it must be a whole number, at least 1, at most 1020"
    assert run.log == f"prefork: could not set max_children to '0' (from --max-children): {why}\n"
    assert not (here / "s.sock").exists()
