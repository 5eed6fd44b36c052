"""Policy: each invariant of its docstring under Hypothesis, then the decisions one by one. No process, no clock."""

from typing import Any

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from prefork.master import policy
from prefork.master.children import ChildState
from prefork.master.policy import (
    NO_POOL,
    ChildView,
    CompanionView,
    Limits,
    Phase,
    Plan,
    Pool,
    PoolSnapshot,
    after_boot_death,
    after_fork_failure,
    after_ready,
    hopeless,
    plan,
)
from prefork.master.queue_watch import QueueWatch, Unmoved
from prefork.metrics.facts import ChildKind, ExitReason
from tests.support.programs.simulation import LIMITS

pytestmark = pytest.mark.once  # nothing of it is the interpreter's

# What is documented, in seconds where the name says so: written out, so that a number cannot change unseen.
BOOT_DEATHS_MAX = 3
CUT_KILL_S = 0.3
CUT_TERM_S = 0.2
FIRST_RESTART_DELAY_S = 0.5
FORK_RETRY_S = 0.5
QUIET_S = 0.03
RESIZE_EVERY_S = 1.0
ROUSE_S = 1.0
SPAWN_BURST_MAX = 32
STOP_GRACE_S = 1.0
TICK_S = 1.0

NOW = 1000.0
GENERATION = 3
RUNNING = (Phase.STARTING, Phase.RUNNING)
ORDER = list(Phase)
CUT = (ExitReason.TIMEOUT, ExitReason.STALLED)

moments = st.sampled_from([NOW - 100, NOW - 10, NOW - 3, NOW - 1, NOW - 0.3, NOW - 0.01, NOW])
unmoved = st.builds(Unmoved, st.integers(1, 9), st.integers(0, 3), moments, st.booleans())
cuts = st.sampled_from([None, None, NOW - 1, NOW - 0.25, NOW - 0.1])
later = st.sampled_from([NOW - 1, NOW, NOW + 0.005, NOW + 0.5, NOW + 3, NOW + 100])


@st.composite
def children(draw: st.DrawFn, serial: int) -> ChildView:
    """Any that the supervisor can see: what contradicts itself is left out, what is unlikely is not."""
    state = draw(st.sampled_from(list(ChildState)[:5]))
    kind = draw(st.sampled_from([ChildKind.WORKER] * 8 + [ChildKind.EXPORTER, ChildKind.COMPANION, ChildKind.HOLDER]))
    told = state in (ChildState.DRAINING, ChildState.STOPPING, ChildState.KILLING)
    lanes = 0 if kind is ChildKind.COMPANION else draw(st.sampled_from([1, 1, 3]))
    busy = [] if state is ChildState.STARTING or not lanes else draw(st.lists(moments, max_size=lanes))
    reasons = [ExitReason.DRAINED, ExitReason.REPLACED, ExitReason.STOPPED]
    return ChildView(
        serial, kind, state, draw(st.sampled_from([GENERATION] * 3 + [GENERATION - 1])),
        started=draw(moments), told=draw(moments) if told else 0.0,
        deadline=draw(later) if told else None,
        due=draw(st.sampled_from([None, None, None, ExitReason.MAX_REQUESTS, ExitReason.MAX_LIFETIME])),
        lanes=lanes, busy_since=tuple(busy), accepted=draw(st.integers(0, 3)), tried_ns=draw(st.integers(0, 3)),
        cut_at=None if state is ChildState.STARTING or not lanes else draw(cuts),
        cut_for=ExitReason.TIMEOUT if busy else ExitReason.STALLED, moved=draw(st.booleans()),
        reason=draw(st.sampled_from(reasons)) if told else None,
        name=f"c{serial}" if kind is ChildKind.COMPANION else "",
    )  # fmt: skip


@st.composite
def limits(draw: st.DrawFn) -> Limits:
    most = draw(st.integers(1, 6))
    return LIMITS._replace(
        max_children=most, min_children=draw(st.integers(1, most)),
        min_spare_children=draw(st.sampled_from([None, 1, 2])), max_spare_children=draw(st.sampled_from([None, 2, 4])),
        request_timeout=draw(st.sampled_from([None, 2.0])), slow_request_timeout=draw(st.sampled_from([None, 0.2])),
        drain_delay=draw(st.sampled_from([0.0, 0.0, 5.0])), hang_up=draw(st.booleans()),
        stall_timeout=draw(st.sampled_from([None, 5.0])),
    )  # fmt: skip


@st.composite
def snapshots(draw: st.DrawFn, phases: Any = tuple(Phase)) -> PoolSnapshot:
    pool = Pool(
        target=draw(st.integers(0, 6)), ever_ready=draw(st.booleans()), boot_deaths=draw(st.sampled_from([0, 0, 1, 4])),
        next_start=draw(later), burst=draw(st.sampled_from([1, 2, 8])), next_resize=draw(later),
        queue=QueueWatch(
            tuple(draw(st.lists(unmoved, max_size=3))), accepted=draw(st.integers(0, 9)),
            untaken_since=draw(st.sampled_from([None, NOW - 10, NOW - 1])),
        ),
    )  # fmt: skip
    count = draw(st.integers(0, 9))
    return PoolSnapshot(
        draw(st.sampled_from(list(phases))), draw(moments), GENERATION,
        tuple(draw(children(serial)) for serial in range(1, count + 1)), pool, queued=draw(st.booleans()),
        queued_at=draw(moments), saturated=draw(st.booleans()),
        companions=tuple(CompanionView(f"c{number}", draw(later)) for number in range(1, draw(st.integers(1, 9)))),
    )  # fmt: skip


def serving(snapshot: PoolSnapshot) -> list[ChildView]:
    return [child for child in snapshot.children if child.serving]


def leaves(child: ChildView, snapshot: PoolSnapshot) -> bool:
    return child.ready and (child.due is not None or child.generation < snapshot.generation)


def uncut(snapshot: PoolSnapshot, result: Plan) -> list[ChildView]:
    """The workers that are drained, but not for a request over its time, nor for being stuck."""
    reasons = {serial: why for serial, why in result.drain if why not in CUT}
    return [child for child in snapshot.children if child.serial in reasons and not child.is_companion]


# The invariants, by name.


@given(snapshots(), limits())
def test_never_over_max(snapshot: PoolSnapshot, limits: Limits) -> None:
    """Serving never exceeds max_children, plus one that exists only for a replacement."""
    result = plan(snapshot, limits, NOW)
    assert result.pool.target <= limits.max_children or snapshot.phase not in RUNNING
    if result.spawn:
        now = serving(snapshot)
        if len(now) + result.spawn > limits.max_children:
            assert len(now) + result.spawn == limits.max_children + 1
            assert any(leaves(child, snapshot) for child in now)
            assert all(child.ready for child in now)


@given(snapshots(RUNNING), limits())
def test_draining_is_bounded(snapshot: PoolSnapshot, limits: Limits) -> None:
    """No drain is begun that makes more than max_children DRAINING, a cut request excepted."""
    begun = len(uncut(snapshot, plan(snapshot, limits, NOW)))
    draining = sum(
        child.state in (ChildState.DRAINING, ChildState.STOPPING)
        for child in snapshot.children
        if not child.is_companion
    )
    assert begun == 0 or draining + begun <= limits.max_children


@given(snapshots(RUNNING), limits())
def test_replacement_is_ready(snapshot: PoolSnapshot, limits: Limits) -> None:
    """A healthy READY worker is drained only while enough others are READY."""
    result = plan(snapshot, limits, NOW)
    ready = sum(child.ready for child in snapshot.children)
    drained = uncut(snapshot, result)
    assert all(child.ready for child in drained)
    assert not drained or ready - len(drained) >= result.pool.target >= 1


@given(snapshots(), limits())
def test_backoff_is_single_file(snapshot: PoolSnapshot, limits: Limits) -> None:
    """In back-off at most one child is STARTING, and none is started before its time; nor after a failed fork."""
    result = plan(snapshot, limits, NOW)
    if result.spawn:
        assert snapshot.pool.next_start <= NOW
        if snapshot.pool.backing_off:
            assert result.spawn == 1
            assert not any(child.serving and not child.ready for child in snapshot.children)


@given(snapshots([Phase.DRAINING, Phase.STOPPING, Phase.STOPPED]), limits())
def test_stop_wins(snapshot: PoolSnapshot, limits: Limits) -> None:
    """After STOP, and after DRAIN and its drain_delay, nothing is started but a worker for a queue that has none any
    more; no phase goes back; everybody is told."""
    result = plan(snapshot, limits, NOW)
    kinds = (ChildKind.WORKER, ChildKind.COMPANION, ChildKind.HOLDER)
    workers = [child for child in snapshot.children if child.kind in kinds]
    assert ORDER.index(result.phase) >= ORDER.index(snapshot.phase)
    if snapshot.phase is Phase.DRAINING and limits.drain_delay and snapshot.pool.ever_ready:
        assume(snapshot.phase_since + limits.drain_delay <= NOW)
    forsaken = snapshot.phase is Phase.DRAINING and snapshot.queued and not any(child.ready for child in workers)
    assert result.spawn in ((0, 1) if forsaken else (0,))
    assert result.companions == ()
    if not (forsaken and all(child.kind is ChildKind.HOLDER for child in workers)):
        assert (result.phase is Phase.STOPPED) == (snapshot.phase is Phase.STOPPED or not workers)
    if result.phase is Phase.STOPPING:
        told = {child.serial for child in workers if child.state in (ChildState.STOPPING, ChildState.KILLING)}
        assert set(result.stop) | told == {child.serial for child in workers}


@given(snapshots(), limits())
def test_deadline_kills(snapshot: PoolSnapshot, limits: Limits) -> None:
    """A child past its deadline is killed, in whatever phase, once; one that is within it is not."""
    killed = set(plan(snapshot, limits, NOW).kill)
    for child in snapshot.children:
        over = child.deadline is not None and child.deadline <= NOW
        booting = child.kind in (ChildKind.WORKER, ChildKind.COMPANION) and child.state is ChildState.STARTING
        over |= booting and child.started + limits.boot_timeout <= NOW
        cut = child.cut_at is not None and child.cut_at + CUT_KILL_S <= NOW
        since = child.busy_since
        late = limits.request_timeout is not None and bool(since) and all(each + 2.0 <= NOW for each in since)
        over |= cut and (not child.moved if child.cut_for is ExitReason.STALLED else late)
        assert (child.serial in killed) == (over and child.state is not ChildState.KILLING)


@given(snapshots(), limits())
def test_companion_is_alone(snapshot: PoolSnapshot, limits: Limits) -> None:
    """A companion is started, in its time, only where no process of its name lives, beside a READY worker of the wanted
    generation; an old one is drained once no older worker serves, and at the end when no worker is left, or at half."""
    result = plan(snapshot, limits, NOW)
    companions = {child.name: child for child in snapshot.children if child.is_companion}
    views = {view.name: view for view in snapshot.companions}
    current = [child for child in snapshot.children if child.ready and child.generation == GENERATION]
    for name in result.companions:
        assert name not in companions
        assert views[name].next_start <= NOW
        assert current
    if current and result.phase in RUNNING:
        due = {name for name, view in views.items() if view.next_start <= NOW}
        assert set(result.companions) == due - set(companions)
    told = [child for child in companions.values() if child.serial in dict(result.drain)]
    old = any(child.generation < GENERATION for child in serving(snapshot))
    if result.phase in RUNNING:
        unasked = [child for child in told if child.due is None]
        assert not unasked or (not old and current)
        assert all(child.generation < GENERATION for child in unasked)
        assert all(child.staying for child in told)
        if current and not old:
            assert all(
                child in told for child in companions.values() if child.generation < GENERATION and child.staying
            )
    elif told and not (limits.drain_delay and snapshot.phase_since + limits.drain_delay > NOW):
        passed = NOW - snapshot.phase_since - (limits.drain_delay if snapshot.pool.ever_ready else 0)
        workers = [child for child in snapshot.children if child.kind is ChildKind.WORKER]
        assert not workers or passed >= limits.graceful_timeout / 2


@given(snapshots(), limits(), st.floats(0.001, 0.999))
def test_wakes_in_time(snapshot: PoolSnapshot, limits: Limits, part: float) -> None:
    """`wake_at` is later than now, never later than the next deadline, and nothing new is due before it."""
    first = plan(snapshot, limits, NOW)
    assert NOW < first.wake_at <= NOW + TICK_S
    snapshot = snapshot._replace(pool=first.pool, phase=first.phase)
    between = plan(snapshot, limits, NOW + (first.wake_at - NOW) * part)
    assert between.kill == first.kill
    assert between.stop == first.stop
    assert between.dump == first.dump
    assert set(between.stuck) <= set(first.stuck)
    assert between.slow == first.slow
    assert set(between.remind) == set(first.remind)
    assert set(between.rouse) == set(first.rouse)
    assert set(between.companions) <= set(first.companions)
    cut = [{serial for serial, why in p.drain if why in CUT} for p in (first, between)]
    assert cut[0] == cut[1]
    if first.phase not in RUNNING:
        assert {serial for serial, _ in between.drain} == {serial for serial, _ in first.drain}
        assert between.phase is first.phase
    if limits.min_children == limits.max_children:
        assert between.spawn == first.spawn


@given(snapshots(), limits())
def test_who_was_told_and_is_still_there_is_roused(snapshot: PoolSnapshot, limits: Limits) -> None:
    """Each child that drains, a second after it was told, in every phase; and nobody else."""
    told = [c for c in snapshot.children if c.state is ChildState.DRAINING and c.reason is not None]
    late = [c.serial for c in told if c.told <= NOW - ROUSE_S]
    assert list(plan(snapshot, limits, NOW).rouse) == late


@given(snapshots(RUNNING))
def test_a_plain_server_is_left_alone(snapshot: PoolSnapshot) -> None:
    """Without a pool nothing is started or drained, and there is no request_timeout."""
    assume(all(child.cut_at is None for child in snapshot.children))
    result = plan(snapshot, NO_POOL, NOW)
    assert (result.spawn, result.drain, result.stop, result.poke) == (0, (), (), ())


# Decisions, one by one.


def worker(serial: int, state: ChildState = ChildState.READY, **values: Any) -> ChildView:
    return ChildView(serial, ChildKind.WORKER, state, **{"generation": 1, "started": 0.0, **values})


def seen(*children: ChildView, phase: Phase = Phase.RUNNING, generation: int = 1, **values: Any) -> PoolSnapshot:
    pool = values.pop("pool", Pool(ever_ready=True))
    return PoolSnapshot(phase, values.pop("phase_since", NOW), generation, children, pool, **values)


def drained(snapshot: PoolSnapshot, limits: Limits, now: float = NOW) -> dict[int, ExitReason]:
    return dict(plan(snapshot, limits, now).drain)


FOUR = LIMITS._replace(max_children=4, min_children=4)
ELASTIC = LIMITS._replace(max_children=20, min_children=1)


def test_begins_with_all() -> None:
    """An empty pool starts min_children at once; and no more while they start."""
    first = plan(seen(pool=Pool(), phase=Phase.STARTING), FOUR, NOW)
    assert (first.spawn, first.phase) == (4, Phase.STARTING)
    starting = [worker(serial, ChildState.STARTING, started=NOW) for serial in range(4)]
    assert plan(seen(*starting, pool=first.pool, phase=Phase.STARTING), FOUR, NOW).spawn == 0


def test_running_begins_with_the_first_ready() -> None:
    """The pool runs as soon as one worker was READY, and goes on running when all are gone."""
    assert plan(seen(phase=Phase.STARTING), FOUR, NOW).phase is Phase.RUNNING
    assert plan(seen(), FOUR, NOW).phase is Phase.RUNNING


@pytest.mark.parametrize("why", ["due", "old"])
def test_replacement_step_by_step(why: str) -> None:
    """One is started for one that is to leave; when it is READY the one that is to leave is drained, and no other."""
    leaver = worker(4, due=ExitReason.MAX_MEMORY, generation=2) if why == "due" else worker(4, generation=1)
    others = [worker(serial, generation=2) for serial in (1, 2, 3)]
    first = plan(seen(*others, leaver, generation=2), FOUR, NOW)
    assert (first.spawn, first.drain) == (1, ())
    starting = worker(5, ChildState.STARTING, generation=2, started=NOW)
    begun = plan(seen(*others, leaver, starting, generation=2), FOUR, NOW)
    assert (begun.spawn, begun.drain) == (0, ())
    ready = plan(seen(*others, leaver, worker(5, generation=2), generation=2), FOUR, NOW)
    reason = ExitReason.MAX_MEMORY if why == "due" else ExitReason.REPLACED
    assert (ready.spawn, ready.drain) == (0, ((4, reason),))


def test_the_oldest_leaves_first() -> None:
    """Of several that are to leave the oldest is drained, whatever it is doing."""
    due: dict[str, Any] = {"due": ExitReason.MAX_REQUESTS}
    pool = [worker(1, started=5.0, **due), worker(2, started=1.0, busy_since=(NOW,), **due), *map(worker, (3, 4, 5))]
    assert drained(seen(*pool), FOUR) == {2: ExitReason.MAX_REQUESTS}


def test_too_many_are_drained_at_once() -> None:
    """After FEWER what is too much goes: idle ones before busy ones, the youngest first."""
    pool = [worker(1, started=1.0), worker(2, started=2.0), worker(3, started=3.0, busy_since=(NOW,)), worker(4)]
    fewer = FOUR._replace(max_children=2, min_children=2)
    assert drained(seen(*pool), fewer) == dict.fromkeys((2, 1), ExitReason.SCALED_DOWN)


def test_grows_by_doubling() -> None:
    """Short of spare workers the pool grows by one, two, four, as often as once a second."""
    limits = ELASTIC._replace(min_spare_children=2)
    pool, now, targets = Pool(ever_ready=True), NOW, []
    for _ in range(5):
        busy = [worker(number, busy_since=(now,)) for number in range(pool.target)]
        result = plan(seen(*busy, pool=pool), limits, now)
        again = plan(seen(*busy, pool=result.pool), limits, now + 0.5)
        assert again.pool.target == result.pool.target
        pool, now = result.pool, now + RESIZE_EVERY_S
        targets.append(pool.target)
    assert targets == [2, 4, 8, 16, 20]


def test_burst_is_bounded() -> None:
    """However long it grows, no step is above SPAWN_BURST_MAX."""
    limits = ELASTIC._replace(max_children=1000, min_spare_children=900)
    pool = Pool(target=1, ever_ready=True, burst=SPAWN_BURST_MAX)
    assert plan(seen(worker(1), pool=pool), limits, NOW).pool.target == 1 + SPAWN_BURST_MAX


def test_saturation_is_answered_at_once() -> None:
    """One came that found everybody busy: another worker now, not in a second; but not while one starts."""
    pool = Pool(target=1, ever_ready=True, next_resize=NOW + 0.9)
    busy = worker(1, busy_since=(NOW,))
    assert plan(seen(busy, pool=pool), ELASTIC, NOW).spawn == 0
    assert plan(seen(busy, pool=pool, saturated=True), ELASTIC, NOW).spawn == 1
    starting = worker(2, ChildState.STARTING, started=NOW)
    assert plan(seen(busy, starting, pool=pool._replace(target=2), saturated=True), ELASTIC, NOW).spawn == 0


def test_a_wake_up_that_passed_over_threads() -> None:
    """Workers with threads stand behind the master once they have accepted: those with a lane free are woken at once,
    and the pool does not grow for what they can serve; where all lanes are busy it does."""
    pool = Pool(target=2, ever_ready=True, next_resize=NOW + 0.9)
    full, half = worker(1, lanes=2, busy_since=(NOW, NOW)), worker(2, lanes=2, busy_since=(NOW,))
    result = plan(seen(full, half, pool=pool, saturated=True), ELASTIC, NOW)
    assert (result.poke, result.spawn) == ((2,), 0)
    assert plan(seen(full, half, pool=pool), ELASTIC, NOW).poke == ()
    result = plan(seen(full, full._replace(serial=2), pool=pool, saturated=True), ELASTIC, NOW)
    assert (result.poke, result.spawn) == ((), 1)


def test_shrinks_one_a_second() -> None:
    """With more idle workers than max_spare_children one is drained each second, down to min_children."""
    limits = ELASTIC._replace(min_children=2, max_spare_children=1)
    pool, targets = Pool(target=4, ever_ready=True), []
    for second in range(4):
        result = plan(seen(*map(worker, range(pool.target)), pool=pool), limits, NOW + second)
        pool = result.pool
        targets.append(pool.target)
        assert len(result.drain) == (second < 2)
    assert targets == [3, 2, 2, 2]


def test_lanes_are_spare_by_the_worker() -> None:
    """With threads spare is counted in whole workers' worth of free lanes."""
    limits = ELASTIC._replace(min_spare_children=1)
    half = worker(1, lanes=4, busy_since=(NOW, NOW))
    assert plan(seen(half, pool=Pool(target=1, ever_ready=True)), limits, NOW).spawn == 1
    halves = [half, half._replace(serial=2)]
    assert plan(seen(*halves, pool=Pool(target=2, ever_ready=True)), limits, NOW).spawn == 0


def test_idle_beside_a_queue() -> None:
    """A worker that is idle beside a queue on two turns running, and has not tried to accept between, is woken."""
    idle, busy = worker(1, tried_ns=7), worker(2, busy_since=(NOW,))
    first = plan(seen(idle, busy, queued=True), FOUR, NOW)
    assert first.poke == ()
    assert plan(seen(idle, busy, queued=True, pool=first.pool), FOUR, NOW).poke == (1,)
    assert plan(seen(idle._replace(tried_ns=8), busy, queued=True, pool=first.pool), FOUR, NOW).poke == ()
    assert plan(seen(idle, busy, pool=first.pool), FOUR, NOW).poke == ()


def test_stuck_outside_a_request() -> None:
    """Idle beside a queue for stall_timeout without one try: its stacks, TERM 200 ms later, and SIGKILL 100 ms after
    that unless it has moved meanwhile."""
    limits, idle, pool = FOUR._replace(stall_timeout=5.0), worker(1, tried_ns=7), Pool(target=4, ever_ready=True)
    for seconds in (0.0, 2.0, 4.9):
        result = plan(seen(idle, queued=True, pool=pool), limits, NOW + seconds)
        pool = result.pool
        assert result.stuck == ()
        assert not pool.queue.unanswered(5.0, NOW + seconds)
    at = NOW + 5.0
    result = plan(seen(idle, queued=True, pool=pool), limits, at)
    assert (result.stuck, result.drain, result.wake_at) == ((1,), (), at + 0.05)
    assert result.pool.queue.unanswered(5.0, at)
    cut = idle._replace(cut_at=at, cut_for=ExitReason.STALLED)
    result = plan(seen(cut, queued=True, pool=result.pool), limits, at + CUT_TERM_S)
    assert (result.stuck, result.drain, result.kill) == ((), ((1, ExitReason.STALLED),), ())
    leaving = cut._replace(state=ChildState.DRAINING, deadline=at + 30)
    assert plan(seen(leaving), limits, at + CUT_TERM_S).kill == ()
    assert plan(seen(leaving), limits, at + CUT_KILL_S).kill == (1,)
    assert plan(seen(leaving._replace(moved=True)), limits, at + CUT_KILL_S).kill == ()


@pytest.mark.parametrize("well", ["tries", "busy", "has a request in hand", "off", "the queue is empty for a moment"])
def test_never_stuck(well: str) -> None:
    """A worker that tries, even in vain, that is busy or has a request in hand; nor where the queue was empty in
    between, or nobody wants it."""
    limits, pool = FOUR._replace(stall_timeout=None if well == "off" else 5.0), Pool(target=4, ever_ready=True)
    for step in range(200):
        now = NOW + step / 10
        child = worker(1, lanes=2, tried_ns=step // 30 if well == "tries" else 7)
        child = child._replace(busy_since={"busy": (NOW, NOW), "has a request in hand": (NOW,)}.get(well, ()))
        queued = well != "the queue is empty for a moment" or bool(step % 45)
        result = plan(seen(child, queued=queued, pool=pool), limits, now)
        pool = result.pool
        assert result.stuck == ()
        # With a lane free that it does not use, it is not replaced for the sake of its request; but nobody answers.
        unanswered = well == "has a request in hand" and step >= 50
        assert pool.queue.unanswered(limits.stall_timeout, now) is unanswered


def test_somebody_takes() -> None:
    """While one of a pool takes from the queue the service answers, though another is stuck."""
    limits, pool = FOUR._replace(stall_timeout=5.0), Pool(target=4, ever_ready=True)
    for step in range(80):
        children = worker(1, tried_ns=7), worker(2, accepted=step // 9, busy_since=(NOW,))
        result = plan(seen(*children, queued=True, pool=pool), limits, NOW + step / 10)
        pool = result.pool
        assert not pool.queue.unanswered(5.0, NOW + step / 10)
    assert result.stuck == (1,)


def test_a_request_over_its_time() -> None:
    """Its stack at once, TERM 200 ms later, the end when only such requests are left; none if it has ended by then."""
    limits = FOUR._replace(request_timeout=2.0)
    began = NOW - 2.0
    over = worker(1, busy_since=(began,))
    assert plan(seen(over), limits, NOW - 0.01).dump == ()
    assert plan(seen(over), limits, NOW).dump == (1,)
    cut = over._replace(cut_at=NOW)
    assert plan(seen(cut), limits, NOW + CUT_TERM_S / 2).dump == ()
    assert drained(seen(cut), limits, NOW + CUT_TERM_S) == {1: ExitReason.TIMEOUT}
    leaving = cut._replace(state=ChildState.DRAINING, deadline=NOW + 5)
    assert plan(seen(leaving), limits, NOW + CUT_KILL_S).kill == (1,)
    other = leaving._replace(lanes=2, busy_since=(began, NOW - 1.0))
    assert plan(seen(other), limits, NOW + CUT_KILL_S).kill == ()
    assert plan(seen(other), limits, NOW + 1.0).kill == (1,)
    assert plan(seen(leaving._replace(busy_since=())), limits, NOW + CUT_KILL_S).kill == ()


def test_slow_requests_are_shown() -> None:
    """Over slow_request_timeout its stacks are asked for; which were shown already is the supervisor's to know."""
    limits = FOUR._replace(slow_request_timeout=1.0)
    assert plan(seen(worker(1, busy_since=(NOW - 0.9,))), limits, NOW).slow == ()
    assert plan(seen(worker(1, busy_since=(NOW - 1.0,))), limits, NOW).slow == (1,)


def test_end_waits_for_the_queue() -> None:
    """DRAINING lets the workers accept until the queue is empty and quiet, or half the time is gone; those that start
    are told at once."""
    ready, starting = worker(1), worker(2, ChildState.STARTING, started=NOW)
    ending: dict[str, Any] = {"phase": Phase.DRAINING, "phase_since": NOW - 1}
    told = {1: ExitReason.DRAINED, 2: ExitReason.DRAINED}
    assert drained(seen(ready, starting, queued=True, queued_at=NOW, **ending), FOUR) == {2: ExitReason.DRAINED}
    assert drained(seen(ready, starting, queued_at=NOW - QUIET_S / 2, **ending), FOUR) == {2: ExitReason.DRAINED}
    assert drained(seen(ready, starting, queued_at=NOW - 2 * QUIET_S, **ending), FOUR) == told
    long: dict[str, Any] = {"phase": Phase.DRAINING, "phase_since": NOW - FOUR.graceful_timeout / 2}
    assert drained(seen(ready, starting, queued=True, queued_at=NOW, **long), FOUR) == told


def test_the_holder_is_last() -> None:
    """While the service drains it is there for what the workers park and the companions take; then it is stopped, and
    the end waits for it, within its deadline. Where everybody is told to leave now, so is it."""
    ending: dict[str, Any] = {"phase": Phase.DRAINING, "phase_since": NOW - 1, "queued_at": NOW - 1}
    holder = worker(7)._replace(kind=ChildKind.HOLDER)
    companion = worker(3)._replace(kind=ChildKind.COMPANION, name="one")
    gone = worker(1, ChildState.DRAINING, deadline=NOW + 5)
    with_worker = plan(seen(worker(1), companion, holder, **ending), FOUR, NOW)
    assert (with_worker.stop, with_worker.drain) == ((), ((1, ExitReason.DRAINED),))
    assert plan(seen(gone, holder, **ending), FOUR, NOW).stop == ()
    with_companion = plan(seen(companion, holder, **ending), FOUR, NOW)
    assert (with_companion.stop, with_companion.drain) == ((), ((3, ExitReason.DRAINED),))
    alone = plan(seen(holder, **ending), FOUR, NOW)
    assert (alone.phase, alone.stop, alone.drain) == (Phase.DRAINING, (7,), ())
    told = holder._replace(state=ChildState.STOPPING, deadline=NOW + 0.5)
    waiting = plan(seen(told, **ending), FOUR, NOW)
    assert (waiting.phase, waiting.stop) == (Phase.DRAINING, ())
    assert waiting.wake_at <= NOW + 0.5
    assert plan(seen(told._replace(deadline=NOW - 9), **ending), FOUR, NOW).phase is Phase.STOPPED
    forsaken = plan(seen(holder, **{**ending, "queued": True, "queued_at": NOW}), FOUR, NOW)
    assert (forsaken.phase, forsaken.spawn, forsaken.stop) == (Phase.DRAINING, 1, ())
    assert plan(seen(worker(1), holder, phase=Phase.STOPPING), FOUR, NOW).stop == (1, 7)


def test_a_queue_that_its_workers_have_left() -> None:
    """While the service drains, one worker is started for a queue that has none any more, and the end waits for it; but
    not for ever, not before its time, and not in a master that cannot start one."""
    ending: dict[str, Any] = {"phase": Phase.DRAINING, "phase_since": NOW - 1, "queued": True, "queued_at": NOW}
    gone = worker(1, ChildState.DRAINING, deadline=NOW + 5)
    companion = worker(3)._replace(kind=ChildKind.COMPANION, name="one")
    for left in ((), (gone,), (companion,)):
        result = plan(seen(*left, **ending), FOUR, NOW)
        assert (result.phase, result.spawn, result.drain) == (Phase.DRAINING, 1, ())
    starting = worker(2, ChildState.STARTING, started=NOW)
    result = plan(seen(starting, **ending), FOUR, NOW)
    assert (result.phase, result.spawn, result.drain) == (Phase.DRAINING, 0, ())
    waiting = plan(seen(**ending, pool=Pool(ever_ready=True, next_start=NOW + 0.2)), FOUR, NOW)
    assert (waiting.phase, waiting.spawn) == (Phase.DRAINING, 0)
    assert waiting.wake_at <= NOW + 0.2
    late = {**ending, "phase_since": NOW - FOUR.graceful_timeout / 2}
    for over in (
        seen(**late),
        seen(**ending, can_start=False),
        seen(**ending, pool=Pool()),
        seen(**{**ending, "queued": False}),
    ):
        result = plan(over, FOUR, NOW)
        assert (result.phase, result.spawn) == (Phase.STOPPED, 0)


def test_a_queue_that_was_served() -> None:
    """Once it was seen empty, nobody is started for what comes into it, where the door cannot be narrowed."""
    ending: dict[str, Any] = {"phase": Phase.DRAINING, "phase_since": NOW - 1}
    served = plan(seen(worker(1), queued_at=NOW - 2 * QUIET_S, **ending), FOUR, NOW).pool
    gone = worker(1, ChildState.DRAINING, deadline=NOW + 5)
    for left, phase in (((gone,), Phase.DRAINING), ((), Phase.STOPPED)):
        result = plan(seen(*left, queued=True, queued_at=NOW, pool=served, **ending), FOUR, NOW)
        assert (result.phase, result.spawn) == (phase, 0)


def test_drain_delay_goes_on_as_before() -> None:
    """While drain_delay lasts the pool is kept up; afterwards the door is narrowed. Never READY, there is none."""
    limits = FOUR._replace(drain_delay=5.0)
    ending: dict[str, Any] = {"phase": Phase.DRAINING, "phase_since": NOW - 4.9, "queued_at": float("-inf")}
    assert plan(seen(worker(1), **ending), limits, NOW).spawn == 3
    assert plan(seen(worker(1), **ending), limits, NOW).drain == ()
    assert plan(seen(worker(1), **ending), limits, NOW + 0.1).spawn == 0
    assert drained(seen(worker(1), **ending), limits, NOW + 0.1) == {1: ExitReason.DRAINED}
    assert drained(seen(worker(1), pool=Pool(), **ending), limits) == {1: ExitReason.DRAINED}


def test_stop_is_told_once() -> None:
    """STOPPING tells everybody, also those that drain; each once. The exporter is not policy's to end."""
    exporter = ChildView(9, ChildKind.EXPORTER, ChildState.READY, 1, 0.0, 0.0)
    drains = worker(2, ChildState.DRAINING, reason=ExitReason.REPLACED, deadline=NOW + 5)
    told = worker(3, ChildState.STOPPING, reason=ExitReason.STOPPED, deadline=NOW + STOP_GRACE_S)
    killed = worker(4, ChildState.KILLING)
    result = plan(seen(worker(1), drains, told, killed, exporter, phase=Phase.STOPPING), FOUR, NOW)
    assert result.stop == (1, 2)
    assert plan(seen(exporter, phase=Phase.STOPPING), FOUR, NOW).phase is Phase.STOPPED


# What the pool remembers.


def test_backoff_doubles_to_the_cap() -> None:
    """Half a second after the first death at boot, doubling to max_restart_delay; one READY ends it."""
    pool, delays = Pool(ever_ready=True), []
    for _ in range(6):
        pool = after_boot_death(pool, LIMITS, NOW, killed=False)
        delays.append(pool.next_start - NOW)
    assert delays == [FIRST_RESTART_DELAY_S, 1.0, 2.0, 4.0, 4.0, 4.0]
    assert pool.backing_off
    assert not after_ready(pool).backing_off
    many = pool._replace(boot_deaths=10_000)
    assert after_boot_death(many, LIMITS, NOW, killed=False).next_start == NOW + LIMITS.max_restart_delay


def test_kills_at_boot_are_somebody_elses() -> None:
    """A SIGKILL at boot counts only from the third in a row; a READY in between begins again."""
    pool = Pool()
    for _ in range(BOOT_DEATHS_MAX - 1):
        pool = after_boot_death(pool, LIMITS, NOW, killed=True)
        assert not pool.backing_off
    assert not after_boot_death(after_ready(pool), LIMITS, NOW, killed=True).backing_off
    assert after_boot_death(pool, LIMITS, NOW, killed=True).boot_deaths == 1


def test_hopeless_only_before_the_first_ready() -> None:
    """Three deaths at boot end a pool that never was READY; one that was goes on."""
    pool = Pool()
    for _ in range(BOOT_DEATHS_MAX):
        assert not hopeless(pool)
        pool = after_boot_death(pool, LIMITS, NOW, killed=False)
    assert hopeless(pool)
    assert not hopeless(after_ready(pool))
    assert not hopeless(pool._replace(ever_ready=True))


def test_after_a_failed_fork() -> None:
    """The next try comes after FORK_RETRY_S, and it is no back-off: then all that is missing is started."""
    pool = after_fork_failure(Pool(ever_ready=True), NOW)
    assert plan(seen(worker(1), pool=pool), FOUR, NOW).spawn == 0
    assert plan(seen(worker(1), pool=pool), FOUR, NOW + FORK_RETRY_S).spawn == 3


@pytest.mark.parametrize(
    ("limits", "step", "result"),
    [((2, 4), 1, (3, 5)), ((2, 4), -1, (1, 3)), ((1, 2), -1, (1, 1)), ((1, 1), -1, (1, 1))],
)
def test_resized(limits: tuple[int, int], step: int, result: tuple[int, int]) -> None:
    """TTIN and TTOU move both by one, never to none."""
    resized = LIMITS._replace(min_children=limits[0], max_children=limits[1]).resized(step)
    assert (resized.min_children, resized.max_children) == result


def test_resized_beside_companions() -> None:
    """There is room for so many workers less, and TTIN moves neither above it."""
    resized = LIMITS._replace(min_children=1019, max_children=1019, room=1019).resized(1)
    assert (resized.min_children, resized.max_children) == (1019, 1019)
    assert LIMITS._replace(min_children=1019, max_children=1019).resized(1).max_children == 1020


@pytest.mark.parametrize(
    ("limits", "workers", "result"),
    [((4, 4), 2, (2, 2)), ((4, 4), 9, (9, 9)), ((2, 6), 3, (2, 3)), ((4, 6), 2, (2, 2))],
)
def test_scaled(limits: tuple[int, int], workers: int, result: tuple[int, int]) -> None:
    """`scale` sets the most; the fewest follows where it was equal or would be above."""
    scaled = LIMITS._replace(min_children=limits[0], max_children=limits[1]).scaled(workers)
    assert (scaled.min_children, scaled.max_children) == result


def test_the_end_does_not_spin() -> None:
    """There is a pause between two looks whether somebody is still queued, however long ago somebody was."""
    for queued_at in (float("-inf"), NOW - 5.0, NOW):
        ending = seen(worker(1), phase=Phase.DRAINING, phase_since=NOW - 1, queued_at=queued_at)
        assert NOW + QUIET_S / 3 <= plan(ending, FOUR, NOW).wake_at <= NOW + QUIET_S


@pytest.mark.parametrize(("state", "now", "told"), [
    (ChildState.READY, NOW + 1, True), (ChildState.STARTING, NOW + 1, True), (ChildState.DRAINING, NOW + 1, False),
    (ChildState.KILLING, NOW + 1, False), (ChildState.READY, NOW + 0.01, False),
])  # fmt: skip
def test_one_that_was_cut_is_drained_once_its_stacks_are_there(state: ChildState, now: float, told: bool) -> None:
    """A moment later, unless it was told to leave by then; and it is not cut twice."""
    cut = worker(1, state, cut_at=NOW, cut_for=ExitReason.TIMEOUT, busy_since=(NOW - 99,))
    assert drained(seen(cut, worker(2)), LIMITS, now) == ({1: ExitReason.TIMEOUT} if told else {})


@pytest.mark.parametrize(("state", "lanes", "busy", "passed_over"), [
    (ChildState.READY, 3, 2, (1,)), (ChildState.READY, 3, 3, ()), (ChildState.READY, 1, 0, ()),
    (ChildState.STARTING, 3, 0, ()), (ChildState.DRAINING, 3, 0, ()),
])  # fmt: skip
def test_whom_a_connection_may_have_passed_over(
    state: ChildState, lanes: int, busy: int, passed_over: tuple[int, ...]
) -> None:
    """A worker that is READY, and of whose threads one is free."""
    child = worker(1, state, lanes=lanes, busy_since=(NOW,) * busy)
    assert policy._passed_over(seen(child)._replace(saturated=True)) == passed_over


def test_the_worker_whose_place_is_taken_leaves_first() -> None:
    """Where each has a place: else that of the other would be nobody's. The oldest is the one to be replaced next."""
    old, doubled, new = worker(1, place=0), worker(2, place=1, started=1.0), worker(3, place=1, generation=2)
    limits = LIMITS._replace(pool=True, min_children=2, max_children=2)
    snapshot = PoolSnapshot(Phase.RUNNING, 0.0, 2, (old, doubled, new), Pool(target=2, ever_ready=True))
    assert [serial for serial, _ in plan(snapshot, limits, NOW).drain] == [2]
    assert plan(snapshot._replace(children=(old, doubled)), limits, NOW).instead_of == 1


def test_a_pool_of_one_size_stays_so() -> None:
    limits = LIMITS._replace(min_children=3, max_children=3, one_size=True)
    assert limits.resized(1) is limits.resized(-1) is limits
