"""Reload in place: new code and settings with the same pid, from every way a program can be started."""

import contextlib
import errno
import os
import py_compile
import re
import select
import signal
import socket
import sys
import zipfile
from pathlib import Path
from typing import Any

import pytest

from tests.support.clients.connections import ask, free_ports
from tests.support.programs.releases import AFTERWARDS, DEFINITIONS, HANGS, Released, numbered, wait_scraped
from tests.support.programs.service import HUNG, Watch, script
from tests.support.tools.proc import held, nothing_for

WORKERS = 2


def reload(service: Released, text: str, generation: int) -> None:
    """Release this, ask for it by HUP, and wait until the old workers are gone."""
    service.release(text)
    service.signal(signal.SIGHUP)
    service.wait_reloads(ok=generation - 1)
    service.wait_ready(WORKERS, replaced=WORKERS * (generation - 1))


def test_new_code_answers_with_the_same_pid(tmp_path: Path) -> None:
    """After HUP the workers are of the new release; master, address, totals and start time are the old ones."""
    with Released(tmp_path, max_children=WORKERS) as service:
        service.wait_ready(WORKERS)
        address = service.address
        assert service.answering() == "r1"
        before = service.settled()
        reload(service, numbered(2), 2)
        assert service.answering() == "r2"
        reload(service, numbered(3), 3)
        assert service.answering() == "r3"
        after = service.settled()
    assert [fact["address"] for fact in service.facts if fact["event"] == "listening"] == [list(address)] * 3
    assert after["accepted"] == before["accepted"] + 2
    assert after["generation"] == 3
    assert after["reloads"] == {"ok": 2, "failed": 0}


def test_a_connection_in_hand_is_finished_by_the_old_code(tmp_path: Path) -> None:
    """A worker with a request serves it on through the exec, and is gone when it ends."""
    with Released(tmp_path, max_children=WORKERS) as service:
        service.wait_ready(WORKERS)
        held = service.hold()
        service.release(numbered(2))
        service.signal(signal.SIGHUP)
        service.wait_reloads(ok=1)
        service.wait_ready(WORKERS, replaced=WORKERS - 1)
        with Watch(held.pid) as old, held:
            assert held.ask(b"release") == b"r1"
            assert service.answering() == "r2"
            held.close()
            old.wait_dead()
        service.wait_ready(WORKERS, replaced=WORKERS)


PRINTS = "from tests.process.programs.reloading import Printing as Hooks\nHooks.release = RELEASE\n"


def test_what_was_printed_comes_out_before_the_exec(tmp_path: Path) -> None:
    """What the program printed into a file, and Python still holds back, is there after a reload, once."""
    with Released(tmp_path, numbered(1, PRINTS), max_children=WORKERS) as service:
        service.wait_ready(WORKERS)
        service.wait("said")
        assert "unflushed" not in service.log
        reload(service, numbered(2, PRINTS), 2)
        assert service.log.count("unflushed r1") == 1
        reload(service, numbered(3), 3)
        assert service.log.count("unflushed r2") == 1


def test_a_reload_where_nobody_reads_what_was_printed(tmp_path: Path) -> None:
    """The reader of stdout is gone, as after a restart of what collects it: what is held back is lost, and no more."""
    reading, writing = os.pipe()
    os.close(reading)
    before = ["sh", "-c", f'exec "$@" >/proc/self/fd/{writing}', "sh"]
    try:
        with Released(tmp_path, numbered(1, PRINTS), max_children=WORKERS, before=before, fds=[writing]) as service:
            service.wait_ready(WORKERS)
            service.wait("said")
            reload(service, numbered(2), 2)
            assert service.answering() == "r2"
    finally:
        os.close(writing)


READS = "import sys\nif rehearsing() and sys.stdin.read(1): raise RuntimeError('it has an input')\n"


def test_the_rehearsal_has_no_input(tmp_path: Path) -> None:
    """A rehearsal takes nothing of what the program is to read."""
    (tmp_path / "input").write_text("x")
    before = ["sh", "-c", 'exec "$@" <input', "sh"]
    with Released(tmp_path, max_children=WORKERS, before=before) as service:
        service.wait_ready(WORKERS)
        reload(service, numbered(2, READS), 2)


TELLS_AND_HANGS = """
with open("gate", "w") as gate:
    pass
while True: time.sleep(60)
"""


def test_a_worker_that_is_started_during_a_rehearsal(tmp_path: Path) -> None:
    """A worker that is started during a rehearsal is of the old release, and holds what every worker does: nothing
    of the rehearsal."""
    os.mkfifo(tmp_path / "gate")
    with Released(tmp_path, max_children=1, boot_timeout=10) as service:
        service.wait_ready(1)
        service.expect("reload failed: the service is about to end")
        before = held(*service.workers())
        service.release(TELLS_AND_HANGS)
        service.signal(signal.SIGHUP)
        with open(tmp_path / "gate"):  # which waits for the other end
            service.signal(signal.SIGKILL, *service.workers())
            service.wait_ready(1, killed=1)
            assert held(*service.workers()) == before
            assert service.answering() == "r1"


HOLDS = "from tests.process.programs.holding import Hooks"


def test_what_does_not_run_in_the_image_that_is_replaced(tmp_path: Path) -> None:
    """At the exec nothing after serve_forever() runs, nor finally, nor atexit, and no file of the program's is flushed;
    its descriptors are closed, but for those that it made inheritable."""
    with Released(tmp_path, numbered(1, HOLDS), max_children=WORKERS) as service:
        service.wait_ready(WORKERS)
        reload(service, numbered(2), 2)
        assert not (tmp_path / "left").exists()
        assert (tmp_path / "unflushed").read_text() == ""
        links = [os.readlink(entry.path) for entry in os.scandir(f"/proc/{service.pid}/fd")]
        assert [link for link in links if link.startswith(str(tmp_path / "kept"))]
        assert not [link for link in links if link.startswith((str(tmp_path / "held"), str(tmp_path / "unflushed")))]


BROKEN = {
    "raises at import": ("raise RuntimeError('no such table')\n", "no such table"),
    "exits": ("import sys; sys.exit('not today')\n", "not today"),
    "hangs at boot": (HANGS, "was not ready within 3 s (boot_timeout)"),
    "fails in worker_started": (
        "class Hooks:\n    def worker_started(self):\n        raise RuntimeError('no database')\n", "no database",
    ),
    "hangs in worker_started": (
        "class Hooks:\n    def worker_started(self):\n        import time; time.sleep(600)\n", "boot_timeout",
    ),
    "is killed": ("import os, signal; os.kill(os.getpid(), signal.SIGKILL)\n", "SIGKILL"),
    "returns": ("import sys, os; os._exit(0)\n", "ended before its serve_forever() was ready: exit status 0"),
    "is no Python": ("def\n", "SyntaxError"),
    "has a wrong setting": ("class Hooks:\n    max_requests = -1\n", "max_requests"),
}  # fmt: skip


@pytest.mark.once
@pytest.mark.parametrize("how", BROKEN)
def test_a_broken_release_changes_nothing(how: str, tmp_path: Path) -> None:
    """Whatever the rehearsal dies of, the workers stay the same processes, the log has the reason, the next is fine."""
    text, reason = BROKEN[how]
    with Released(tmp_path, max_children=WORKERS, boot_timeout=3) as service:
        service.expect(rf"(?s)reload failed.*{re.escape(reason)}")
        service.allow("(?s)boot_failed .exit status 1.*RuntimeError: no database")
        service.wait_ready(WORKERS)
        before = service.workers()
        service.release(text)
        service.signal(signal.SIGHUP)
        service.wait_reloads(failed=1)
        assert service.workers() == before
        assert service.answering() == "r1"
        service.release(numbered(3))
        service.signal(signal.SIGHUP)
        service.wait_reloads(ok=1)
        service.wait_ready(WORKERS, replaced=WORKERS)
        assert service.answering() == "r3"


AFTER_THE_EXEC = {
    "raises": "raise RuntimeError('only here')\n",
    "exits": "sys.exit(3)\n",
    "hangs": "while True: time.sleep(60)\n",
    "cannot serve": "Hooks.serve_forever = lambda self, poll_interval=None: self.server_close()\n",
}


@pytest.mark.once
@pytest.mark.parametrize("how", AFTER_THE_EXEC)
def test_an_image_that_fails_after_the_exec_is_degraded_and_can_be_mended(how: str, tmp_path: Path) -> None:
    """The old generation serves on under the same pid; the next reload puts the new code in service."""
    (port,) = free_ports(1)
    settings: dict[str, Any] = {"max_children": WORKERS, "boot_timeout": 3, "metrics_address": ("127.0.0.1", port)}
    broken = "class Hooks: pass\n" + AFTERWARDS + AFTER_THE_EXEC[how]
    with Released(tmp_path, "class Hooks: pass\n" + numbered(1), **settings) as service:
        service.expect("reload failed: the program")
        service.allow("RuntimeError: only here")
        service.wait_ready(WORKERS)
        before = service.workers()
        service.release(broken)
        service.signal(signal.SIGHUP)
        wait_scraped(port, 'prefork_reloads_total{result="failed"}', 1)
        assert service.workers() == before
        assert service.answering() == "r1"
        wait_scraped(port, "prefork_last_reload_successful", 0)
        service.release("class Hooks: pass\n" + numbered(3))
        service.signal(signal.SIGHUP)
        service.wait_reloads(ok=1)
        service.wait_ready(WORKERS, replaced=WORKERS)
        assert service.answering() == "r3"
        wait_scraped(port, "prefork_generation", 2)


def test_workers_that_cannot_start_after_all_leave_the_old_ones_in_service(tmp_path: Path) -> None:
    """After the exec every new worker dies at boot: the old ones stay, and the next reload mends it."""
    broken = "class Hooks:\n    def worker_started(self):\n        if not rehearsing(): raise RuntimeError('later')\n"
    with Released(tmp_path, max_children=WORKERS, max_restart_delay=0.5) as service:
        service.expect(
            "(?s)boot_failed.*RuntimeError: later",
            "reload failed: the new workers cannot start, the old ones serve on: RuntimeError: later",
        )
        service.wait_ready(WORKERS)
        before = service.workers()
        service.release(broken)
        service.signal(signal.SIGHUP)
        service.wait_reloads(failed=1)
        assert set(before) <= set(service.workers())
        assert service.answering() == "r1"
        service.release(numbered(3))
        service.signal(signal.SIGHUP)
        service.wait_reloads(ok=1)
        service.wait_ready(WORKERS, replaced=WORKERS)
        assert service.answering() == "r3"


def test_changed_settings_take_effect(tmp_path: Path) -> None:
    """Pool bounds, name and metrics address of the new release are in force."""
    first, second = free_ports(2)
    hooks = "class Hooks:\n    max_children = {}\n    metrics_address = ('127.0.0.1', {})\n    service_name = '{}'\n"
    with Released(tmp_path, numbered(1, hooks.format(3, first, "one"))) as service:
        service.wait_ready(3)
        wait_scraped(first, "prefork_workers_max", 3)
        service.release(numbered(2, hooks.format(1, second, "two")))
        service.signal(signal.SIGHUP)
        service.wait_ready(1, replaced=3)
        wait_scraped(second, "prefork_workers_max", 1)
        wait_scraped(first, "prefork_workers_max", None)
        assert Path(f"/proc/{service.pid}/cmdline").read_bytes().startswith(b"prefork: master two")


def test_another_address_is_opened_and_the_old_one_left(tmp_path: Path) -> None:
    """A release that listens elsewhere: all that is queued at the old address is served, though it takes long until
    anybody can; nobody new is let in there, and then nobody listens."""
    first, second = free_ports(2)
    hooks = (
        "class Hooks:\n"
        "    max_children = 1\n"
        "    def __init__(self, address, handler): super().__init__(('127.0.0.1', {}), handler)\n"
    )
    with Released(tmp_path, numbered(1, hooks.format(first))) as service, contextlib.ExitStack() as stack:
        service.wait_ready(1)
        held = service.hold()
        queued = [stack.enter_context(service.connect()) for _ in range(6)]
        for connection in queued:
            connection.send(b"release")
            connection.sock.shutdown(socket.SHUT_WR)
        service.release(numbered(2, hooks.format(second)))
        after = service.mark()
        service.signal(signal.SIGHUP)
        service.wait("pool", after=service.facts.index(service.wait("listening", after=after)))
        late = stack.enter_context(socket.socket())
        late.setblocking(False)
        late.connect_ex(("127.0.0.1", first))
        nothing_for(0.5, *(connection.sock for connection in queued))  # an input: how long nobody can serve them
        held.close()
        assert [connection.answer() for connection in queued] == [b"r1"] * 6
        service.wait_ready(1, replaced=1)
        assert ask(("127.0.0.1", second), b"release\n") == b"r2\n"
        with pytest.raises(ConnectionRefusedError):
            ask(("127.0.0.1", first), b"release\n")
        assert select.select([], [late], [], HUNG)[1], "hung: who came too late is not told"
        assert late.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) == errno.ECONNREFUSED


def test_a_unix_path_stays_and_is_removed_at_the_end(tmp_path: Path) -> None:
    """The path of a Unix socket is the same file over a reload, also a failed one, and gone after the last drain."""
    path = tmp_path / "s"
    with Released(tmp_path, bases="PreForkingUnixStreamServer", address=str(path), max_children=WORKERS) as service:
        service.expect(
            "reload failed: a worker could not start: exit status 1", r"slot=1 .*boot_failed \(exit status 1\)"
        )
        service.wait_ready(WORKERS)
        inode = path.stat().st_ino
        service.release("class Hooks:\n    def worker_started(self): raise RuntimeError\n")
        service.signal(signal.SIGHUP)
        service.wait_reloads(failed=1)
        reload(service, numbered(2), 2)
        assert service.answering() == "r2"
        assert path.stat().st_ino == inode
    assert not path.exists()


def test_over_the_standard_library(tmp_path: Path) -> None:
    """A pool over http.server is reloaded as ours is."""
    with Released(tmp_path, argv=["-m", "tests.process.programs.pages"]) as service:
        service.wait_ready(2)
        assert ask(service.address, b"GET / HTTP/1.0\r\n\r\n").endswith(b"r1")
        reload(service, numbered(2), 2)
        assert ask(service.address, b"GET / HTTP/1.0\r\n\r\n").endswith(b"r2")


TELLS = "from tests.process.programs.about_main import tell_about_main\ntell_about_main()\n"


def ways(tmp_path: Path) -> dict[str, list[str]]:
    """Every way to start the same program, as the interpreter's arguments."""
    source = script(TELLS + DEFINITIONS, max_children=WORKERS)
    (tmp_path / "service.py").write_text(source)
    py_compile.compile(str(tmp_path / "service.py"), str(tmp_path / "compiled.pyc"))
    package = tmp_path / "package"
    package.mkdir()
    (package / "__main__.py").write_text(source)
    with zipfile.ZipFile(tmp_path / "service.pyz", "w") as archive:
        archive.writestr("__main__.py", source)
    (tmp_path / "app.py").write_text(source)
    console = tmp_path / "prefork-console"
    console.write_text(
        "import sys\nfrom prefork.cli.main import main\nif __name__ == '__main__':\n    sys.exit(main())\n"
    )
    return {
        "script": ["service.py"],
        "compiled script": ["compiled.pyc"],
        "script with flags": ["-W", "error", "-Xdev", "-B", "service.py", "-m", "argument"],
        "-m": ["-m", "service"],
        "-m package": ["-m", "package"],
        "-c": ["-c", source],
        "zip": ["service.pyz"],
        "folder": ["package"],
        "console script": [str(console), "run", "app:Server", "--bind", "127.0.0.1:0"],
        "-m prefork": ["-m", "prefork", "run", "app:Server", "--bind", "127.0.0.1:0"],
    }


WAYS = [
    "script", "compiled script", "script with flags", "-m", "-m package", "-c", "zip", "folder", "console script",
    "-m prefork",
]  # fmt: skip


@pytest.mark.parametrize("way", WAYS)
def test_every_way_to_start_a_program(way: str, tmp_path: Path) -> None:
    """A program is run again as it was started: its arguments, its flags, its `__main__`, in which there is nothing of
    ours."""
    with Released(tmp_path, argv=ways(tmp_path)[way]) as service:
        service.wait_ready(WORKERS)
        reload(service, numbered(2), 2)
        assert service.answering() == "r2"
        command = Path(f"/proc/{service.pid}/exe").resolve()
        assert command == Path(sys.executable).resolve()
    first, second = [fact for fact in service.facts if fact["event"] == "main"]
    assert {**second, "at": first["at"]} == first


def test_descriptors_are_as_many_as_before(tmp_path: Path) -> None:
    """What a reload needs of the master's descriptors is given back: it has none more than at the start."""
    with Released(tmp_path, max_children=WORKERS) as service:
        service.wait_ready(WORKERS)
        before = held(service.pid)
        for number in (2, 3):
            reload(service, numbered(number), number)
            assert held(service.pid) == before


def test_nothing_is_warned_of(tmp_path: Path) -> None:
    """With every warning an error and Python's development mode, a service that is reloaded, then degraded and mended,
    then degraded again and ended, has none in its log: nothing is left unclosed, nothing deprecated is called."""
    (port,) = free_ports(1)
    (tmp_path / "service.py").write_text(script(DEFINITIONS, max_children=WORKERS, metrics_address=("127.0.0.1", port)))
    broken = "class Hooks: pass\n" + AFTERWARDS + AFTER_THE_EXEC["raises"]
    with Released(
        tmp_path, "class Hooks: pass\n" + numbered(1), argv=["-W", "error", "-Xdev", "service.py"]
    ) as service:
        service.expect("RuntimeError: only here", "reload failed: the program failed: RuntimeError: only here")
        service.wait_ready(WORKERS)
        for number in (1, 2):
            service.release(broken)
            service.signal(signal.SIGHUP)
            wait_scraped(port, 'prefork_reloads_total{result="failed"}', number)
            if number == 1:
                service.release("class Hooks: pass\n" + numbered(3))
                service.signal(signal.SIGHUP)
                service.wait_reloads(ok=1)
                service.wait_ready(WORKERS, replaced=WORKERS)
        assert service.answering() == "r3"
        service.signal(signal.SIGTERM)
        service.wait_gone()
    assert "Warning" not in service.log


def test_a_release_symlink_that_moved_is_followed(tmp_path: Path) -> None:
    """The program runs where the symlink points to now, by the name that it was started under."""
    source = script(
        "import pathlib\nRELEASE = pathlib.Path('name').read_text()\n"
        "class Handler(Who):\n    def do_release(self):\n        return RELEASE\n", max_children=WORKERS,
    )  # fmt: skip
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "program.py").write_text(source)
        (tmp_path / name / "name").write_text(name)
    current = tmp_path / "current"
    current.symlink_to("one")
    before = ["sh", "-c", f'cd {current} && exec "$@"', "sh"]
    with Released(tmp_path, argv=["program.py"], before=before) as service:
        service.wait_ready(WORKERS)
        assert service.answering() == "one"
        (tmp_path / "new").symlink_to("two")
        (tmp_path / "new").rename(current)
        service.signal(signal.SIGHUP)
        service.wait_reloads(ok=1)
        service.wait_ready(WORKERS, replaced=WORKERS)
        assert service.answering() == "two"


def test_a_python_call_reloads(tmp_path: Path) -> None:
    """`server.reload()` in the master does what HUP does; in a worker it is refused."""
    hooks = "from tests.process.programs.reloading import Asking as Hooks"
    with Released(tmp_path, numbered(1, hooks), max_children=WORKERS) as service:
        service.wait_ready(WORKERS)
        service.release(numbered(2, hooks))
        (tmp_path / "please").touch()
        service.wait_reloads(ok=1)
        service.wait_ready(WORKERS, replaced=WORKERS)
        service.wait_ready(WORKERS, replaced=WORKERS)
        assert service.answering() == "r2"


def test_outside_the_main_thread_it_is_refused_by_name(tmp_path: Path) -> None:
    """A pool that serves in another thread cannot be reloaded, and says why."""
    with Released(tmp_path, argv=["-m", "tests.process.programs.reloaded_in_a_thread"]) as service:
        why = service.wait("refused")["why"]
        assert service.wait_exit() == 0
    assert why == "could not reload: serve_forever() does not run in the main thread"


def test_a_program_from_stdin_is_refused_by_name(tmp_path: Path) -> None:
    """What was read from stdin cannot be read again."""
    source = script("Handler = Who", max_children=WORKERS)
    (tmp_path / "text").write_text(source)
    before = ["sh", "-c", f'exec "$@" < {tmp_path}/text', "sh"]
    with Released(tmp_path, argv=["-"], before=before) as service:
        service.expect("reload failed: could not reload: its program was read from stdin")
        service.wait_ready(WORKERS)
        service.signal(signal.SIGHUP)
        service.wait_reloads(failed=1)
