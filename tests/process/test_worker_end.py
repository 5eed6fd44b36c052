"""A worker's end is Python's: what the program began in it is finished at a drain, and what it began in the master is
the master's. What is stopped does none of it."""

import signal
from pathlib import Path

import pytest

from tests.support.programs.service import Service, Watch, script
from tests.support.tools.proc import nothing_for

A_WHILE = 0.3

PROGRAM = "from tests.process.programs.leaving_things import Hooks"
ENDS = ("atexit", "finalize", "multiprocessing")  # in both
WORKERS_ENDS = (*ENDS, "thread", "executor")


def test_a_drained_worker_ends_as_python_does(tmp_path: Path) -> None:
    """Threads and executors, told by worker_draining(), are joined, atexit functions and finalizers run, queues are
    flushed and processes ended: in each worker, once, after worker_stopping(); the master's are left to the master."""
    with Service(tmp_path, script(PROGRAM, max_children=1, graceful_timeout=15.0)) as service:
        service.wait_ready(1)
        service.signal(signal.SIGUSR2)
        service.wait_ready(1, replaced=1)
        of_master = next(fact for fact in service.facts if fact["event"] == "processes" and fact["pid"] == service.pid)
        workers = [fact["pid"] for fact in service.wait_each("worker_started", 2)]
        of_first = service.wait("processes", lambda fact: fact["pid"] == workers[0])
        with Watch(*of_master["pids"]) as lives:
            assert set(lives.alive()) == set(of_master["pids"])
        for pid in of_first["pids"]:
            assert not Path(f"/proc/{pid}").exists(), "a process of a worker outlives it"
        service.signal(signal.SIGTERM)
        assert service.wait_exit() == 0
        served, ended = service.wait("served"), service.wait("ended")
        read = service.wait_each("read", 3)
    finished: dict[int, list[str]] = {}
    stopping = {fact["pid"]: fact["at"] for fact in service.facts if fact["event"] == "worker_stopping"}
    for fact in service.facts:
        if fact["event"] == "finished":
            finished.setdefault(fact["pid"], []).append(fact["kind"])
            assert fact["kind"] not in ENDS or fact["pid"] == service.pid or fact["at"] > stopping[fact["pid"]]
    assert {pid: sorted(kinds) for pid, kinds in finished.items()} == {
        **{pid: sorted(WORKERS_ENDS) for pid in workers},
        service.pid: sorted(ENDS),
    }
    assert [fact["thread"] for fact in service.facts if fact["event"] == "worker_draining"] == [True, True]
    assert {fact["by"]: fact["size"] for fact in read} == {service.pid: 5, **dict.fromkeys(workers, 300_000)}
    assert (served["folder"], served["manager"]) == (True, 1)
    assert ended["exits"] == {"replaced": 1, "drained": 1}


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGQUIT])
def test_a_stopped_worker_finishes_nothing(signum: int, tmp_path: Path) -> None:
    """STOP is quick: no hook, no atexit function, no thread is waited for."""
    definitions = "from tests.process.programs.leaving_things import Quick as Hooks"
    with Service(tmp_path, script(definitions, max_children=2, graceful_timeout=60.0)) as service:
        service.wait_ready(2)
        service.signal(signum)
        assert service.wait_exit() == 0
        assert service.wait("ended")["exits"] == {"stopped": 2}
    assert not [fact for fact in service.facts if fact["event"] in ("finished", "worker_stopping")]


@pytest.mark.timed
def test_the_end_has_the_deadline_of_the_drain(tmp_path: Path) -> None:
    """A thread of the program's that never ends: the worker is killed at graceful_timeout, the
    thread named in the log; a hook that raises is logged, and costs nothing else."""
    definitions = """
class Hooks:
    def worker_started(self):
        super().worker_started()
        threading.Thread(target=threading.Event().wait, name="endless").start()
    def worker_draining(self):
        raise RuntimeError("of worker_draining")
"""
    with Service(tmp_path, script(definitions, max_children=1, graceful_timeout=1.0)) as service:
        service.wait_ready(1)
        service.expect("RuntimeError: of worker_draining")
        service.signal(signal.SIGTERM)
        assert service.wait_exit() == 0
        assert service.wait("ended")["exits"] == {"killed": 1}
        assert "waiting for what the program runs in endless" in service.log
        assert "RuntimeError: of worker_draining" in service.log
        assert service.wait("worker_stopping")


HANDED_OVER = "from tests.process.programs.handing_over import Hooks"


@pytest.mark.parametrize("by", ["executor", "thread", "queue"])
def test_requests_in_threads_of_the_program(by: str, tmp_path: Path) -> None:
    """Requests that process_request() gives to threads, executors or a queue of the program's own are finished at a
    drain, before worker_stopping(): those in hand, and those whose finish_request() is still to come."""
    source = script(HANDED_OVER, by=by, max_children=1, graceful_timeout=20.0)
    with Service(tmp_path, source) as service:
        service.wait_ready(1)
        with service.hold() as held, service.connect() as other:
            if by != "queue":  # that has one thread: the second request waits there
                assert int(other.ask(b"pid")) == held.pid
            service.signal(signal.SIGTERM)
            service.wait_pool(lambda pool: pool["draining"] == 1)
            nothing_for(A_WHILE, held.sock)
            assert int(held.ask(b"pid")) == held.pid
            held.close()
            assert int(other.ask(b"pid")) == held.pid
        assert service.wait_exit() == 0
        ended = service.wait("ended")
        finished = service.wait_each("finished", 2)
    assert (ended["exits"], ended["handed_over"], ended["lost"]) == ({"drained": 1}, 2, 0)
    assert [fact["stopped"] for fact in finished] == [False, False]


BADLY = "from tests.process.programs.ending_badly import Handler, Hooks"
HOW = {"leave": ("exited", "no database"), "crash": ("crashed", "Abort: asked to")}


@pytest.mark.parametrize("how", HOW)
def test_an_exception_ends_a_worker_as_it_ends_python(how: str, tmp_path: Path) -> None:
    """SystemExit in a handler, and what ends the loop: threads are joined, atexit functions run, queues are flushed and
    processes ended, the last words are in the log, and the worker is replaced. worker_stopping() is called after
    SystemExit, which is the program's wish, and not after a crash."""
    reason, words = HOW[how]
    with Service(tmp_path, script(BADLY, max_children=1, graceful_timeout=20.0)) as service:
        service.expect(words)
        service.wait_ready(1)
        with service.hold() as held:
            held.send(how.encode())
            held.wait_end()
        service.wait_ready(1, **{reason: 1})
        ended = service.wait("processes")
        assert {fact["kind"] for fact in service.wait_each("finished", 2)} == {"thread", "atexit"}
        assert service.wait("read")["size"] == 300_000
        for pid in ended["pids"]:
            assert not Path(f"/proc/{pid}").exists(), "a process of a worker outlives it"
        assert any(fact["event"] == "worker_stopping" for fact in service.facts) == (how == "leave")
        assert service.statistics()["failed"] == 1
        with service.hold():
            pass
    assert f"{reason} (exit status 1)" in service.log


@pytest.mark.once
def test_a_boot_that_fails_ends_as_python_does(tmp_path: Path) -> None:
    """Where worker_started() raises, its threads are joined and its atexit functions run, once in each worker; three
    such workers end the service, as they do without."""
    definitions = "from tests.process.programs.ending_badly import NeverReady as Hooks"
    with Service(tmp_path, script(definitions, max_children=1, max_restart_delay=0.5)) as service:
        service.expect("(?s)boot_failed.*RuntimeError: no database", "could not start a worker: 3 died")
        assert service.wait_exit() == 1
    workers = [fact["pid"] for fact in service.facts if fact["event"] == "worker_started"]
    assert len(workers) == 3
    finished = [(fact["pid"], fact["kind"]) for fact in service.facts if fact["event"] == "finished"]
    assert finished == [(pid, kind) for pid in workers for kind in ("thread", "atexit")]


@pytest.mark.timed
@pytest.mark.parametrize("how", HOW)
def test_a_failed_worker_has_a_deadline_too(how: str, tmp_path: Path) -> None:
    """With a thread that never ends it is replaced at once, and killed at graceful_timeout; its last words are kept."""
    reason, words = HOW[how]
    definitions = "from tests.process.programs.ending_badly import Endless as Hooks, Handler"
    with Service(tmp_path, script(definitions, max_children=1, graceful_timeout=1.0)) as service:
        service.expect(words)
        service.wait_ready(1)
        with service.hold() as held, Watch(held.pid) as watch:
            held.send(how.encode())
            held.wait_end()
            with service.connect() as other:
                assert int(other.ask(b"pid")) != held.pid
                assert watch.alive() == [held.pid]
            watch.wait_dead()
        service.wait_ready(1, **{reason: 1})
    assert words in service.log
    assert "waiting for what the program runs in endless" in service.log
