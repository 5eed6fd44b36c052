"""The log of a service that runs on: rotated, turned up and down, and set anew by a reload."""

import json
from collections.abc import Callable
from pathlib import Path
from time import monotonic

import pytest

from tests.support.clients.connections import ask
from tests.support.clients.controlling import asked, ctl
from tests.support.programs.served import RELOADS
from tests.support.programs.service import HUNG, Service, script

pytestmark = pytest.mark.once  # nothing of it is the interpreter's

DEFINITIONS = "from tests.process.programs.logging_app import Handler, Hooks"
FILE = """\
[prefork]
target = "program:Server"
bind = "127.0.0.1:0"
control = "unix:c"
max_children = 1
access_log = true
"""


def run(tmp_path: Path, more: str = "") -> Service:
    """`prefork run` of a settings file, with a control socket, one worker and an access log."""
    (tmp_path / "s.toml").write_text(FILE + more)
    argv = ["-m", "prefork", "run", "--config", "s.toml"]
    service = Service(tmp_path, script(DEFINITIONS), argv=argv, env={RELOADS: "1"})
    service.wait_ready(1)
    return service


def wait_text(path: Path, good: Callable[[str], bool], meanwhile: Callable[[], object] = lambda: None) -> str:
    deadline = monotonic() + HUNG
    while not good(text := path.read_text()):
        assert monotonic() < deadline, f"hung: {path.name} has only {text!r}"
        meanwhile()
    return text


def test_reopen(tmp_path: Path) -> None:
    """The file is renamed, then `prefork ctl reopen`: master and worker go on in a new file, none in the old."""
    log, old, control = tmp_path / "log", tmp_path / "log.1", tmp_path / "c"
    with run(tmp_path, 'log_file = "log"\n') as service:
        assert int(ask(service.address, b"pid\n"))
        service.settled()
        log.rename(old)
        assert int(ask(service.address, b"pid\n"))  # it goes on in the old one until it is told
        service.settled()
        assert ctl(control, "reopen").stdout == "reopened by 2 of 2 processes\n"
        rotated = old.read_text()
        assert int(ask(service.address, b"pid\n"))
        service.settled()
        wait_text(log, lambda text: text.count(": request ") == 1)
        asked(control, "scale", 2)  # the master has something to say too
        wait_text(log, lambda text: "scale" in text)
        assert old.read_text() == rotated
        assert rotated.count(": request ") == 2


def test_what_cannot_be_reopened(tmp_path: Path) -> None:
    """Where there is no file, or no new one can be made, whoever asked is told why, and the old one goes on."""
    with run(tmp_path) as quiet:
        quiet.expect("started as")
        done = ctl(tmp_path / "c", "reopen")
        assert (done.returncode, done.stdout) == (1, "")
        assert done.stderr == "prefork: there is no log file of prefork's own to reopen\n"
    folder = tmp_path / "logs"
    folder.mkdir()
    with run(tmp_path, 'log_file = "logs/log"\n') as service:
        folder.rename(tmp_path / "old")
        done = ctl(tmp_path / "c", "reopen")
        assert done.returncode == 1
        assert "could not reopen the log file logs/log: no such file or directory" in done.stderr
        assert int(ask(service.address, b"pid\n"))
        service.settled()
        assert ": request " in (tmp_path / "old" / "log").read_text()


def says_of_a_request(service: Service) -> bool:
    """True if the worker has logged one more line of its handler for one more request."""
    said = service.log.count("asked for")
    ask(service.address, b"log\n")
    service.settled()
    return service.log.count("asked for") > said


def test_log_level_and_back(tmp_path: Path) -> None:
    """`prefork ctl log-level debug` holds in the master and in the living worker, and `info` takes it back."""
    with run(tmp_path) as service:
        service.expect("started as")
        (pid,) = service.workers()
        ask(service.address, b"log\n")
        service.settled()
        assert "asked for" not in service.log
        done = ctl(tmp_path / "c", "log-level", "debug")
        assert (done.returncode, done.stdout) == (0, "logging from debug on\n")
        wait_text(service.log_path, lambda text: "asked for" in text, lambda: ask(service.address, b"log\n"))
        assert asked(tmp_path / "c", "log-level", "error") == {"level": "error"}
        deadline = monotonic() + HUNG
        while says_of_a_request(service):  # a worker looks at the level now and then
            assert monotonic() < deadline, "hung: the worker goes on at the level of before"
        assert not says_of_a_request(service)
        assert service.workers() == [pid]
        assert "asks for status" not in service.log


def test_a_reload_takes_changed_log_settings(tmp_path: Path) -> None:
    """Level, format and file of the log are read anew by a reload; what the rehearsal logs is in neither file."""
    first, second = tmp_path / "first", tmp_path / "second"
    with run(tmp_path, 'log_file = "first"\n') as service:
        (tmp_path / "s.toml").write_text(FILE + 'log_file = "second"\nlog_level = "debug"\nlog_format = "json"\n')
        assert ctl(tmp_path / "c", "reload").returncode == 0
        service.wait_ready(1, replaced=1)
        (pid,) = service.workers()
        ask(service.address, b"log\n")
        service.settled()
        lines = [json.loads(line) for line in second.read_text().splitlines()]
        assert first.read_text().count("started as") == 1
        assert [line["pid"] for line in lines if line["event"] == "started_as"] == [pid]
        assert [line["event"] for line in lines if line["level"] == "debug"] == ["asked_for"]


def test_a_rehearsal_that_fails_says_why_to_whoever_asked(tmp_path: Path) -> None:
    """What the trial logs comes to the caller, and in one piece to the log; a log file that cannot be opened is a
    reason not to reload."""
    log, control = tmp_path / "log", tmp_path / "c"
    with run(tmp_path, 'log_file = "log"\n') as service:
        (tmp_path / "broken").touch()
        done = ctl(control, "reload")
        assert done.returncode == 1
        assert "ERROR app: " in done.stderr
        assert "RuntimeError: no such table" in done.stderr
        assert "no such table" in log.read_text()
        (tmp_path / "broken").unlink()
        (tmp_path / "s.toml").write_text(FILE + 'log_file = "no/log"\n')
        done = ctl(control, "reload")
        assert done.returncode == 1
        assert "could not open the log file no/log: no such file or directory" in done.stderr
        assert service.statistics()["exits"] == {}
