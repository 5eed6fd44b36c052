"""Companions: one process each for the whole service, supervised like a worker, whatever it does."""

import os
import re
import signal
from itertools import pairwise
from pathlib import Path
from time import monotonic
from typing import Any

import psutil
import pytest

from prefork import ConfigError
from tests.process.programs.declaring import Plain, Silent
from tests.support.clients.connections import ask, free_port
from tests.support.clients.controlling import asked, ctl
from tests.support.programs.command import running
from tests.support.programs.releases import Released, numbered, scraped, wait_scraped
from tests.support.programs.service import HUNG, ROOT, Fact, Service, Watch, script

GRACE = 1.0
INTERVAL, JITTER = 0.4, 0.15
FIRST_RESTART_DELAY_S, STOP_GRACE_S, SLACK = 0.5, 1.0, 1.5

BASES = """
from tests.process.programs.accompanied import *
class Hooks:
    companions = {%s}
"""


def accompanied(*names: str, more: str = "", **settings: Any) -> str:
    """A program with these functions as companions."""
    definitions = BASES % ", ".join(f"{name!r}: {name}" for name in names) + more
    return script(definitions, **{"max_children": 1, **settings})


def begun(service: Service, name: str, after: int = 0) -> Fact:
    return service.wait("begun", lambda fact: fact["name"] == name, after=after)


def gaps(facts: list[Fact]) -> list[float]:
    return [later["at"] - earlier["at"] for earlier, later in pairwise(facts)]


def facts_of(service: Service, name: str) -> list[str]:
    return [fact["event"] for fact in service.facts if fact.get("name") == name]


def test_one_for_the_service(tmp_path: Path) -> None:
    """However many workers there are: one process of a name, without a slot or a listener, which is told to end when
    the workers have left, and ends as Python does."""
    with Service(tmp_path, accompanied("steady", "slow", max_children=3, metrics_address=("127.0.0.1", 0))) as service:
        service.wait_ready(3)
        first = begun(service, "steady")
        begun(service, "slow")
        assert (first["slot"], first["variable"], first["draining"]) == (None, None, False)
        assert (first["title"], first["listens"], first["fileno"]) == ("prefork: companion steady", [], -1)
        assert len(service.workers()) == 3
        service.signal(signal.SIGTERM)
        assert service.wait_exit() == 0
        service.wait_gone()
    assert facts_of(service, "steady") == ["begun", "told", "atexit"]
    assert facts_of(service, "slow") == ["begun", "told"]
    events = [fact["event"] for fact in service.facts]
    assert events.index("told") > max(at for at, event in enumerate(events) if event == "worker_stopping")
    assert service.wait("ended")["exits"] == {"drained": 3}


@pytest.mark.timed
def test_a_drain_tells_it_at_half_time(tmp_path: Path) -> None:
    """Where a request in hand keeps a worker, the companions are told after half of graceful_timeout."""
    with Service(tmp_path, accompanied("steady", graceful_timeout=GRACE)) as service:
        begun(service, "steady")
        with service.hold() as held:
            at = service.signal(signal.SIGTERM)
            told = service.wait("told")
            assert held.ask(b"pid") == b"%d" % held.pid
        service.wait_exit()
    assert told["draining"]
    assert GRACE / 2 <= told["at"] - at < GRACE


@pytest.mark.timed
@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT])
def test_one_that_ignores_it_is_killed(signum: signal.Signals, tmp_path: Path) -> None:
    """A drain kills it at graceful_timeout, a stop kills nobody but leaves at once."""
    with Service(tmp_path, accompanied("deaf", graceful_timeout=GRACE)) as service:
        begun(service, "deaf")
        at = service.signal(signum)
        assert service.wait_exit() == 0
        took = service.wait("ended")["at"] - at
    bound = GRACE if signum == signal.SIGTERM else 0
    assert bound - 0.05 <= took < bound + SLACK
    assert ("killed after" in service.log) == bool(bound)


@pytest.mark.timed
@pytest.mark.once
def test_back_off(tmp_path: Path) -> None:
    """One that returns, raises or leaves at once is started again after 0.5 s, 1 s, …; the others and the workers do
    not notice."""
    with Service(tmp_path, accompanied("returns", "raises", "leaves", "steady")) as service:
        service.expect(
            r"companion name=returns .*: exited \(exit status 0\)", r"companion name=leaves .*exited \(exit status 7\)",
            r"companion name=raises .*: crashed \(exit status 1\)", "RuntimeError: asked to raise",
        )  # fmt: skip
        begun(service, "steady")
        after, starts = 0, {name: [begun(service, name)] for name in ("returns", "raises", "leaves")}
        for name, facts in starts.items():
            while len(facts) < 3:
                after = service.facts.index(facts[-1]) + 1
                facts.append(begun(service, name, after))
            for gap, delay in zip(gaps(facts), (FIRST_RESTART_DELAY_S, 2 * FIRST_RESTART_DELAY_S), strict=True):
                assert delay <= gap < delay + SLACK
        assert int(ask(service.address, b"pid\n")) in service.workers()
    assert facts_of(service, "steady") == ["begun", "told", "atexit"]
    assert service.wait("ended")["exits"] == {"drained": 1}
    assert service.wait("ended")["spawned"] == 1


def test_killed(tmp_path: Path) -> None:
    """kill -9 of a companion, and `ctl restart NAME`: the next one comes, and the pool has no part in it."""
    with Service(tmp_path, accompanied("steady", control_socket="c")) as service:
        first = begun(service, "steady")
        after = service.mark()
        service.signal(signal.SIGKILL, first["pid"])
        second = begun(service, "steady", after)
        assert second["pid"] != first["pid"]
        assert ctl(tmp_path / "c", "restart", "steady").stdout == "companion steady restarted\n"
        third = begun(service, "steady", service.facts.index(second) + 1)
        assert f"companion steady pid {third['pid']}\n" in ctl(tmp_path / "c", "stacks", "steady").stdout
        refused = ctl(tmp_path / "c", "restart", "stead")
        assert refused.returncode == 1
        assert refused.stderr == "prefork: could not restart: there is no companion stead; this service has steady\n"
        assert "companions 1 of 1 run\n" in ctl(tmp_path / "c", "status").stdout
    assert service.wait("ended")["exits"] == {"drained": 1}


@pytest.mark.timed
@pytest.mark.parametrize("companions", [["steady", "demoted"], ["deaf", "ignoring"]], ids=" ".join)
def test_no_orphan(companions: list[str], tmp_path: Path) -> None:
    """With the master dies what it has started: at once, or within graceful_timeout where it does not hear that; also
    one that has changed its user, and one that ignores TERM."""
    if os.geteuid() != 0:
        companions = [each for each in companions if each != "demoted"]
    with Service(tmp_path, accompanied(*companions, graceful_timeout=GRACE)) as service:
        with Watch(*(begun(service, each)["pid"] for each in companions)) as watched:
            at = service.signal(signal.SIGKILL)
            took = watched.wait_dead() - at
        service.wait_gone()
    assert took < (0.5 if "steady" in companions else GRACE + SLACK)


IN_THREAD = """
class Hooks(Hooks):
    def serve_forever(self, *args):
        thread = threading.Thread(target=super().serve_forever, args=args)
        thread.start()
        thread.join()
"""


@pytest.mark.timed
@pytest.mark.once
def test_no_orphan_of_a_pool_in_a_thread(tmp_path: Path) -> None:
    """Nor where the kernel cannot tell it, because a thread had forked it."""
    with Service(tmp_path, accompanied("deaf", "steady", more=IN_THREAD, graceful_timeout=GRACE)) as service:
        pids = [begun(service, name)["pid"] for name in ("deaf", "steady")]
        with Watch(*pids) as watched:
            at = service.signal(signal.SIGKILL)
            assert watched.wait_dead() - at < GRACE + SLACK
        service.wait_gone()


def test_threads_and_forks(tmp_path: Path) -> None:
    """One that returns lives as long as its threads, which can wait to be told; a process that it forks ends where its
    function returns or raises, never becomes a companion, and can wait with it."""
    with Service(tmp_path, accompanied("threaded", "forks")) as service:
        service.expect("a process that the program forked ends with an exception: ZeroDivisionError", "ZeroDivision")
        begun(service, "threaded")
        forked = begun(service, "forks")
        assert forked["statuses"] == [0, 1, 5]
    told = {fact["name"]: fact for fact in service.facts if fact["event"] == "told"}
    assert told["threaded"]["draining"]
    assert told["forks"]["status"] == 9
    assert facts_of(service, "forks") == ["begun", "told"]


def test_shutdown_in_a_companion(tmp_path: Path) -> None:
    """It asks the master to drain the service, as in a worker."""
    with Service(tmp_path, accompanied("asks_for_the_end")) as service:
        assert service.wait_exit() == 0
    assert facts_of(service, "asks_for_the_end") == ["begun", "told"]


@pytest.mark.once
def test_fifty_of_them_beside_one_worker(tmp_path: Path) -> None:
    """They are no workers: max_children does not count them."""
    fifty = "class Hooks:\n    companions = {f'c{n}.-_': steady for n in range(50)}\n"
    with Service(tmp_path, accompanied("steady", more=fifty)) as service:
        found = service.wait_each("begun", 50)
        assert len({fact["pid"] for fact in found}) == 50
        assert int(ask(service.address, b"pid\n")) in service.workers()
        assert len(service.workers()) == 1


# Declarations.

DECLARING = "tests.process.programs.declaring:"
ANYWHERE = ("--bind", "127.0.0.1:0", "--max-children", "1")


@pytest.mark.once
@pytest.mark.parametrize("target", ["OfTheClass", "OfTheStandardLibrary", "of_the_instance"])
def test_prefork_run(target: str) -> None:
    """A class of ours, one of the standard library's or an instance may declare them."""
    with running(["run", DECLARING + target, *ANYWHERE], cwd=ROOT) as service:
        assert service.ended() == 0
    assert re.search(r"companion name=ends gen=1 pid=\d+: asked to end the service", service.log)
    assert re.search(r"companion name=ends gen=1 pid=\d+: drained \(exit status 0\)", service.log)


@pytest.mark.once
@pytest.mark.parametrize("command", [["run", *ANYWHERE], ["check", *ANYWHERE], ["run", *ANYWHERE, "--single"]])
def test_a_wrong_one_is_refused(command: list[str]) -> None:
    """Before anything is bound, in one sentence, by a check too."""
    with running([command[0], DECLARING + "Wrong", *command[1:]], cwd=ROOT) as service:
        assert service.ended() == 2
    assert service.address == ""
    assert "could not set companion waits to <function waits at" in service.log
    assert "it is async, and nobody would await it; call asyncio.run() in a plain function" in service.log
    assert "Traceback" not in service.log


@pytest.mark.once
def test_a_check_runs_none() -> None:
    """A check, as the rehearsal of a reload, boots a worker and no companion."""
    with running(["check", DECLARING + "OfTheClass", *ANYWHERE], cwd=ROOT) as service:
        assert service.ended() == 0
    assert "companion name" not in service.log


@pytest.mark.once
def test_single_runs_none() -> None:
    """With --single there is one process, and the log says what does not run."""
    with running(["run", DECLARING + "OfTheClass", *ANYWHERE, "--single"], cwd=ROOT) as service:
        assert "the companions do not run: ends; each would be another process" in service.log


@pytest.mark.once
def test_a_plain_server_is_refused() -> None:
    """It has nobody who starts them."""
    with (
        Plain(("127.0.0.1", 0), Silent) as server,
        pytest.raises(ConfigError, match="need a pool; put PreForkingMixIn"),
    ):
        server.serve_forever()


@pytest.mark.once
def test_metrics_of_the_program() -> None:
    """What a companion counts with prometheus_client is in the sum."""
    port = free_port()
    with running(
        ["run", "tests.process.programs.counting_companion:Counting", *ANYWHERE, "--metrics", f"127.0.0.1:{port}"],
        cwd=ROOT,
    ):
        deadline = monotonic() + HUNG
        while (scraped(port, "companion_counted_total") or 0) < 3:
            assert monotonic() < deadline


# Periodic jobs.

JOB = "class Hooks:\n    companions = {'job': every(%s, job), 'steady': steady}\n"


@pytest.mark.timed
@pytest.mark.once
def test_a_periodic_job(tmp_path: Path) -> None:
    """It runs at once, then whenever the interval has passed, one run at a time; a run that raises is logged and
    counted, one that takes too long loses those that it covers, one that kills its process is not begun again early; a
    drain does not wait for the next one."""
    port = free_port()
    settings = {"metrics_address": ("127.0.0.1", port), "control_socket": "c"}
    with Service(tmp_path, accompanied(more=JOB % INTERVAL, **settings)) as service:
        service.expect("companion job: a run raised", "RuntimeError: asked to raise", r"companion name=job .*status 3")
        runs = service.wait_each("begun", 4, after=service.facts.index(begun(service, "steady")) + 1)
        assert all(abs(gap - INTERVAL) < JITTER for gap in gaps(runs))
        (tmp_path / "job").write_text("raise")
        wait_scraped(port, 'prefork_companion_runs_total{companion="job",outcome="error"}', 1.0)
        (tmp_path / "job").write_text("take long")
        runs = [begun(service, "job", service.mark())]
        runs += service.wait_each("begun", 2, after=service.facts.index(runs[0]) + 1)
        assert all(abs(gap - 2 * INTERVAL) < JITTER for gap in gaps(runs))
        (tmp_path / "job").write_text("die")
        again = service.wait("begun", lambda fact: fact["name"] == "job" and fact["pid"] != runs[0]["pid"])
        last = max(fact["at"] for fact in service.facts if fact.get("pid") == runs[0]["pid"])
        assert again["at"] - last >= INTERVAL - JITTER
        wait_scraped(port, 'prefork_companion_restarts_total{companion="job"}', 1.0)
        wait_scraped(port, 'prefork_companion_up{companion="job"}', 1.0)
        assert scraped(port, 'prefork_companion_interval_seconds{companion="job"}') == INTERVAL
        assert (scraped(port, 'prefork_companion_last_run_duration_seconds{companion="job"}') or 9) < 1
        job, steady = (asked(tmp_path / "c", "workers")["companions"][at] for at in (0, 1))
        assert (job["name"], job["state"], job["restarts"], job["runs_failed"]) == ("job", "running", 1, 1)
        assert (job["runs_lost"], job["runs_timed_out"]) == (1, 0)
        assert all(0 < each["private_memory_bytes"] < each["rss_bytes"] for each in (job, steady))
        assert 0 <= job["next_run_in_s"] <= INTERVAL
        assert (steady["runs_ok"], steady["last_run_ago_s"], steady["pid"]) == (
            None,
            None,
            begun(service, "steady")["pid"],
        )


LIMITED = "class Hooks:\n    companions = {'job': every(%s, job, timeout=%s)}\n"
TIMEOUT = 0.2  # with what follows it ends before the next run is due


@pytest.mark.timed
@pytest.mark.once
def test_a_run_over_its_time(tmp_path: Path) -> None:
    """Its stacks are logged, it counts as timeout and its process is replaced, in which the next one runs when it is
    due; one that ends when it is told has ended well. Neither is a restart that nobody asked for."""
    with Service(tmp_path, accompanied(more=LIMITED % (2 * INTERVAL, TIMEOUT), control_socket="c")) as service:
        service.expect("companion name=job .*: a run has taken longer than its timeout")
        first = begun(service, "job")
        (tmp_path / "job").write_text("hang")
        hung = service.wait("begun", lambda fact: fact["said"] == "hang")
        (tmp_path / "job").write_text("listen")
        second = service.wait("begun", lambda fact: fact["said"] == "listen")
        (tmp_path / "job").write_text("")
        third = begun(service, "job", service.facts.index(second) + 1)
        assert len({fact["pid"] for fact in (hung, second, third)}) == 3
        late = [(fact["at"] - first["at"] + JITTER) % (2 * INTERVAL) for fact in (second, third)]
        assert max(late) < 2 * JITTER
        assert service.wait("done", lambda fact: fact["pid"] == second["pid"])
        (job,) = asked(tmp_path / "c", "workers")["companions"]
        assert (job["restarts"], job["runs_failed"], job["runs_timed_out"], job["runs_lost"]) == (0, 0, 1, 0)
    for said in ("stacks of its threads\n", " in job\n", ": killed after 0.1 s in state draining\n",
                 ": timeout (killed by SIGKILL)\n", ": a run ended with it: timeout\n"):  # fmt: skip
        assert service.log.count(said) >= 1


# Reloads.

RELEASE = "from tests.process.programs.accompanied import *\nclass Hooks:\n    companions = {%s}\n    release = %r\n"
WITH = "{0!r}: lambda server: (begin({0!r} + RELEASE), server.wait_draining(), tell('told', name={0!r} + RELEASE))"


def release_with(number: int, *names: str) -> str:
    """A release whose companions tell of which release they are."""
    return numbered(number, RELEASE % (", ".join(WITH.format(name) for name in names), number))


def test_a_reload_replaces_them(tmp_path: Path) -> None:
    """When only new workers serve, the old ones are told to end, and each new one starts when its own has gone: never
    two. What the new code does not declare is not started again, what it adds is. USR2 replaces them too."""
    with Released(tmp_path, release_with(1, "kept", "left"), max_children=2) as service:
        service.wait_ready(2)
        first = begun(service, "keptr1"), begun(service, "leftr1")
        service.release(release_with(2, "kept", "added"))
        service.signal(signal.SIGHUP)
        service.wait_reloads(ok=1)
        second = begun(service, "keptr2"), begun(service, "addedr2")
        for old in first:
            assert not psutil.pid_exists(old["pid"]) or old["name"] == "leftr1"
        after = service.mark()
        service.signal(signal.SIGUSR2)
        third = begun(service, "keptr2", after)
        assert third["pid"] != second[0]["pid"]
    ends = {(fact["name"], fact["pid"]): fact["at"] for fact in service.facts if fact["event"] == "told"}
    assert ends["keptr1", first[0]["pid"]] < second[0]["at"]
    assert ends["keptr2", second[0]["pid"]] < third["at"]
    assert [fact["name"] for fact in service.facts if fact["event"] == "begun"].count("leftr1") == 1


@pytest.mark.once
def test_a_reload_waits_for_one_that_ignores_it(tmp_path: Path) -> None:
    """It is killed at graceful_timeout, and only then the next one starts."""
    with Service(tmp_path, accompanied("deaf", graceful_timeout=GRACE)) as service:
        first = begun(service, "deaf")
        after = service.mark()
        at = service.signal(signal.SIGUSR2)
        second = begun(service, "deaf", after)
        assert not psutil.pid_exists(first["pid"])
    assert second["at"] - at >= GRACE - 0.05


@pytest.mark.once
@pytest.mark.parametrize("fails", ["in its rehearsal", "afterwards"])
def test_a_reload_that_fails_keeps_them(fails: str, tmp_path: Path) -> None:
    """The companions of the code that serves on are left alone, by the degraded master too; the next reload replaces
    them."""
    bad = "raise RuntimeError('bad')\n"
    settings: dict[str, Any] = {"max_children": 1, "control_socket": str(tmp_path / "c")}
    with Released(tmp_path, release_with(1, "one"), **settings) as service:
        service.expect("reload failed", "RuntimeError: bad")
        service.wait_ready(1)
        first = begun(service, "oner1")
        service.release(
            bad if fails == "in its rehearsal" else "if not rehearsing():\n    " + bad + release_with(2, "one")
        )
        service.signal(signal.SIGHUP)
        if fails == "afterwards":
            service.wait_degraded()
            # It could start no other one.
            service.signal(signal.SIGTERM, first["pid"])
            refused = ctl(tmp_path / "c", "restart", "one")
            assert refused.stderr.startswith(
                "prefork: could not restart: there is no program to start; the program failed"
            )
            assert "running" in ctl(tmp_path / "c", "workers").stdout.splitlines()[-1]
        else:
            service.wait_reloads(failed=1)
        assert psutil.Process(first["pid"]).cmdline()[0] == "prefork: companion one"
        service.release(release_with(3, "one"))
        service.signal(signal.SIGHUP)
        third = begun(service, "oner3")
        assert not psutil.pid_exists(first["pid"])
    names = [fact["name"] for fact in service.facts if fact["event"] == "begun"]
    assert (names, third["name"]) == (["oner1", "oner3"], "oner3")
