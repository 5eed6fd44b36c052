"""What the verbs of the control socket wait for: a place in the queue of reloads, and stacks that do not come."""

import signal
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest

from prefork.commands import BY_VERB, Command
from prefork.control import protocol, verbs
from prefork.control.connection import Peer
from prefork.control.protocol import Request
from prefork.control.verbs import PlaceInQueue, Verbs, Work
from prefork.master.policy import Phase
from prefork.metrics.scoreboard import LOG_FOLLOWED, LOG_KEPT
from prefork.reload.reloading import ReloadResult, Stage
from prefork.workers import sinks
from tests.support.programs.simulation import Simulation

STACKS_WITHIN_S, TOLD_MAX = 3.0, 256
PEER = Peer(4711, 0)


class Reloads:
    """A master that reloads when the test says so."""

    def __init__(self) -> None:
        self.asked: list[Command] = []
        generations: Any = SimpleNamespace(told=None, reloading=False, degraded="", stage=Stage.IDLE)
        supervisor: Any = SimpleNamespace(obey=self.asked.append, phase=Phase.RUNNING)
        self.verbs, self.generations = Verbs(supervisor, generations), generations

    def tell(self, *told: ReloadResult | str) -> None:
        for each in told:
            self.generations.told(each)

    def wait(self, skip: int | None = 0, *, asked: bool = False) -> Work:
        """A client that waits, so far as it was told at once."""
        work = self.verbs.reload(PlaceInQueue(skip), asked=asked)
        assert next(work) is None
        return work


@pytest.fixture
def reloads() -> Reloads:
    return Reloads()


def answer(work: Work) -> dict[str, Any]:
    """The answer, which comes now."""
    with pytest.raises(StopIteration) as ended:
        next(work)
    found: dict[str, Any] = ended.value.value
    return found


DONE, FAILED = ReloadResult(True, "generation 2 is in service"), ReloadResult(False, "no database", "Traceback")


def test_a_reload_is_asked_for_once(reloads: Reloads) -> None:
    """Progress comes as it is told, then the result, with what the program printed where it failed."""
    work = reloads.wait()
    assert reloads.asked == [Command.RELOAD]
    assert next(work) is None
    reloads.tell("one", "two")
    assert [next(work), next(work), next(work)] == ["one", "two", None]
    reloads.tell(DONE)
    assert answer(work) == {"ok": True, "result": {"reason": "generation 2 is in service"}}
    work = reloads.wait()
    reloads.tell(FAILED)
    assert answer(work) == {"ok": False, "error": "no database", "output": "Traceback"}
    assert reloads.asked == [Command.RELOAD] * 2


def test_what_was_told_before_is_not_for_me(reloads: Reloads) -> None:
    """Nor is the result of reloads that began before mine: so many are skipped, and each is said."""
    reloads.tell("old", DONE)
    work = reloads.wait(skip=2)
    assert next(work) is None
    reloads.tell(DONE, "between", FAILED, DONE)
    earlier = "an earlier reload has ended; this one begins"
    assert [next(work), next(work), next(work)] == [earlier, "between", earlier]
    assert answer(work)["ok"]


def test_a_reload_that_cannot_begin_yet(reloads: Reloads) -> None:
    """Is said at once."""
    work = reloads.verbs.reload(PlaceInQueue(0))
    assert next(work) is None
    reloads.generations.stage = Stage.WAITING
    assert str(next(work)).startswith("waiting: two generations live")


def test_who_is_slow_misses_the_oldest(reloads: Reloads) -> None:
    """So many lines are kept, for all clients; nobody is told one twice or out of its order."""
    work = reloads.wait()
    reloads.tell(*(str(number) for number in range(TOLD_MAX + 44)))
    heard = [next(work) for _ in range(TOLD_MAX)]
    assert heard == [str(number) for number in range(44, TOLD_MAX + 44)]
    reloads.tell("more")
    assert next(work) == "more"
    other = reloads.wait()
    reloads.tell("most")
    assert (next(work), next(other), next(work)) == ("most", "most", None)


@pytest.mark.parametrize(("degraded", "reloading", "asked", "waits"), [
    ("", False, True, True), ("no database", False, True, False), ("no database", True, True, True),
    ("no database", False, False, True),
])  # fmt: skip
def test_a_client_of_the_image_before(
    degraded: str, reloading: bool, asked: bool, waits: bool, reloads: Reloads
) -> None:
    """Is told what became of its reload where that is over; who asks a degraded master asks for another reload."""
    reloads.generations.degraded, reloads.generations.reloading = degraded, reloading
    work = reloads.verbs.reload(PlaceInQueue(0), asked=asked)
    if waits:
        assert next(work) is None
        reloads.tell(DONE)
        assert answer(work)["ok"]
    else:
        assert answer(work)["error"] == "no database"
    assert reloads.asked == ([] if asked else [Command.RELOAD])


@pytest.mark.parametrize(("reloading", "stage", "skip"), [
    (False, Stage.IDLE, 0), (True, Stage.REHEARSING, 1), (True, Stage.WAITING, 0), (False, Stage.REHEARSING, 0),
])  # fmt: skip
def test_the_place_in_the_queue(reloading: bool, stage: Stage, skip: int, reloads: Reloads) -> None:
    """One that runs is before mine; one that waits is the same as mine."""
    reloads.generations.reloading, reloads.generations.stage = reloading, stage
    place = PlaceInQueue()
    reloads.verbs.answer(Request(BY_VERB["reload"], None), PEER, place)
    assert place.skip == skip


# Stacks.


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def pool(monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[Simulation, Verbs, Clock]]:
    """Two workers that serve, and their verbs; the second is stopped."""
    clock = Clock()
    monkeypatch.setattr(verbs, "monotonic", clock)
    pool = Simulation()
    pool.settle()
    pool.living()[1].receive(signal.SIGSTOP)
    yield pool, Verbs(pool.supervisor, pool.generations), clock
    pool.close()


def stacks(found: Verbs, slot: int | None = None) -> Any:
    return found.answer(Request(BY_VERB["stacks"], slot), PEER, PlaceInQueue())


def test_one_that_does_not_answer(pool: tuple[Simulation, Verbs, Clock]) -> None:
    """It is waited for for three seconds; the others' are there then too."""
    simulation, found, clock = pool
    work = stacks(found)
    for moment in (0.0, 0.1, 2.99):
        clock.now = 100.0 + moment
        assert next(work) is None
        simulation.advance(2.0)
    clock.now = 100.0 + STACKS_WITHIN_S
    one, other = answer(work)["result"]["workers"]
    assert "Current thread" in one["stacks"]
    assert (other["slot"], other["stacks"]) == (2, "it does not answer; is it stopped?")
    assert not any(child.stacks_wanted or child.stacks_text for child in simulation.supervisor.table)


def test_one_that_has_ended_is_not_waited_for(pool: tuple[Simulation, Verbs, Clock]) -> None:
    """It is said of it."""
    simulation, found, _ = pool
    work = stacks(found, 2)
    assert next(work) is None
    simulation.living()[1].die()
    simulation.advance(2.0)
    (only,) = answer(work)["result"]["workers"]
    assert (only["slot"], only["stacks"]) == (2, "it has ended")


def test_all_that_answer_are_all(pool: tuple[Simulation, Verbs, Clock]) -> None:
    """One that is asked for by its number is waited for alone."""
    simulation, found, _ = pool
    work = stacks(found, 1)
    assert next(work) is None
    simulation.advance(2.0)
    (only,) = answer(work)["result"]["workers"]
    assert (only["slot"], only["pid"]) == (1, simulation.living()[0].pid)
    assert "Current thread" in only["stacks"]
    assert answer(stacks(found, 3)) == protocol.error("could not get stacks: there is no worker 3")


def test_one_worker_is_replaced(pool: tuple[Simulation, Verbs, Clock]) -> None:
    """The one that was named, and no other."""
    simulation, found, _ = pool
    first, second = simulation.living()
    work: Any = found.answer(Request(BY_VERB["restart"], 1), PEER, PlaceInQueue())
    assert next(work) is None
    simulation.advance(0.5)
    simulation.living()[-1].boot()
    simulation.advance(0.5)
    assert answer(work) == {"ok": True, "result": {"replaced": 1}}
    assert (first.alive, second.alive) == (False, True)


# By the name of a companion.


@pytest.fixture
def accompanied() -> Iterator[tuple[Simulation, Verbs]]:
    """A pool with two companions that run, and its verbs."""
    simulation = Simulation(companions=("one", "two"))
    simulation.settle()
    simulation.advance(0.05)
    for companion in simulation.companions():
        companion.boot()
    simulation.turn()
    yield simulation, Verbs(simulation.supervisor, simulation.generations)
    simulation.close()


def named(found: Verbs, verb: str, name: str) -> Any:
    return found.answer(Request(BY_VERB[verb], name), PEER, PlaceInQueue())


def test_a_companion_is_replaced(accompanied: tuple[Simulation, Verbs]) -> None:
    """The one that was named, and no other; the answer comes when the next one runs, which starts when it has gone."""
    simulation, found = accompanied
    one, two = simulation.companions()
    one.hang()
    work = named(found, "restart", "one")
    assert next(work) is None
    simulation.advance(4.9)
    assert next(work) is None
    assert simulation.companions() == [one, two]
    simulation.advance(0.2)
    assert (one.alive, two.alive, two.told) == (False, True, [])
    assert next(work) is None
    simulation.companions()[-1].boot()
    simulation.turn()
    assert answer(work) == protocol.result({"companion": "one", "pid": simulation.companions()[-1].pid})


def test_one_in_back_off_is_started_now(accompanied: tuple[Simulation, Verbs]) -> None:
    """And where it ends again before it is seen to run, that is said."""
    simulation, found = accompanied
    simulation.companions()[0].exit(1)
    simulation.advance(0.1)
    assert len(simulation.companions()) == 1
    work = named(found, "restart", "one")
    assert next(work) is None
    simulation.advance(0.05)
    _, again = simulation.companions()
    again.exit(1)
    simulation.advance(0.05)
    assert answer(work)["error"] == "could not restart: companion one has ended again; the log says how"


def test_a_companion_that_there_is_not(accompanied: tuple[Simulation, Verbs]) -> None:
    """Is refused in a sentence that names those that there are."""
    _, found = accompanied
    for verb, begins in (("restart", "could not restart"), ("stacks", "could not get stacks")):
        said = answer(named(found, verb, "thr\nee"))["error"]
        assert said == f"{begins}: there is no companion thr\\nee; this service has one, two"


def test_no_companion_at_all(pool: tuple[Simulation, Verbs, Clock]) -> None:
    """A service without any says so."""
    said = answer(named(pool[1], "restart", "one"))["error"]
    assert said == "could not restart: there is no companion one; this service has none"


def test_stacks_of_a_companion(accompanied: tuple[Simulation, Verbs]) -> None:
    """Of the one that was named alone."""
    simulation, found = accompanied
    work = named(found, "stacks", "two")
    assert next(work) is None
    simulation.advance(1.0)
    result = answer(work)["result"]
    assert result["workers"] == []
    assert [each["name"] for each in result["companions"]] == ["two"]


def test_a_restart_that_could_not_end(accompanied: tuple[Simulation, Verbs]) -> None:
    """It is refused at the end of the service; and where no worker of its code is ready the old one stays, since the
    next could not be started."""
    simulation, found = accompanied
    work = named(found, "restart", "one")
    assert next(work) is None
    for worker in simulation.living():
        worker.die()
    simulation.advance(0.1)
    before = simulation.companions()
    assert len(before) == 2
    simulation.command(Command.DRAIN)
    assert answer(work)["error"] == "could not restart: the service is about to end"


def test_a_degraded_master_restarts_nobody(pool: tuple[Simulation, Verbs, Clock]) -> None:
    """It has no program to start anybody from, and says so at once."""
    simulation, found, _ = pool
    simulation.supervisor.service = simulation.supervisor.service._replace(work=None)
    why = simulation.generations.degraded = "the program failed: no database"
    for which in (None, 1, "one"):
        said = found.answer(Request(BY_VERB["restart"], which), PEER, PlaceInQueue())
        assert said == protocol.error(f"could not restart: there is no program to start; {why}")


def test_a_log_that_is_reopened(pool: tuple[Simulation, Verbs, Clock], monkeypatch: pytest.MonkeyPatch) -> None:
    """By the master, and by each process that has said so within a second; those that have not are named."""
    simulation, found, clock = pool
    monkeypatch.setattr(simulation.supervisor, "reopen", lambda: "")
    monkeypatch.setattr(sinks, "installed", lambda: SimpleNamespace(sink=SimpleNamespace(number=5)))
    first, second = simulation.living()
    work = found.answer(Request(BY_VERB["reopen"], None), PEER, PlaceInQueue())
    assert not isinstance(work, dict)
    assert next(work) is None
    first.slot.words[LOG_FOLLOWED] = 5
    clock.now += 0.99
    assert next(work) is None
    clock.now += 0.01
    result = answer(work)["result"]
    assert result["reopened"] == "reopened by 2 of 3 processes"
    assert [f"pid={second.pid}" in late for late in result["late"]] == [True]


def test_a_log_that_is_kept(pool: tuple[Simulation, Verbs, Clock], monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever had to go on in the old file is said to be; so is why the master could not."""
    simulation, found, clock = pool
    why_not = ["no such directory", ""]
    monkeypatch.setattr(simulation.supervisor, "reopen", lambda: why_not.pop(0))
    monkeypatch.setattr(sinks, "installed", lambda: SimpleNamespace(sink=SimpleNamespace(number=5)))
    first, second = simulation.living()
    first.slot.words[LOG_FOLLOWED] = second.slot.words[LOG_KEPT] = 5

    def reopen() -> Work:
        work = found.answer(Request(BY_VERB["reopen"], None), PEER, PlaceInQueue())
        assert not isinstance(work, dict)
        return work

    assert answer(reopen()) == protocol.error("no such directory")
    work = reopen()
    assert next(work) is None
    clock.now += 1.0
    assert answer(work)["error"].startswith("reopened by 2 of 3 processes; going on in the old log file: worker slot=2")


def test_stacks_of_nobody() -> None:
    """Where there is no process there are none."""
    simulation = Simulation()
    result = answer(stacks(Verbs(simulation.supervisor, simulation.generations)))["result"]
    assert result == {"workers": [], "companions": []}
    simulation.close()


def test_one_that_is_slow_to_start_again(accompanied: tuple[Simulation, Verbs]) -> None:
    """Is waited for, though it has ended before."""
    simulation, found = accompanied
    simulation.companions()[0].exit(1)
    simulation.advance(1.0)
    assert len(simulation.companions()) == 2
    work = named(found, "restart", "one")
    assert next(work) is None
    assert next(work) is None
