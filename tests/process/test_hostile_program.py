"""A program whose streams and log handlers raise, block, are closed, full, without reader, or locked at the fork."""

import os
import signal
from pathlib import Path
from time import monotonic, sleep

import pytest

from prefork.metrics.loggers import HELD_UP_S
from tests.support.clients.connections import ask
from tests.support.clients.controlling import ctl
from tests.support.programs.command import running
from tests.support.programs.releases import Released, numbered
from tests.support.programs.served import LOOK, RELOADS
from tests.support.programs.service import HUNG, Service, Watch, script
from tests.support.tools.figures import figure, ms

PROGRAM = "from tests.process.programs.hostile import Hooks"
# Each service suffers what goes together. What another one does first would hide something is apart.
KINDS = (
    "raises,filter_raises,blocks,full_queue,lock_for_ever,closed_stream",
    "stdout_full,stderr_full",
    "stuck_printer",
    "reader_gone",
    "disk_full,logging_off,hooks_raise",
    "streams_gone",
    "file,standard_descriptors_closed",
    "hot_threads",
)


@pytest.mark.timed
@pytest.mark.parametrize("kinds", KINDS)
def test_nothing_of_it_reaches_the_service(kinds: str, tmp_path: Path) -> None:
    """The master replaces a worker that was killed, recycles, reloads and drains as ever, and no worker hangs at its
    beginning or end."""
    env = {RELOADS: "1", "HOSTILE": kinds}
    source = script(PROGRAM, max_children=2, graceful_timeout=12.0, boot_timeout=12.0)
    with Service(tmp_path, source, env=env) as service:
        service.allow(r"could not log by the handler|could not flush stdout|I/O operation on closed file", "of a hook")
        service.wait_ready(2)
        began = monotonic()
        service.wait_each("worker_started", 2)
        service.signal(signal.SIGKILL, service.wait("worker_started")["pid"])
        service.wait_ready(2, killed=1)
        service.signal(signal.SIGUSR2)
        service.wait_ready(2, replaced=2)
        service.signal(signal.SIGHUP)
        service.wait_pool(lambda pool: pool["reloads"]["ok"] == 1)
        service.wait_ready(2, replaced=4)
        assert int(ask(service.address, b"pid\n"))
        told = service.signal(signal.SIGTERM)
        assert service.wait_exit() == (120 if "streams_gone" in kinds else 0)  # as Python ends where it cannot flush
        ended = service.wait("ended")
    took = f"{ms(told - began)}, {ms(ended['at'] - told)}"
    figure(f"under {kinds}: a kill, a recycling and a reload; then a drain", took)
    assert ended["exits"] == {"killed": 1, "replaced": 4, "drained": 2}
    assert ended["at"] - told < 4


CONFIGURES = """
import logging.config
logging.getLogger().handlers[1:] = []
logging.config.%s
class Hooks:
    def worker_started(self):
        super().worker_started()
        logging.config.dictConfig({"version": 1})
"""
FILE = """
[loggers]
keys=root
[handlers]
keys=there
[formatters]
keys=
[logger_root]
level=INFO
handlers=there
[handler_there]
class=FileHandler
args=("there.log",)
"""


@pytest.mark.parametrize(
    ("call", "where"), [("dictConfig({'version': 1})", ""), ("fileConfig('logging.ini')", "there.log")]
)
def test_a_configuration_that_disables_loggers(call: str, where: str, tmp_path: Path) -> None:
    """dictConfig() and fileConfig(), in the master at import and in workers, disable every logger that they do not
    name; not ours. Where the handler of `prefork run` goes too, the log says so once, where it goes now."""
    (tmp_path / "logging.ini").write_text(FILE)
    argv = ["-m", "prefork", "run", "program:Server", "--bind", "127.0.0.1:0"]
    with Service(tmp_path, script(CONFIGURES % call, max_children=1), argv=argv) as service:
        service.allow("RuntimeError: asked to raise")
        service.wait_ready(1)
        with service.connect() as connection:
            connection.send(b"raise")
            connection.wait_end()
        service.signal(signal.SIGTERM)
        assert service.wait_exit() == 0
        text = (tmp_path / where).read_text() if where else service.log
    assert "RuntimeError: asked to raise" in text
    assert "drained (exit status 0)" in text
    assert text.count("has taken prefork's log handler away") == bool(where)


def test_a_log_handler_in_which_the_machine_stands_still(tmp_path: Path) -> None:
    """It has taken longer than a handler may, and is not left out for it: what follows is logged, too."""
    with Service(tmp_path, script("import tests.process.programs.standing", max_children=1)) as service:
        service.wait_ready(1)
        (tmp_path / "stand").touch()
        killed = service.workers()
        service.signal(signal.SIGKILL, killed[0])
        os.waitid(os.P_PID, service.pid, os.WSTOPPED | os.WNOWAIT)
        sleep(1.5 * HELD_UP_S)  # an input: how long it stands still
        service.signal(signal.SIGCONT)
        service.wait_ready(1, killed=1)
        killed += service.workers()
        service.signal(signal.SIGKILL, killed[1])
        service.wait_ready(1, killed=2)
    text = (tmp_path / "there.log").read_text()
    assert [f"pid={pid}: killed (killed by SIGKILL)" in text for pid in killed] == [True, True]


def test_descriptors_closed_at_import(tmp_path: Path) -> None:
    """A program that closes all that it has not opened, as daemons do, closes what `prefork run` has open by then: no
    socket of the service gets lost by that, and the log goes on where it went."""
    closes = "import os\nfacts = int(os.environ['TEST_PREFORK_FACTS'])\n"
    closes += "os.closerange(3, facts)\nos.closerange(facts + 1, 256)\n"
    (tmp_path / "closes.py").write_text(closes)
    argv = ["-m", "prefork", "run", "program:Server", "--bind", "127.0.0.1:0", "--max-children", "2"]
    with Service(tmp_path, "import closes\n" + script(), argv=argv) as service:
        service.wait_ready(2)
        assert int(ask(service.address, b"pid\n"))
        service.signal(signal.SIGTERM)
        assert service.wait_exit() == 0
    assert "drained (exit status 0)" in service.log


def test_a_reload_of_what_closes_them(tmp_path: Path) -> None:
    """It is refused by one sentence, each time: what was handed over is closed. The service goes on."""
    (tmp_path / "app.py").write_text("import os\nos.closerange(3, 256)\nfrom prefork.examples import Upper\n")
    argv = ["run", "app:Upper", "--bind", "127.0.0.1:0", "--max-children", "1", "--control", "unix:c"]
    with running(argv, cwd=tmp_path) as service:
        service.expect("reload failed: ", "prefork: could not take over: ")
        for _ in range(2):
            done = ctl(tmp_path / "c", "reload")
            assert done.returncode == 1
            assert f"was ready: exit status 1; could not take over: {SAID}" in done.stderr
            assert ask(("127.0.0.1", service.port), b"a\n") == b"A\n"


CLOSING = "from tests.process.programs.closing_all import Handler, Hooks\n"
SAID = "the program has closed descriptors that are not its own"


@pytest.mark.once
@pytest.mark.parametrize(
    ("where", "status", "said"),
    [
        ("__init__", 1, "prefork: could not serve: " + SAID),
        ("worker_started", 3, f"prefork: could not start a worker: 3 died before they were ready, the last of: {SAID}"),
    ],
)
def test_descriptors_closed_before_it_serves(where: str, status: int, said: str, tmp_path: Path) -> None:
    """One sentence says so, with the exit status of what could not be done."""
    argv = ["-m", "prefork", "run", "program:Server", "--bind", "127.0.0.1:0", "--metrics", "127.0.0.1:0"]
    with Service(tmp_path, script(CLOSING, max_children=1), argv=argv, env={"CLOSES": where}) as service:
        service.allow("boot_failed", "could not")
        assert service.wait_exit() == status
    assert said in service.log
    assert "Traceback" not in service.log


@pytest.mark.once
def test_descriptors_closed_while_it_serves(tmp_path: Path) -> None:
    """A handler that closes them costs its worker, which says why. In the master they cannot be done without: it says
    so, leaves with 1, and its workers finish what they have."""
    argv = ["-m", "prefork", "run", "program:Server", "--bind", "127.0.0.1:0", "--metrics", "127.0.0.1:0"]
    env = {"CLOSES": "service_actions"}
    with Service(tmp_path, script(CLOSING, max_children=1), argv=argv, env=env, accounts=False) as service:
        service.allow(rf"crashed \(exit status 1\)\n +{SAID}", "could not go on", "could not finish the request")
        service.wait_ready(1)
        with service.connect() as client:
            client.send(b"close")
        service.wait_ready(1, crashed=1)
        assert f"crashed (exit status 1)\n    {SAID}" in service.log
        with service.hold() as held, Watch(held.pid) as watch:
            (tmp_path / "close").touch()
            service.signal(LOOK)
            assert service.wait_exit() == 1
            assert int(held.ask(b"pid")) == held.pid
            held.close()
            watch.wait_dead()
        service.wait_gone()
    assert f"prefork: could not go on: {SAID}" in service.log
    assert service.log.count("Traceback") == 1, "the handler's"


@pytest.mark.parametrize("how", [b"close_listener\n", b"close_its_descriptor\n"])
@pytest.mark.parametrize("bases", ["PreForkingTCPServer", "PreForkingMixIn, ThreadingTCPServer"])
def test_listener_closed_in_a_handler(bases: str, how: bytes, tmp_path: Path) -> None:
    """A worker whose listener a handler has closed says so and is replaced, as soon as it hears of a connection that it
    cannot accept; the others answer meanwhile."""
    with Service(tmp_path, script(CLOSING, bases=bases, max_children=2), accounts=False) as service:
        service.expect(rf"crashed \(exit status 1\)\n *{SAID}")
        service.wait_ready(2)
        ask(service.address, how)
        deadline = monotonic() + HUNG
        while "crashed" not in service.statistics()["exits"]:
            assert ask(service.address, b"pid\n")
            assert monotonic() < deadline, "hung: the worker is not replaced"
        service.wait_ready(2, crashed=1)
        assert service.statistics()["exits"] == {"crashed": 1}


@pytest.mark.once
def test_descriptors_closed_after_a_reload(tmp_path: Path) -> None:
    """A new release that closes them fails in its rehearsal, and the old one serves on; so it does where they are
    closed only afterwards, and the next release mends that."""
    closes = "from tests.process.programs.closing_all import %s as Hooks\n"
    with Released(tmp_path, max_children=1, metrics_address=("127.0.0.1", 0)) as service:
        service.expect(
            rf"(?s)reload failed: the rehearsal ended .*PreforkError: could not take over: {SAID}",
            "reload failed: the program failed: PreforkError: could not take over: " + SAID,
        )
        service.allow("Traceback (?s:.*)PreforkError", "signal wakeup fd")
        service.wait_ready(1)
        service.release(numbered(2, closes % "Early"))
        service.signal(signal.SIGHUP)
        service.wait_reloads(failed=1)
        service.release(numbered(3, closes % "Late"))
        service.signal(signal.SIGHUP)
        service.wait("closed")
        service.release(numbered(4))
        assert service.answering() == "r1"
        service.signal(signal.SIGHUP)
        service.wait_reloads(ok=1)
        service.wait_ready(1, replaced=1)
        assert service.answering() == "r4"
