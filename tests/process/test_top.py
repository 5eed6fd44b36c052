"""`prefork top`: as plain text, and on a real terminal (tmux); from the control socket, and from metrics."""

import os
import shlex
import shutil
import signal
import socket
import ssl
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from time import monotonic
from typing import Any

import pytest

from tests.support.clients.answering import answering, ended
from tests.support.clients.connections import HUNG, ROOT, ask
from tests.support.programs.monitored import MONITORED
from tests.support.programs.service import ENDED_BY_TERM, Service, script

pytestmark = pytest.mark.once


@pytest.fixture
def service(tmp_path: Path) -> Iterator[Service]:
    settings: dict[str, Any] = {"control_socket": str(tmp_path / "c"), "metrics_address": ("127.0.0.1", 0)}
    with Service(tmp_path, script(MONITORED, max_children=2, **settings)) as service:
        service.wait_ready(2)
        yield service


def top(*argv: str) -> list[str]:
    return [sys.executable, "-m", "prefork", "top", *argv]


def control(service: Service) -> list[str]:
    return top("--control", str(service.directory / "c"))


def metrics(service: Service) -> list[str]:
    host, port = service.wait("metrics")["address"]
    return top("--url", f"http://{host}:{port}/metrics")


def run(argv: list[str], **environ: str) -> "subprocess.CompletedProcess[str]":
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("PREFORK_")}
    return subprocess.run(argv, cwd=ROOT, env=inherited | environ, capture_output=True, text=True, timeout=HUNG)


def test_once(service: Service) -> None:
    """--once prints the header and a row a worker, without a terminal."""
    with service.hold() as held:
        peer = ":".join(map(str, held.sock.getsockname()[:2]))
        done = run([*control(service), "--once"])
    assert done.returncode == 0, done.stderr
    assert "running  generation 1" in done.stdout
    assert "lanes 1 of 2 (50%)" in done.stdout
    assert sum(str(pid) in done.stdout for pid in service.workers()) == 2
    assert peer in done.stdout
    assert all(len(line) <= 200 for line in done.stdout.splitlines())


def test_once_from_metrics(service: Service) -> None:
    """--url has the same header, and what metrics tell of all workers; where the rows are, it says."""
    with service.hold():
        done = run([*metrics(service), "--once"])
    assert done.returncode == 0, done.stderr
    host, port = service.address
    assert f"{host}:{port}  ready  generation 1  up " in done.stdout
    assert "lanes 1 of 2 (50%)  queue 0 of " in done.stdout
    assert "workers 2 (2 to 2): 1 idle, 1 busy" in done.stdout
    assert "1 accepted, 0 ok, 0 rejected" in done.stdout
    assert "rows of each need --control PATH" in done.stdout
    assert not any(str(pid) in done.stdout for pid in service.workers())


@pytest.mark.parametrize("form", ["unix:{}", "{}"])
def test_once_from_metrics_on_a_unix_socket(tmp_path: Path, form: str) -> None:
    """The address that the service has as --metrics is a URL as well, also in the service's own variable."""
    with Service(tmp_path, script(max_children=1, metrics_address=str(tmp_path / "m"))) as service:
        service.wait_ready(1)
        url = form.format(tmp_path / "m")
        for done in (
            run(top("--once", "--url", url)),
            run(top("--once"), PREFORK_URL=url, PREFORK_CONTROL="no"),
            run(top("--once"), PREFORK_METRICS=url),
        ):
            assert done.returncode == 0, done.stderr
            assert "ready  generation 1" in done.stdout


@pytest.mark.parametrize("bases", ["ThreadingTCPServer", "SupervisedMixIn, TCPServer"])
def test_once_of_a_server_without_a_pool(tmp_path: Path, bases: str) -> None:
    """Its metrics are shown too, without what it has not."""
    with Service(tmp_path, script(ENDED_BY_TERM, bases=bases, metrics_address=str(tmp_path / "m"))) as service:
        assert int(ask(service.address, b"pid\n"))
        service.settled()
        done = run(top("--once", "--url", f"unix:{tmp_path / 'm'}"))
    assert done.returncode == 0, done.stderr
    assert "1 accepted, 1 ok" in done.stdout
    assert "generation" not in done.stdout
    assert "None" not in done.stdout


def test_what_is_no_exporter(service: Service) -> None:
    """The service's own address, another path, and nobody: each is one sentence, with exit status 1."""
    service.expect("AttributeError: 'Who' object has no attribute 'do_GET'")
    host, port = service.address
    with socket.create_server(("127.0.0.1", 0)) as listener:
        nobody = listener.getsockname()[1]
    said = {
        f"{host}:{port}": "does not speak HTTP",
        metrics(service)[-1] + "/x": "it answers 404 Not Found",
        metrics(service)[-1].replace("/metrics", "/-/ready"): "it is no exporter of a prefork service",
        f"127.0.0.1:{nobody}": "connection refused",
        "unix:/nowhere/m": "no such file or directory",
    }
    for url, sentence in said.items():
        done = run(top("--once", "--url", url))
        assert done.returncode == 1
        assert sentence in done.stderr
        assert done.stderr.startswith("prefork: could not ")
        assert done.stderr.count("\n") == 1


@pytest.mark.parametrize(
    ("argv", "sentence"),
    [
        (["--url", "ftp://x/"], "it must be http://HOST:PORT, HOST:PORT or unix:/PATH"),
        (["--url", "127.0.0.1:1", "--control", "/c"], "--control and --url are both given; say one"),
        ([], "no service is given; say --control PATH or --url URL"),
    ],
)
def test_wrong_usage(argv: list[str], sentence: str) -> None:
    """Nobody is asked, and the exit status is 2."""
    done = run(top(*argv))
    assert done.returncode == 2
    assert sentence in done.stderr


@pytest.mark.parametrize("unbuffered", ["", "1"])
@pytest.mark.parametrize("argv", [["--once"], ["--help"]])
def test_a_reader_who_has_seen_enough(service: Service, argv: list[str], unbuffered: str) -> None:
    """`prefork top --once | head -1` says nothing of a broken pipe."""
    environ = {**os.environ, "PYTHONUNBUFFERED": unbuffered}
    read, write = os.pipe()
    os.close(read)
    try:
        done = subprocess.run(
            [*control(service), *argv], cwd=ROOT, env=environ, stdout=write, stderr=subprocess.PIPE, timeout=HUNG
        )
    finally:
        os.close(write)
    assert done.stderr == b""


class Terminal:
    """A tmux of its own with one window of 80 by 24."""

    def __init__(self, folder: Path, argv: list[str]) -> None:
        self._tmux = ["tmux", "-S", str(folder / "t"), "-f", "/dev/null"]
        shell = f"cd {ROOT} && {shlex.join(argv)}; echo left $?; exec cat"
        self.run("new-session", "-d", "-x", "80", "-y", "24", shell)

    def run(self, *argv: str) -> str:
        environ = {**os.environ, "TERM": "xterm", "LC_ALL": "C.UTF-8"}
        return subprocess.check_output([*self._tmux, *argv], env=environ, text=True, timeout=HUNG)

    def type(self, *keys: str) -> None:
        self.run("send-keys", *keys)

    def wait(self, *words: str, without: str = "\0") -> str:
        """The screen, once all of this is on it."""
        deadline = monotonic() + HUNG
        while without in (screen := self.run("capture-pane", "-p")) or not all(word in screen for word in words):
            assert monotonic() < deadline, f"hung: {words} not on the screen:\n{screen}"
        return screen

    def __enter__(self) -> "Terminal":
        return self

    def __exit__(self, *exc: object) -> None:
        self.run("kill-server")


def test_on_a_terminal(service: Service, tmp_path: Path) -> None:
    """In 80 by 24: header, workers, keys; `s` sorts, `d` has the selected one replaced, `q` leaves."""
    before = service.workers()
    with Terminal(tmp_path, control(service)) as terminal:
        screen = terminal.wait("running  generation 1", "by slot", *map(str, before))
        assert "q quit" in screen
        terminal.type("s")
        terminal.wait("by request")
        terminal.type("s", "s", "s", "s")
        terminal.wait("by slot")
        terminal.type("Down", "d")
        service.wait_ready(2, replaced=1)
        assert len(set(before) & set(service.workers())) == 1
        terminal.wait("worker 2 is replaced", *map(str, service.workers()))
        terminal.type("q")
        terminal.wait("left 0")


def test_a_peer_is_whole_in_80_columns(service: Service, tmp_path: Path) -> None:
    """Whom a worker serves is read off the screen, with the port."""
    with service.hold() as held, Terminal(tmp_path, control(service)) as terminal:
        host, port = held.sock.getsockname()
        screen = terminal.wait(f"{host}:{port}")
        (row,) = [line for line in screen.splitlines() if str(held.pid) in line]
        assert row.split()[-1] == f"{host}:{port}"
        terminal.type("q")
        terminal.wait("left 0")


def test_metrics_on_a_terminal(service: Service, tmp_path: Path) -> None:
    """What is shown follows the service; every key that would act is refused in one sentence, and `q` leaves."""
    before = service.workers()
    with Terminal(tmp_path, metrics(service)) as terminal:
        terminal.wait("ready  generation 1", "workers 2 (2 to 2): 2 idle, 0 busy", "read-only  q quit")
        with service.hold():
            terminal.wait("lanes 1 of 2 (50%)", "1 idle, 1 busy", "1 accepted, 0 ok")
        terminal.wait("lanes 0 of 2 (0%)", "1 accepted, 1 ok")
        terminal.type("d")
        terminal.wait("could not replace a worker: metrics can only be read; say --control PATH")
        terminal.type("s")
        terminal.wait("there are no rows of workers here; they need --control PATH")
        service.signal(signal.SIGUSR2)
        service.wait_ready(2, replaced=2)
        terminal.wait("2 replaced")
        terminal.type("q")
        terminal.wait("left 0")
    assert not set(before) & set(service.workers())  # by USR2, of which it only told


def test_what_is_refused_is_said(service: Service, tmp_path: Path) -> None:
    """The reason why a worker is not replaced stands on the screen, and the screen goes on."""
    with service.hold(), Terminal(tmp_path, control(service)) as terminal:
        terminal.wait("1 idle, 1 busy")
        service.signal(signal.SIGTERM)
        terminal.wait("draining  generation 1")
        terminal.type("d")
        terminal.wait("could not restart: the service is about to end")
        terminal.type("q")
        terminal.wait("left 0")
    assert service.wait_exit() == 0


def test_a_terminal_without_a_screen(service: Service, tmp_path: Path) -> None:
    """Who has a terminal without a screen is told what else there is."""
    with Terminal(tmp_path, ["env", "TERM=dumb", *control(service)]) as terminal:
        terminal.wait("could not show the screen", "--once prints it", "left 1")


@pytest.mark.parametrize("source", [control, metrics])
def test_a_service_that_is_stopped(service: Service, tmp_path: Path, source: object) -> None:
    """A master that hangs is seen to hang, keys work meanwhile, and when it goes on so does the screen."""
    assert callable(source)
    said = "no answer for" if source is control else "the master does not turn"
    with Terminal(tmp_path, source(service)) as terminal:
        terminal.wait("generation 1")
        service.signal(signal.SIGSTOP)
        try:
            terminal.wait(said)
        finally:
            service.signal(signal.SIGCONT)
        terminal.wait("generation 1", without=said)
        terminal.type("q")
        terminal.wait("left 0")


def test_a_service_that_ends(tmp_path: Path) -> None:
    """The screen stays, says since when nobody answers and why, and shows the next service that starts there."""
    path = str(tmp_path / "m")
    program = script(max_children=2, metrics_address=path)
    (tmp_path / "1").mkdir()
    (tmp_path / "2").mkdir()
    with Service(tmp_path / "1", program) as first:
        first.wait_ready(2)
        for _ in range(3):
            assert int(ask(first.address, b"pid\n"))
        assert first.settled()["accepted"] == 3
        with Terminal(tmp_path, top("--url", path)) as terminal:
            terminal.wait("3 accepted, 3 ok")
            first.signal(signal.SIGTERM)
            first.wait_gone()
            terminal.wait("no answer for", "could not reach")
            with Service(tmp_path / "2", program) as second:
                second.wait_ready(2)
                terminal.wait("0 accepted, 0 ok", "2 idle", without="no answer")
            terminal.type("q")
            terminal.wait("left 0")


@pytest.mark.skipif(shutil.which("openssl") is None, reason="makes the certificate")
def test_over_tls(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The certificate is checked, and an answer that never ends has its deadline here too."""
    names = ["-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost"]
    new = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-keyout", "k", "-out", "c"]
    subprocess.run(["openssl", "req", "-x509", "-days", "1", *new, *names], cwd=tmp_path, check=True, timeout=HUNG)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(tmp_path / "c", tmp_path / "k")

    def talk(sock: socket.socket) -> None:
        with context.wrap_socket(sock, server_side=True) as secured:
            secured.recv(4096)
            secured.sendall(b"HTTP/1.0 200 OK\r\n\r\n")
            while True:
                secured.sendall(b"x")

    for trusted, said in (("nothing", "TLS: certificate verify failed"), (tmp_path / "c", "no answer within 0.5 s")):
        monkeypatch.setenv("SSL_CERT_FILE", str(trusted))
        with answering(talk) as address:
            assert said in ended(f"https://localhost:{address.rpartition(':')[2]}", 0.5)
