"""Reloading and Generations, step by step: what is refused, what is queued, what is told, who leaves when."""

import contextlib
import os
import select
import signal
import socket
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from prefork.commands import Command
from prefork.master.policy import Phase
from prefork.metrics.board import Word
from prefork.reload import reloading
from prefork.reload.handover import Record
from prefork.reload.reloading import WELL, ReloadResult, Stage
from prefork.reload.start_context import START
from prefork.sockets.listener import Listener
from tests.support.programs.simulated_reload import Program, Reloadable
from tests.support.programs.simulation import LIMITS, Simulation

# What is documented, in seconds where the name says so: written out, so that a number cannot change unseen.
STOP_GRACE_S = 1.0
LAST_WORDS_S = 1.0
QUIET_S = 0.03


@pytest.fixture
def pool() -> Iterator[Reloadable]:
    """Two workers, READY."""
    simulation = Reloadable()
    simulation.settle()
    yield simulation
    simulation.close()


def told_by(simulation: Simulation) -> list[ReloadResult]:
    """What is told from now on, by this image."""
    results: list[ReloadResult] = []

    def note(told: ReloadResult | str) -> None:
        if isinstance(told, ReloadResult):
            results.append(told)

    simulation.generations.told = note
    return results


def rehearse(pool: Reloadable, **word: object) -> None:
    assert pool.rehearsal is not None
    pool.rehearsal.say(**word)
    pool.rehearsal.exit()
    pool.turn()


def test_refused_by_name() -> None:
    """Where there is nothing to run again, whoever asks is told why, and nothing is begun."""
    simulation = Simulation()
    told = told_by(simulation)
    simulation.settle()
    simulation.command(Command.RELOAD)
    assert told == [ReloadResult(False, "could not reload: this simulation has one image")]
    assert simulation.generations.stage is Stage.IDLE
    simulation.close()


def test_queued_once(pool: Reloadable) -> None:
    """However often it is asked for during a rehearsal: one more reload, which begins when that one has ended."""
    told = told_by(pool)
    for _ in range(4):
        pool.command(Command.RELOAD)
    rehearse(pool, failed="not yet")
    assert told == [ReloadResult(False, "not yet")]
    pool.advance(0.1)
    rehearse(pool, failed="nor now")
    pool.advance(2.0)
    assert pool.rehearsal is None
    assert [result.reason for result in told] == ["not yet", "nor now"]


def test_queued_over_an_exec(pool: Reloadable) -> None:
    """What was asked for during the rehearsal is made by the next image, when the first generation is gone."""
    pool.command(Command.RELOAD)
    pool.command(Command.RELOAD)
    rehearse(pool, ready=True)
    assert (pool.images, pool.generations.stage) == (2, Stage.WAITING)
    pool.settle()
    pool.advance(0.1)
    rehearse(pool, ready=True)
    pool.settle()
    assert (pool.images, pool.alive) == (3, {3})
    pool.advance(2.0)
    assert pool.rehearsal is None


def test_no_process_for_a_rehearsal(pool: Reloadable) -> None:
    """A fork that the kernel refuses is a failed reload, and the next one is made as ever."""
    told = told_by(pool)
    pool.processes.refuse = True
    pool.command(Command.RELOAD)
    assert [result.reason for result in told] == ["could not start the rehearsal: resource temporarily unavailable"]
    pool.processes.refuse = False
    pool.command(Command.RELOAD)
    rehearse(pool, ready=True)
    assert pool.images == 2


BAD_WORDS = {"none": b"", "half of one": b'{"ready": tr', "no JSON": b"ready\n", "another": b"{}\n"}


@pytest.mark.parametrize("what", BAD_WORDS)
def test_succeeds_by_its_word_only(what: str, pool: Reloadable) -> None:
    """A rehearsal that ends with 0 and has not said that it is ready has failed."""
    told = told_by(pool)
    pool.command(Command.RELOAD)
    assert pool.rehearsal is not None
    os.write(pool.rehearsal.word, BAD_WORDS[what])
    pool.rehearsal.exit(0)
    pool.turn()
    reason = f"the rehearsal ended before its serve_forever() was ready: exit status 0{WELL['exit status 0']}"
    assert told == [ReloadResult(False, reason)]
    assert pool.images == 1


@pytest.mark.parametrize(
    ("last", "words"),
    [
        ("prefork: could not import app: OSError: no", "could not import app: OSError: no"),
        ("prefork.errors.BindError: could not bind :80", "could not bind :80"),
        ("OSError: prefork: no", None),
        ("preforked: no", None),
    ],
)
def test_the_reason_is_what_ended_it(last: str, words: str | None, pool: Reloadable) -> None:
    """An error of ours is a sentence for people: it is the reason, however much the program has printed before it."""
    told = told_by(pool)
    pool.command(Command.RELOAD)
    assert pool.rehearsal is not None
    pool.generations._reloading._output = f"prefork: another\n{last}\n".encode()
    pool.rehearsal.exit(1)
    pool.turn()
    reason = "the rehearsal ended before its serve_forever() was ready: exit status 1"
    (result,) = told
    assert isinstance(result, ReloadResult)
    assert result.reason == (f"{reason}; {words}" if words else reason)


@pytest.mark.parametrize("missing", ["directory", "interpreter"])
def test_an_exec_that_fails(missing: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The directory is the one it was, also where its name is gone, and no descriptor stays inheritable."""
    here = tmp_path / "here"
    here.mkdir()
    monkeypatch.chdir(here)
    here.rmdir()
    where = os.stat(".").st_ino
    monkeypatch.setattr(reloading, "START", START._replace(executable=str(tmp_path / "no python")))
    directory = tmp_path if missing == "interpreter" else tmp_path / "nowhere"
    fd = os.open(os.devnull, os.O_RDONLY)
    try:
        with pytest.raises(FileNotFoundError):
            reloading.execute(Record({"directory": str(directory)}, [fd]), lambda: False)
        assert not os.get_inheritable(fd)
    finally:
        os.close(fd)
    assert os.stat(".").st_ino == where


# Over images.


@pytest.fixture
def told(pool: Reloadable) -> list[bool]:
    """How each reload ended, over all images."""
    results: list[bool] = []

    def listen() -> None:
        def note(result: ReloadResult | str) -> None:
            if isinstance(result, ReloadResult):
                results.append(result.ok)

        pool.generations.told = note

    pool.on_image = listen
    listen()
    return results


def new_image(pool: Reloadable) -> None:
    pool.command(Command.RELOAD)
    rehearse(pool, ready=True)


def spoil(pool: Reloadable) -> None:
    """Let workers die at boot until the pool calls itself degraded."""
    for _ in range(10):
        for process in pool.living(lambda process: not process.ready):
            process.fail_to_boot()
        pool.advance(LIMITS.max_restart_delay)
        if pool.generations.degraded:
            return
    raise AssertionError("it is not degraded")


def test_a_reload(pool: Reloadable, told: list[bool]) -> None:
    """Rehearsal, exec, new workers first; then the old ones leave, one for each that is READY."""
    old = pool.living()
    new_image(pool)
    assert pool.images == 2
    assert told == []
    pool.settle()
    assert not set(old) & set(pool.living())
    assert [pool.born_of[process.pid] for process in pool.living()] == [2, 2]
    assert told == [True]
    assert pool.statistics().generation == 2


def test_a_death_of_the_image_before(pool: Reloadable, told: list[bool]) -> None:
    """A worker of the old code that dies at boot is not held against the new: there is no back-off."""
    pool.living()[0].die()
    pool.turn()
    (late,) = pool.living(lambda process: not process.ready)
    new_image(pool)
    late.fail_to_boot()
    pool.turn()
    assert not pool.supervisor.pool.backing_off
    pool.settle()
    assert told == [True]


def test_a_rehearsal_that_hangs(pool: Reloadable, told: list[bool]) -> None:
    """It is killed at boot_timeout; one that has said its word a second later, and its word counts."""
    pool.command(Command.RELOAD)
    pool.advance(LIMITS.boot_timeout + 0.1)
    assert (pool.rehearsal, told, pool.images) == (None, [False], 1)
    pool.command(Command.RELOAD)
    assert pool.rehearsal is not None
    pool.rehearsal.say(ready=True)
    pool.advance(LAST_WORDS_S - 0.1)
    assert pool.images == 1
    pool.advance(0.2)
    assert pool.images == 2


def test_a_rehearsal_that_cannot_be_killed_at_once(pool: Reloadable, told: list[bool]) -> None:
    """The SIGKILL that the kernel refused is sent again, and the reload ends."""
    pool.command(Command.RELOAD)
    pool.processes.reach = False
    pool.advance(LIMITS.boot_timeout + 1)
    assert (told, pool.images) == ([], 1)
    pool.processes.reach = True
    pool.advance(1.0)
    assert (pool.rehearsal, told, pool.images) == (None, [False], 1)


def test_a_rehearsal_that_cannot_be_read(pool: Reloadable, told: list[bool]) -> None:
    """Its end is the end of the reload, and the next one can be asked for."""
    pool.command(Command.RELOAD)
    pipes = pool.generations._reloading._pipes
    folder = os.open("/", os.O_RDONLY)
    for fd in pipes.values():
        os.dup2(folder, fd)  # read(2) refuses a folder
    os.close(folder)
    for process in pool.processes.all.values():
        if process.rehearsal:
            process.exit()
    pool.turn()
    assert (told, pool.generations.stage) == ([False], Stage.IDLE)
    new_image(pool)
    assert pool.images == 2


def test_a_third_generation_waits(pool: Reloadable, told: list[bool]) -> None:
    """While one of the first is busy the third is not rehearsed; it is when that one was killed at its deadline."""
    busy = pool.living()[0]
    busy.begin()
    new_image(pool)
    pool.settle()
    pool.command(Command.RELOAD)
    assert pool.generations.stage is Stage.WAITING
    pool.advance(LIMITS.graceful_timeout - 1)
    assert (busy.alive, pool.rehearsal) == (True, None)
    pool.advance(1.5)
    assert not busy.alive
    rehearse(pool, ready=True)
    pool.settle()
    assert (pool.images, told) == (3, [True, True])


def test_workers_that_cannot_start(pool: Reloadable, told: list[bool]) -> None:
    """The old ones stay, and whoever asked is told. The next reload begins when no worker of the failed image is left,
    not even one that boots; what is told of it is told once."""
    old = pool.living()
    new_image(pool)
    spoil(pool)
    assert told == [False]
    assert not pool.generations.reloading
    (booting,) = pool.living(lambda process: not process.ready)
    booting.hang()
    pool.command(Command.RELOAD)
    assert pool.rehearsal is None
    pool.advance(STOP_GRACE_S + 0.1)
    assert not booting.alive
    assert pool.living() == old
    rehearse(pool, ready=True)
    pool.settle()
    assert (pool.images, pool.alive, told) == (3, {3}, [False, True])
    assert pool.generations.degraded == ""


def test_workers_of_which_not_all_can_start(pool: Reloadable, told: list[bool]) -> None:
    """Where one of the new ones serves and the others die the reload has failed, not hung; the next mends it."""
    new_image(pool)
    pool.living(lambda process: not process.ready)[0].boot()
    pool.advance(0.1)
    spoil(pool)
    assert told == [False]
    pool.command(Command.RELOAD)
    pool.advance(STOP_GRACE_S + 0.1)
    rehearse(pool, ready=True)
    pool.settle()
    assert (pool.images, pool.alive, told) == (3, {3}, [False, True])


def test_workers_that_start_after_all(pool: Reloadable, told: list[bool]) -> None:
    """Whoever asked was told that it failed, and is not told again; the pool is no longer degraded."""
    new_image(pool)
    spoil(pool)
    pool.settle()
    assert (pool.alive, told) == ({2}, [False])
    assert pool.generations.degraded == ""


@pytest.mark.parametrize("program", [Program.FAILS, Program.IS_GONE])
def test_an_exec_that_comes_to_nothing(program: Program, pool: Reloadable, told: list[bool]) -> None:
    """The same workers serve on, and the next reload is as good as the first."""
    old = pool.living()
    pool.program = program
    new_image(pool)
    pool.advance(5.0)
    assert pool.living() == old
    assert pool.statistics().reloads == {"ok": 0, "failed": 1}
    pool.program = Program.WORKS
    new_image(pool)
    pool.settle()
    assert told[-1]
    assert not set(old) & set(pool.living())


@pytest.mark.parametrize("stop", [Command.DRAIN, Command.STOP])
def test_the_end_cancels_a_reload(stop: Command, pool: Reloadable, told: list[bool]) -> None:
    """Waiting, rehearsing, rehearsed or new: told that it failed, and nothing is started any more."""
    pool.command(Command.RELOAD)
    for command in (stop, Command.RELOAD):
        pool.supervisor.mailbox.post(command)
    pool.turn()
    pool.advance(LIMITS.graceful_timeout + 1)
    assert (pool.phase, pool.images, told) == (Phase.STOPPED, 1, [False])


def test_what_is_asked_during_the_exec(pool: Reloadable, told: list[bool]) -> None:
    """It is obeyed in the new image's first turn: TERM ends it before it has started anybody."""
    pool.meanwhile, pool.takes_s = [Command.DRAIN], 2.0
    new_image(pool)
    pool.advance(LIMITS.graceful_timeout + 1)
    assert (pool.phase, pool.images, told) == (Phase.STOPPED, 2, [False])
    assert pool.statistics().spawned == 2


def test_what_is_asked_while_the_record_is_made(pool: Reloadable, told: list[bool]) -> None:
    """A thread of the program needs no signal to end the service: it is obeyed, and there is no exec."""
    pack = pool._pack

    def packed(record: Record) -> None:
        pack(record)
        if pool.rehearsal is None:
            pool.supervisor.mailbox.post(Command.DRAIN)

    pool.generations._pack = packed
    pool.command(Command.RELOAD)
    rehearse(pool, ready=True)
    pool.advance(LIMITS.graceful_timeout + 1)
    assert (pool.phase, pool.images, told) == (Phase.STOPPED, 1, [False])


def test_a_pool_that_has_grown() -> None:
    """What it has grown to is the next image's to begin with, also after one that had no program."""
    pool = Reloadable(LIMITS._replace(min_children=1, max_children=6))
    pool.supervisor.pool = pool.supervisor.pool._replace(target=4)
    pool.settle()
    old = pool.living()
    pool.program = Program.FAILS
    new_image(pool)
    pool.advance(1.0)
    pool.program = Program.WORKS
    new_image(pool)
    pool.settle()
    assert (len(old), len(pool.living())) == (4, 4)
    assert not set(old) & set(pool.living())
    pool.close()


def test_what_the_master_knows_without_its_program() -> None:
    """Every limit that still means something where no worker is started is as it was, also in the image after next."""
    limits = LIMITS._replace(
        boot_timeout=11.0, graceful_timeout=12.0, request_timeout=13.0, slow_request_timeout=14.0,
        drain_delay=15.0, stall_timeout=16.0, hang_up=True,
    )  # fmt: skip
    pool = Reloadable(limits)
    pool.settle()
    pool.program = Program.FAILS
    for _ in range(2):
        new_image(pool)
        found = pool.supervisor.limits
        assert found == limits._replace(min_children=LIMITS.max_children, max_restart_delay=found.max_restart_delay)
    pool.close()


# An address that the program no longer asks for.


def test_who_queues_at_the_old_address_is_served_first(pool: Reloadable) -> None:
    """The old generation stays whole until nobody has been queued there for a while; then it is closed for good."""
    with socket.create_server(("127.0.0.1", 0)) as ours, contextlib.ExitStack() as clients:
        listener = Listener.adopt(ours)
        pool.generations._left = [listener]
        for now, comes in ((1.0, True), (1.029, False), (1.05, True), (1.06, False), (1.079, False)):
            if comes:
                clients.enter_context(socket.create_connection(listener.getsockname()))
            assert pool.generations.wanted(now) == 0
            if comes:
                listener.accept()[0].close()
        assert pool.generations.wanted(1.081) == pool.generations.current == 1
        assert listener.fileno() == -1
        assert pool.generations.wanted(1.081) == 1


def test_an_old_address_where_nobody_queues(pool: Reloadable) -> None:
    """It is looked at three times in the while that it stays, so that the end of that is not missed."""
    listener = Listener.adopt(socket.create_server(("127.0.0.1", 0)))
    pool.generations._left = [listener]
    assert pool.generations.turn(0.5, 0, "") == pytest.approx(0.5 + QUIET_S / 3)
    for now, generation in ((0.5, 0), (0.529, 0), (0.531, 1)):
        assert pool.generations.wanted(now) == generation
    assert pool.generations.turn(2.0, 0, "") == float("inf")


def test_a_new_image_has_the_mask_of_this_one(pool: Reloadable) -> None:
    """Nothing is added to the record after it has been handed on."""
    masks: list[object] = []
    execute = pool.generations._execute

    def note(record: Record, asked: Callable[[], bool]) -> None:
        masks.append(record.values.get("mask"))
        execute(record, asked)

    pool.generations._execute = note
    new_image(pool)
    assert masks == [sorted(signal.pthread_sigmask(signal.SIG_BLOCK, ()))]


def test_a_pipe_that_a_child_has_a_copy_of(pool: Reloadable) -> None:
    """Once a rehearsal has ended the master does not wake up for it any more, whoever holds its pipes."""
    pool.command(Command.RELOAD)
    copies = [os.dup(fd) for fd in pool.generations._reloading._pipes.values()]
    assert copies
    rehearse(pool, failed="not yet")
    pool.advance(1.0)
    assert select.select([pool.supervisor.fileno()], [], [], 0)[0] == []
    for fd in copies:
        os.close(fd)


def test_a_reload_is_one_until_it_is_told(pool: Reloadable, told: list[bool]) -> None:
    """Through the rehearsal, the exec and the boot of the new workers."""
    seen = [pool.generations.reloading]
    pool.command(Command.RELOAD)
    seen.append(pool.generations.reloading)
    rehearse(pool, ready=True)
    seen.append(pool.generations.reloading)
    pool.settle()
    pool.advance(1.0)
    assert [*seen, pool.generations.reloading] == [False, True, True, False]
    assert told == [True]


def test_an_end_that_comes_while_it_arrives(pool: Reloadable) -> None:
    """What is lent is then its own: nobody takes it back."""
    results = told_by(pool)
    pool.generations._arriving = pool.generations._owed = True
    pool.generations.cancel()
    assert not pool.generations._arriving
    assert not pool.generations.reloading
    assert [result.ok for result in results] == [False]


def test_a_new_child_lets_go(pool: Reloadable, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of the rehearsal's descriptors, and of what an earlier program has left."""
    forgotten: list[str] = []
    monkeypatch.setattr(pool.generations._reloading, "forget", lambda: forgotten.append("reloading"))
    monkeypatch.setattr(pool.generations._left_over, "forget", lambda: forgotten.append("left over"))
    pool.generations.forget()
    assert forgotten == ["reloading", "left over"]


def test_when_a_reload_ended(pool: Reloadable, monkeypatch: pytest.MonkeyPatch) -> None:
    """Is on the board, with how."""
    monkeypatch.setattr("prefork.reload.generations.time_ns", lambda: 77)
    words = pool.generations._board.words
    for ok, word in ((True, Word.RELOADS_OK), (False, Word.RELOADS_FAILED)):
        words[Word.LAST_RELOAD_AT_NS], words[Word.LAST_RELOAD_OK], before = 0, not ok, words[word]
        pool.generations._count(ok)
        assert (words[word], words[Word.LAST_RELOAD_OK], words[Word.LAST_RELOAD_AT_NS]) == (before + 1, ok, 77)
