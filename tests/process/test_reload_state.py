"""What the kernel keeps over the exec of a reload, what the next image of the master must be told, and what it must
not find: the program runs in it as if it had just been started."""

import os
import signal
import sys
from pathlib import Path
from time import monotonic

import pytest

from tests.support.clients.controlling import ctl
from tests.support.programs.releases import AFTERWARDS, DEFINITIONS, Released, numbered
from tests.support.programs.served import LOOK
from tests.support.programs.service import HUNG, Fact, script
from tests.support.tools.proc import nothing_for

WORKERS = 1


def reload(service: Released, text: str, generation: int, *, failed: int = 0) -> None:
    """Release this, ask for it by HUP, and wait until the old workers are gone."""
    service.release(text)
    service.signal(signal.SIGHUP)
    ended = service.wait_pool(
        lambda pool: pool["reloads"]["ok"] >= generation - 1 or pool["reloads"]["failed"] > failed
    )
    assert ended["reloads"]["failed"] == failed
    service.wait_ready(WORKERS, replaced=WORKERS * (generation - 1))


TIMERS = "from tests.process.programs.timers import Hooks\n"


def test_timers_of_the_program(tmp_path: Path) -> None:
    """All three interval timers end with the image that set them, and those of the new image are its own: none of their
    signals ends it, and the alarm of the takeover takes none of them away."""
    with Released(tmp_path, numbered(1, TIMERS), max_children=WORKERS) as service:
        service.wait_ready(WORKERS)
        for number in (2, 3):
            reload(service, numbered(number, TIMERS), number)
            service.wait("rang", lambda fact: fact["release"] == f"r{number}")  # noqa: B023
        reload(service, numbered(4), 4)
        assert service.answering() == "r4"


DEAF = "import tests.process.programs.deaf\n"


def has_come(fact: Fact) -> bool:
    """True if this fact is of a new image, which runs its program or serves."""
    return fact["event"] == "failing" or (fact["event"] == "pool" and bool(fact["reloads"]["ok"]))


def test_signals_of_the_program(tmp_path: Path) -> None:
    """A signal that the program handles does not end the next image, in which it has not come to that yet; nor the
    master that goes on without its program."""
    with Released(tmp_path, max_children=WORKERS) as service:
        service.expect("reload failed: the program failed: RuntimeError: only here")
        service.allow("RuntimeError: only here")
        service.wait_ready(WORKERS)
        for release in (AFTERWARDS + "tell('failing'); raise RuntimeError('only here')\n", numbered(3)):
            service.release("class Hooks(Told): pass\n" + release)
            after, hung_at = service.mark(), monotonic() + HUNG
            service.signal(signal.SIGHUP)
            while not any(map(has_come, service.facts[after:])):
                assert service.process.poll() is None, "it is gone"
                assert monotonic() < hung_at, "hung: there is no new image"
                after = len(service.facts)
                service.signal(LOOK)
                nothing_for(0.002)  # an input: how often it comes
                service.mark()
        service.wait_ready(WORKERS, replaced=WORKERS)
        assert service.answering() == "r3"


@pytest.mark.timed
def test_a_program_that_catches_everything(tmp_path: Path) -> None:
    """A loop at import that catches whatever is raised in it ends neither the deadline of the boot nor the obedience of
    the master: the old generation serves on, the next reload works, and TERM ends the service in time."""
    with Released(tmp_path, max_children=WORKERS, boot_timeout=2) as service:
        service.expect(
            r"reload failed: the program's serve_forever\(\) was not ready within 2 s \(boot_timeout\)",
            "reload failed: the service is about to end",
        )
        service.wait_ready(WORKERS)
        service.release(DEAF)
        service.signal(signal.SIGHUP)
        service.wait("deaf")
        service.release(numbered(3, "class Hooks:\n    boot_timeout = 60\n"))
        service.signal(signal.SIGHUP)
        service.wait_reloads(ok=1)
        service.wait_ready(WORKERS, replaced=WORKERS)
        assert service.answering() == "r3"
        after = service.mark()
        service.release(DEAF)
        service.signal(signal.SIGHUP)
        service.wait("deaf", after=after)
        asked = service.signal(signal.SIGTERM)
        assert service.wait_exit() == 0
        assert monotonic() - asked < 5


ELSEWHERE = """\
import os
os.environ["TEST_ROUNDS"] = os.environ.get("TEST_ROUNDS", "") + "x"
del os.environ["TEST_REMOVED"]
os.chdir("/")
"""
ENVIRON = """
from tests.process.programs.changing import change
RELEASE = os.environ["TEST_ROUNDS"]
tell("began", **change())
class Handler(Who):
    def do_release(self):
        return RELEASE
"""


def test_what_the_program_changed_of_its_process(tmp_path: Path) -> None:
    """The environment and the directory of a reload are those of the start, and not what was made of them before
    prefork was imported; so are the umask and the nice value, which would add up, the CPUs, the soft limits, the
    policy of scheduling, what the kernel thinks of it when memory is short, and the signals that are ignored."""
    (tmp_path / "service.py").write_text(ELSEWHERE + script(ENVIRON, max_children=WORKERS))
    with Released(tmp_path, argv=["service.py"], env={"TEST_REMOVED": "1"}) as service:
        service.wait_ready(WORKERS)
        reload(service, "", 2)
        assert service.answering() == "x"
    first, second = [fact for fact in service.facts if fact["event"] == "began"]
    assert {**first, "at": second["at"]} == second


def test_a_worker_that_has_ended_before_it_is_watched(tmp_path: Path) -> None:
    """A program that ignores SIGCHLD is rehearsed, however fast the worker of its rehearsal is."""
    with Released(tmp_path, max_children=WORKERS) as service:
        service.wait_ready(WORKERS)
        reload(service, numbered(2, "import tests.process.programs.ended_early\n"), 2)
        assert service.answering() == "r2"


BEGINS_ANOTHER = ["sh", "-c", '"$@"; exit $?', "sh"]  # a shell that waits: the program leads nothing


@pytest.mark.once
@pytest.mark.parametrize("becomes", ["os.setsid()", "os.setpgrp()", "os.setpgid(0, 0)"])
def test_a_program_that_makes_itself_a_leader(becomes: str, tmp_path: Path) -> None:
    """It does so at each reload, in the rehearsal and afterwards, where it is the leader already."""
    leads = f"import os\n{becomes}\ntell('leads', group=os.getpgrp(), session=os.getsid(0))\n" + DEFINITIONS
    source = script(leads, max_children=1, control_socket="c")
    with Released(tmp_path, source=source, before=BEGINS_ANOTHER) as service:
        service.wait_ready(1)
        for number in (2, 3):
            service.release(numbered(number))
            assert f"generation {number} is in service" in ctl(tmp_path / "c", "reload").stdout
        leaders = service.wait_each("leads", 3)
        assert {fact["group"] for fact in leaders} == {leaders[0]["pid"]}
        assert len({fact["session"] for fact in leaders}) == 1
        assert ctl(tmp_path / "c", "drain").returncode == 0
        assert service.wait_exit() == 0


def test_started_under_a_name_that_leads_nowhere(tmp_path: Path) -> None:
    """Where argv[0] is no path of the interpreter, the kernel knows what runs here."""
    before = ["bash", "-c", f'exec -a nobody {os.path.realpath(sys.executable)} "${{@:2}}"', "bash"]
    with Released(tmp_path, source=script(DEFINITIONS, max_children=WORKERS), before=before,
                  env={"PYTHONPATH": ":".join([str(tmp_path), *sys.path])}) as service:  # fmt: skip
        service.wait_ready(WORKERS)
        reload(service, numbered(2), 2)
        assert service.answering() == "r2"


def test_an_interpreter_that_is_gone(tmp_path: Path) -> None:
    """The interpreter of a release that was deleted cannot be run again: the reload says so, with its path."""
    gone = tmp_path / "bin" / "python"
    gone.parent.mkdir()
    gone.symlink_to(os.path.realpath(sys.executable))
    before = ["sh", "-c", f'shift; exec {gone} "$@"', "sh"]
    with Released(tmp_path, source=script(DEFINITIONS, max_children=WORKERS), before=before,
                  env={"PYTHONPATH": ":".join([str(tmp_path), *sys.path])}) as service:  # fmt: skip
        service.expect(
            rf"reload failed: could not run the program again by {gone}: no such file or directory \(ENOENT\)"
        )
        service.wait_ready(WORKERS)
        gone.unlink()
        service.signal(signal.SIGHUP)
        service.wait_reloads(failed=1)
        assert service.answering() == "r1"


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_pools_in_processes_of_the_program_are_refused_by_name(method: str, tmp_path: Path) -> None:
    """HUP to a pool that serves in a process which the program has started runs nothing again: neither the program,
    whose command line belongs to the first process, nor what multiprocessing has made of it."""
    with Released(tmp_path, argv=["-m", "tests.process.programs.forked_pools", method]) as service:
        service.expect("reload failed: could not reload: the program has started this process itself")
        first = service.wait("relayed", lambda fact: fact["idle"] == 1)["of"]
        second = service.wait("relayed", lambda fact: fact["idle"] == 1 and fact["of"] != first)["of"]
        os.kill(first, signal.SIGHUP)
        service.wait("relayed", lambda fact: fact["of"] == first and fact["failed"] == 1)
        for master in (first, second):
            os.kill(master, signal.SIGTERM)
        assert service.wait("codes")["codes"] == [0, 0]
        assert service.wait_exit() == 0


def test_a_pool_that_has_grown(tmp_path: Path) -> None:
    """The next generation begins as large as the one before was by then, not at min_children."""
    with Released(tmp_path, min_children=1, max_children=3) as service, service.hold() as first, service.hold() as more:
        grown = service.wait_pool(lambda pool: pool["ready"] > 1 and not pool["starting"])["ready"]
        after = service.mark()
        service.release(numbered(2))
        service.signal(signal.SIGHUP)
        service.wait_reloads(ok=1)
        first.close()
        more.close()
        service.wait_pool(lambda pool: pool["exits"].get("replaced", 0) >= grown and not pool["starting"])
        assert min(fact["ready"] for fact in service.facts[after:] if fact["event"] == "pool") >= grown
