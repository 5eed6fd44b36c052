"""The control socket and `prefork ctl`: real masters, the real command, every verb."""

import json
import os
import signal
import socket
import stat
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.clients import controlling
from tests.support.clients.connections import HUNG
from tests.support.programs.command import MODULE, ROOT
from tests.support.programs.releases import AFTERWARDS, Released, numbered
from tests.support.programs.service import Service, script

pytestmark = pytest.mark.once  # nothing of it is the interpreter's

WORKERS = 2


def ctl(service: Service, *argv: str) -> "controlling.Done[str]":
    return controlling.ctl(service.directory / "c", *argv)


def result_of(service: Service, *argv: str) -> Any:
    return controlling.printed(service.directory / "c", *argv)


@pytest.fixture
def service(tmp_path: Path) -> Iterator[Released]:
    with Released(tmp_path, max_children=WORKERS, control_socket=str(tmp_path / "c"), boot_timeout=5) as service:
        service.wait_ready(WORKERS)
        yield service


def test_status_and_workers_are_true(service: Released) -> None:
    """What is said of the service and of each worker is what the kernel and the clients know of them."""
    with service.hold() as held:
        status = result_of(service, "status")
        found = controlling.until(controlling.looked_at, lambda: result_of(service, "workers"))
        workers = {worker["pid"]: worker for worker in found["workers"]}
        peer = ":".join(map(str, held.sock.getsockname()[:2]))
        slot = str(workers[held.pid]["slot"])
        of_one = controlling.until(lambda text: peer in text, lambda: ctl(service, "workers", slot).stdout)
    assert (status["pid"], status["phase"], status["generation"]) == (service.pid, "running", 1)
    assert status["address"] == ":".join(map(str, service.address))
    assert (status["workers"]["idle"], status["workers"]["busy"]) == (WORKERS - 1, 1)
    assert (status["lanes"], status["lanes_busy"], status["requests"]["accepted"]) == (WORKERS, 1, 1)
    assert set(workers) == set(service.workers())
    busy = workers[held.pid]
    assert (busy["state"], busy["requests"], busy["peers"]) == ("busy", 1, [peer])
    assert busy["request_age_s"] < busy["age_s"]
    assert busy["rss_bytes"] > 1 << 20
    assert of_one.count("\n") == 5
    assert of_one.endswith(f"\n\npeers\n  {peer}\n")
    (idle,) = (worker for pid, worker in workers.items() if pid != held.pid)
    assert (idle["state"], idle["request_age_s"], idle["peers"]) == ("idle", None, [])


def test_a_terminal_is_told_in_words(service: Released) -> None:
    """Without --json the same is a text; a mistake is one sentence and status 2, nobody there is status 1."""
    assert f"pid {service.pid}  running  generation 1" in ctl(service, "status").stdout
    assert ctl(service, "workers").stdout.startswith("slot ")
    assert ctl(service, "version").stdout.startswith("prefork ")
    for argv, said in (("stats", "did you mean status?"), ("scale", "whole number"), ("drain 3", "no argument")):
        done = ctl(service, *argv.split())
        assert (done.returncode, done.stdout) == (2, "")
        assert said in done.stderr
    nobody = ctl(service, "status", "--control", str(service.directory / "nobody"))
    assert (nobody.returncode, nobody.stderr.count("\n")) == (1, 1)
    assert "could not reach the control socket" in nobody.stderr


def test_scale(service: Released) -> None:
    """`scale N` is done at once, up and down."""
    assert result_of(service, "scale", "4") == {"min_children": 4, "max_children": 4}
    service.wait_ready(4)
    result_of(service, "scale", "1")
    service.wait_ready(1, scaled_down=3)


def test_restart_of_one_and_of_all(service: Released) -> None:
    """`restart SLOT` replaces that worker and no other, `restart` all; both return when it is done."""
    first, second = result_of(service, "workers")["workers"]
    assert result_of(service, "restart", str(first["slot"])) == {"replaced": 1}
    service.wait_ready(WORKERS, replaced=1)
    now = set(service.workers())
    assert first["pid"] not in now
    assert second["pid"] in now
    assert result_of(service, "restart") == {"replaced": WORKERS}
    service.wait_ready(WORKERS, replaced=1 + WORKERS)
    assert not now & set(service.workers())
    assert "there is no worker 77" in ctl(service, "restart", "77").stderr


def test_stacks(service: Released) -> None:
    """The stacks of every worker, or of one, come to whoever asked and not to the log; a stopped one is said to be."""
    with service.hold() as held:
        stacks = {worker["pid"]: worker["stacks"] for worker in result_of(service, "stacks")["workers"]}
        assert set(stacks) == set(service.workers())
        assert "in handle" in stacks[held.pid]
        assert sum("in handle" in text for text in stacks.values()) == 1
        assert "stacks of its threads" not in service.log
        (slot,) = (w["slot"] for w in result_of(service, "workers")["workers"] if w["pid"] == held.pid)
        service.signal(signal.SIGSTOP, held.pid)
        try:
            assert "it does not answer" in ctl(service, "stacks", str(slot)).stdout
        finally:
            service.signal(signal.SIGCONT, held.pid)


def test_log_level(service: Released) -> None:
    """`log-level` holds in the master and in the workers, which are new ones."""
    before = set(service.workers())
    assert result_of(service, "log-level", "error") == {"level": "error"}
    service.wait_ready(WORKERS, replaced=WORKERS)
    assert not before & set(service.workers())
    said = len(service.log)
    result_of(service, "restart")
    assert len(service.log) == said


@pytest.mark.parametrize("verb", ["drain", "stop"])
def test_end(verb: str, service: Released) -> None:
    """`drain` and `stop` return when the process is gone, its path too; its status is 0."""
    done = ctl(service, verb)
    assert (done.returncode, done.stdout) == (0, "stopped\n")
    assert service.process.poll() == 0
    assert not (service.directory / "c").exists()
    assert ctl(service, verb).returncode == 1


@pytest.mark.parametrize("impatient", [False, True])
def test_a_drain_says_what_is_left(impatient: bool, service: Released) -> None:
    """A drain is waited for as long as a request is in hand; who waits is told, and a stop meanwhile ends it."""
    with service.hold() as held, controlling.started(service.directory / "c", "drain", "--json") as drain:
        assert drain.stdout is not None
        said = json.loads(drain.stdout.readline())["progress"]
        while said != "draining: 1 worker left, 1 request in hand":
            said = json.loads(drain.stdout.readline())["progress"]
        if impatient:
            assert ctl(service, "stop").returncode == 0
        held.close()
        out, _ = drain.communicate(timeout=HUNG)
        assert json.loads(out.splitlines()[-1]) == {"ok": True, "result": {"phase": "stopped"}}
        assert (drain.returncode, service.process.poll()) == (0, 0)


def test_a_drain_that_is_not_waited_for(service: Released) -> None:
    """With --no-wait it returns while the service finishes what it has; for other verbs that is a mistake. With
    --timeout it gives up after that time, and says so."""
    assert "--no-wait is not for status" in ctl(service, "status", "--no-wait").stderr
    with service.hold() as held:
        assert ctl(service, "drain", "--no-wait").returncode == 0
        late = ctl(service, "drain", "--timeout", "300ms")
        assert late.returncode == 1
        assert "could not drain: not done within 0.3 s (--timeout); the service goes on with it\n" in late.stderr
        assert service.process.poll() is None
        assert int(held.ask(b"pid")) == held.pid
    assert service.wait_exit() == 0


def test_who_is_interrupted_is_not_told_that_it_is_done(service: Released) -> None:
    """Ctrl-C ends the waiting with a status that no `&&` goes on after; the service drains all the same."""
    with service.hold() as held, controlling.started(service.directory / "c", "drain", "--json") as drain:
        assert drain.stdout is not None
        assert "draining" in drain.stdout.readline()
        drain.send_signal(signal.SIGINT)
        assert drain.wait(HUNG) == 130
        assert int(held.ask(b"pid")) == held.pid
    assert service.wait_exit() == 0


def test_a_service_that_dies_while_it_drains(service: Released) -> None:
    """Whoever waits for a drain is told when the master was killed, with status 1."""
    with service.hold(), controlling.started(service.directory / "c", "drain", "--json") as drain:
        assert drain.stdout is not None
        assert "draining" in drain.stdout.readline()
        service.signal(signal.SIGKILL)
        _, error = drain.communicate(timeout=HUNG)
        assert (drain.returncode, error) == (1, "prefork: could not hear from c: the service closed the connection\n")
    service.wait_gone()


def test_reload_is_waited_for(service: Released) -> None:
    """`reload` says how far it is, and its answer comes from the new image to the same connection."""
    service.release(numbered(2))
    done = ctl(service, "reload")
    assert (done.returncode, done.stdout) == (0, "reloaded: generation 2 is in service\n")
    assert "rehearsed" in done.stderr
    service.wait_answering("r2")
    assert result_of(service, "status")["generation"] == 2  # the socket is there as before


def test_a_reload_that_fails_says_why(service: Released) -> None:
    """A release that breaks is status 1, with what it printed and the reason; the old one serves on."""
    service.expect("(?s)reload failed: the rehearsal .*RuntimeError: no such table")
    service.release("raise RuntimeError('no such table')\n")
    done = ctl(service, "reload")
    assert done.returncode == 1
    assert "RuntimeError: no such table" in done.stderr
    assert "prefork: the rehearsal" in done.stderr
    assert service.answering() == "r1"


def test_a_degraded_service_still_obeys(tmp_path: Path) -> None:
    """Broken after the exec: the reload's client is told, the socket is there, and the next reload mends it."""
    settings: dict[str, Any] = {"max_children": WORKERS, "boot_timeout": 5, "control_socket": str(tmp_path / "c")}
    with Released(tmp_path, "class Hooks: pass\n" + numbered(1), **settings) as service:
        service.expect("RuntimeError: only here", "reload failed: the program failed: RuntimeError: only here")
        service.wait_ready(WORKERS)
        service.release("class Hooks: pass\n" + AFTERWARDS + "raise RuntimeError('only here')\n")
        done = ctl(service, "reload")
        assert done.returncode == 1
        assert "only here" in done.stderr
        assert "only here" in result_of(service, "status")["degraded"]
        service.release("class Hooks: pass\n" + numbered(3))
        assert ctl(service, "reload").returncode == 0
        service.wait_answering("r3")
        assert result_of(service, "status")["degraded"] is None


NEVER_START = {
    "none": "if not rehearsing(): raise RuntimeError('later')",
    "all but one": "import fcntl; self.only = open('only', 'w'); fcntl.flock(self.only, fcntl.LOCK_EX | fcntl.LOCK_NB)",
}


@pytest.mark.parametrize("how", NEVER_START)
def test_workers_that_cannot_start_after_all(how: str, tmp_path: Path) -> None:
    """Of the new image no worker can start, or one alone: the reload's client is told, and the next one's as well."""
    settings: dict[str, Any] = {"max_restart_delay": 0.5, "control_socket": str(tmp_path / "c")}
    with Released(tmp_path, max_children=WORKERS, **settings) as service:
        service.expect("gen=2 .*: boot_failed", "reload failed: the new workers cannot .*start, the old ones serve on")
        service.wait_ready(WORKERS)
        service.release(numbered(2, f"class Hooks:\n    def worker_started(self):\n        {NEVER_START[how]}\n"))
        done = ctl(service, "reload")
        assert done.returncode == 1
        assert "the old ones serve on" in done.stderr
        assert result_of(service, "status")["degraded"]
        service.release(numbered(3))
        assert ctl(service, "reload").returncode == 0
        service.wait_ready(WORKERS)
        service.wait_answering("r3")
        assert result_of(service, "status")["degraded"] is None


def test_clients_that_wait_go_over_to_the_next_image(service: Released) -> None:
    """A connection opened before a reload is answered after it."""
    with socket.socket(socket.AF_UNIX) as client:
        client.settimeout(HUNG)
        client.connect(str(service.directory / "c"))
        assert ctl(service, "reload").returncode == 0
        client.sendall(b'{"verb":"status"}\n')
        assert json.loads(client.makefile("rb").readline())["result"]["generation"] == 2


def test_mode_and_owner(tmp_path: Path) -> None:
    """The path is as asked for, and given away only when asked."""
    asked: dict[str, Any] = {"control_mode": 0o640, "control_owner": ":65534"}
    if os.getuid() != 0:
        del asked["control_owner"]
    with Service(tmp_path, script(max_children=1, control_socket=str(tmp_path / "c"), **asked)) as service:
        service.wait_ready(1)
        found = os.stat(tmp_path / "c")
        assert stat.S_IMODE(found.st_mode) == 0o640
        assert found.st_uid == os.getuid()
        assert found.st_gid == (65534 if os.getuid() == 0 else os.getgid())


@pytest.mark.parametrize(
    ("name", "value"), [("control_allow", "nobody, no-such-user"), ("control_owner", "no-such-user:")]
)
def test_an_unknown_user_is_a_mistake(name: str, value: str, tmp_path: Path) -> None:
    """A user who is not there is refused before anything is forked."""
    source = script(max_children=1, control_socket=str(tmp_path / "c"), **{name: value})
    with Service(tmp_path, source) as service:
        service.expect(f"ConfigError: could not set {name} to '{value}'")
        assert service.wait_exit() != 0
    assert f"could not set {name} to '{value}'" in service.log
    assert not (tmp_path / "c").exists()


def test_what_is_refused_is_an_error_in_the_journal(service: Released) -> None:
    """Where stderr is the journal's stream, each line that says what could not be done has an error's priority."""
    service.expect("(?s)reload failed: the rehearsal .*ZeroDivisionError")
    (service.directory / "broken.py").write_text("1 / 0\n")
    service.release("1 / 0\n")
    for argv, said in (
        (["ctl", "reload", "--control", "c"], "prefork: "),
        (["ctl", "status", "--control", "none"], "prefork: could not reach the control socket none"),
        (["ctl", "sclae", "--control", "c"], "prefork: could not read the command line: there is no verb sclae"),
        (["run", "broken:Server", "--bind", ":0"], "prefork: could not import broken: ZeroDivisionError"),
        (["check", "broken:Server", "--bind", ":0"], "prefork: could not import broken: ZeroDivisionError"),
    ):
        lines = _journal(service.directory, argv).splitlines()
        assert any(line.startswith(f"<3>{said}") for line in lines), lines
        assert all(line.startswith("<3>") for line in lines if not line.startswith("rehearsing"))  # is progress


def _journal(folder: Path, argv: list[str]) -> str:
    """What such a command, which fails, writes to a stderr that its environment calls the journal's."""
    with tempfile.TemporaryFile("w+") as stream:
        found = os.fstat(stream.fileno())
        environ = os.environ | {"PYTHONPATH": str(ROOT), "JOURNAL_STREAM": f"{found.st_dev}:{found.st_ino}"}
        done = subprocess.run([*MODULE, *argv], cwd=folder, env=environ, stderr=stream, timeout=HUNG)
        assert done.returncode != 0
        stream.seek(0)
        return stream.read()
