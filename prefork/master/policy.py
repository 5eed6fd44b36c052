"""Policy, the decision what to do next: `plan(snapshot, limits, now) -> Plan`.

Called in the master, once a turn. Pure: values in, values out; must not read a clock or touch a process.
Longer than most files: it is one function and its parts.

The invariants, each with a test of its name (STARTING and READY children count as "serving"):

    never_over_max          serving never exceeds max_children, plus one that exists only for a replacement
    draining_is_bounded     no drain is begun that makes more than max_children DRAINING, except for a cut request
                            or a stuck worker, and at the end of the service
    replacement_is_ready    a healthy READY worker is drained only while enough others are READY
    backoff_is_single_file  in back-off at most one child is STARTING, and none is started before its time
    stop_wins               after STOP, and after DRAIN and its drain_delay, nothing is started; but one worker beside
                            a queue that has none any more
    deadline_kills          a child past its deadline is killed, in every phase
    wakes_in_time           `wake_at` is never later than the next deadline
    companion_is_alone      a companion is started only where no process of its name lives, beside a READY worker of
                            the wanted generation; it is replaced once no older worker serves, and drained last
"""

from collections import Counter
from collections.abc import Iterable
from enum import Enum, auto
from typing import NamedTuple

from prefork.metrics.facts import ChildKind, ExitReason

from ..commands import WORKERS_MAX
from .children import ChildState
from .queue_watch import NOTHING_SEEN, QueueWatch, Unmoved

TICK_S = 1.0  # the master has a turn at least this often
STOP_GRACE_S = 1.0  # from "stop now" to SIGKILL
CUT_TERM_S = 0.2  # from asking for the stacks of a request or run over its time, or a stuck worker, to its drain
CUT_KILL_S = 0.3  # from asking for them to SIGKILL, if only such requests are left, or the worker has not moved
CUT_LOOK_S = 0.1
OUT_OF_REACH_S = 2.0  # from its deadline on the end waits so long for a child that SIGKILL does not reach
REMIND_S = 0.25  # a draining worker is told again after this: hangup.py
ROUSE_S = 1.0  # a draining child that is still there is roused after this, again and again
QUIET_S = 0.03  # the queue counts as empty when nothing came for this long
QUEUE_LOOK_S = 0.05
FIRST_RESTART_DELAY_S = 0.5
FORK_RETRY_S = 0.5
BOOT_DEATHS_MAX = 3
SPAWN_BURST_MAX = 32
RESIZE_EVERY_S = 1.0


AWAITED = (ChildKind.WORKER, ChildKind.COMPANION, ChildKind.HOLDER)  # at the end of the service
TOLD_TO_LEAVE = (ChildState.DRAINING, ChildState.STOPPING)


class Phase(Enum):
    STARTING = auto()
    RUNNING = auto()
    DRAINING = auto()
    STOPPING = auto()
    STOPPED = auto()


class Limits(NamedTuple):
    """The settings of the pool, in seconds and processes. `pool` is False for the children of a plain server."""

    pool: bool
    max_children: int
    min_children: int
    min_spare_children: int | None
    max_spare_children: int | None
    request_timeout: float | None
    slow_request_timeout: float | None
    boot_timeout: float
    graceful_timeout: float
    max_restart_delay: float
    drain_delay: float = 0.0
    stall_timeout: float | None = None
    hang_up: bool = False  # drain_connections = "eof"
    room: int = WORKERS_MAX  # for workers: companions count as well
    one_size: bool = False  # each worker has a place, and their number stays

    def packed(self) -> dict[str, float | bool | None]:
        """Return what holds for the workers that are there, whoever supervises them after a reload."""
        return {name: getattr(self, name) for name in HANDED_ON}

    def resized(self, step: int) -> "Limits":
        """Return limits with `step` workers more (TTIN) or fewer (TTOU), at least one; the same where they stay."""
        if self.one_size:
            return self
        low, high = (min(max(1, each + step), self.room) for each in (self.min_children, self.max_children))
        return self._replace(min_children=low, max_children=high)

    def scaled(self, workers: int) -> "Limits":
        """Return limits with `max_children` set to `workers`; `min_children` follows if it was equal or would exceed
        it."""
        low = workers if self.min_children == self.max_children else min(self.min_children, workers)
        return self._replace(min_children=low, max_children=workers)


# What means nothing to a master that starts no worker.
FOR_STARTS = {"pool", "max_children", "min_children", "min_spare_children", "max_spare_children", "max_restart_delay",
              "room", "one_size"}  # fmt: skip
HANDED_ON = [name for name in Limits._fields if name not in FOR_STARTS]

# For a plain server: it starts its children itself, and they end by themselves.
NO_POOL = Limits(
    pool=False, max_children=1, min_children=1, min_spare_children=None, max_spare_children=None, request_timeout=None,
    slow_request_timeout=None, boot_timeout=60.0, graceful_timeout=30.0, max_restart_delay=30.0,
)  # fmt: skip


class ChildView(NamedTuple):
    """A child as policy sees it. Times are in seconds of the supervisor's clock."""

    serial: int
    kind: ChildKind
    state: ChildState
    generation: int
    started: float
    told: float = 0.0  # when it was last told to leave
    deadline: float | None = None
    due: ExitReason | None = None  # the limit that it has reached, or why it is to be replaced
    lanes: int = 1
    busy_since: tuple[float, ...] = ()
    accepted: int = 0
    tried_ns: int = 0  # when it last tried to accept; a stamp of its own, to be compared with its others only
    cut_at: float | None = None
    cut_for: ExitReason = ExitReason.TIMEOUT
    moved: bool = False  # it has tried to accept since it was cut
    reason: ExitReason | None = None
    name: str = ""  # of a companion
    run_late_at: float | None = None  # from when on the run of a periodic job that is on is over its time
    place: int | None = None  # where each worker has one

    @property
    def staying(self) -> bool:
        return self.state in (ChildState.STARTING, ChildState.READY)

    @property
    def is_companion(self) -> bool:
        return self.kind is ChildKind.COMPANION

    @property
    def serving(self) -> bool:
        return self.kind is ChildKind.WORKER and self.staying

    @property
    def ready(self) -> bool:
        return self.kind is ChildKind.WORKER and self.state is ChildState.READY

    @property
    def free_lanes(self) -> int:
        return self.lanes - len(self.busy_since)


class Pool(NamedTuple):
    """The state of policy, kept from plan to plan."""

    target: int = 0  # how many children should serve
    ever_ready: bool = False
    boot_deaths: int = 0  # in a row, by the child's own fault
    boot_kills: int = 0  # in a row, by a SIGKILL before READY
    next_start: float = 0.0  # no fork before this time
    burst: int = 1  # how many the next growth adds
    next_resize: float = 0.0
    queue: QueueWatch = NOTHING_SEEN
    served: bool = False  # a drain has found the accept queue empty: what comes later comes too late

    @property
    def backing_off(self) -> bool:
        return self.boot_deaths > 0


class CompanionView(NamedTuple):
    """A companion that the program declares, and before which time it must not be started."""

    name: str
    next_start: float = 0.0


class PoolSnapshot(NamedTuple):
    phase: Phase
    phase_since: float
    generation: int
    children: tuple[ChildView, ...]
    pool: Pool
    queued: bool = False  # a connection is in the accept queue
    queued_at: float = 0.0  # when one last was
    saturated: bool = False  # a connection came while no worker was waiting for one
    companions: tuple[CompanionView, ...] = ()
    can_start: bool = True  # False in a master without its program


class Plan(NamedTuple):
    phase: Phase
    pool: Pool
    spawn: int = 0
    instead_of: int | None = None  # the worker that goes when the one that is started is ready
    companions: tuple[str, ...] = ()  # to start
    drain: tuple[tuple[int, ExitReason], ...] = ()
    stop: tuple[int, ...] = ()
    kill: tuple[int, ...] = ()
    dump: tuple[int, ...] = ()  # with a request or a run over its time: ask for stacks, and send CONT
    stuck: tuple[int, ...] = ()  # idle beside a queue for stall_timeout: the same
    slow: tuple[int, ...] = ()  # over slow_request_timeout: ask for stacks
    poke: tuple[int, ...] = ()
    remind: tuple[int, ...] = ()  # to hang up connections that were too young for it when it was told
    rouse: tuple[int, ...] = ()  # told to leave and still there: it may have been stopped, or have not heard
    wake_at: float = 0.0


def plan(snapshot: PoolSnapshot, limits: Limits, now: float) -> Plan:
    """Return what to do now, and when to plan again at the latest."""
    if snapshot.phase in (Phase.STARTING, Phase.RUNNING) or _still_open(snapshot, limits, now):
        result = _run(snapshot, limits, now)
    else:
        result = _end(snapshot, limits, now)
    cut, dump = _cut(snapshot.children, limits, now)
    kill = tuple(c.serial for c in snapshot.children if _overdue(c, limits, now))
    slow = tuple(c.serial for c in snapshot.children if _over(c, limits.slow_request_timeout, now))
    drain = tuple({**dict(result.drain), **cut}.items())
    remind = tuple(c.serial for c in snapshot.children if _hanging_up(c, limits) and now >= c.told + REMIND_S)
    rouse = tuple(c.serial for c in snapshot.children if _told_to_leave(c) and now >= c.told + ROUSE_S)
    result = result._replace(drain=drain, kill=kill, dump=dump, slow=slow, remind=remind, rouse=rouse)
    return result._replace(wake_at=min((t for t in _times(snapshot, result, limits, now) if t > now), default=now))


# Phases.


def _run(snapshot: PoolSnapshot, limits: Limits, now: float) -> Plan:
    phase = Phase.RUNNING if snapshot.pool.ever_ready else Phase.STARTING
    if snapshot.phase is Phase.DRAINING:
        phase = snapshot.phase  # until the listener is narrowed the pool is run as before
    if not limits.pool:
        return Plan(Phase.RUNNING, snapshot.pool)
    pool = _resize(snapshot, limits, now)
    serving = [c for c in snapshot.children if c.serving]
    ready = [c for c in serving if c.ready]
    places = Counter(c.place for c in ready)
    leavers = sorted(
        (c for c in ready if c.due or c.generation < snapshot.generation),
        key=lambda c: (
            places[c.place] == 1,
            c.started,
        ),  # that of a doubled place first: the other would leave its empty
    )
    queue = _looked_at(snapshot, now)
    return Plan(
        phase,
        pool._replace(queue=queue),
        spawn=_spawn(pool, limits, serving, leavers, now),
        instead_of=leavers[0].serial if leavers else None,
        companions=tuple(view.name for view in _missing(snapshot) if now >= view.next_start),
        drain=_surplus(snapshot, pool, limits, ready, leavers) + _replaced_companions(snapshot, serving),
        poke=tuple(dict.fromkeys((*_passed_over(snapshot), *queue.to_wake(pool.queue)))),
        stuck=_stuck(queue, ready, limits, now),
    )


def _end(snapshot: PoolSnapshot, limits: Limits, now: float) -> Plan:
    """Plan the end: DRAINING serves the accept queue to its end, then drains the workers, and the companions when these
    have gone, or when half of the time has; STOPPING stops them all. The holder is stopped last: workers park what they
    have.

    Where every worker has died before the queue was once seen empty, one more serves it. The end does not wait for one
    that outlives its SIGKILL, or is out of our reach.
    """
    children = [c for c in snapshot.children if c.kind in AWAITED]
    phase, left = snapshot.phase, [c for c in children if c.deadline is None or now < c.deadline + OUT_OF_REACH_S]
    quiet = not snapshot.queued and now - snapshot.queued_at >= QUIET_S
    late = now >= queue_deadline(snapshot, limits)
    pool = snapshot.pool._replace(served=snapshot.pool.served or quiet or late)
    forsaken = phase is Phase.DRAINING and not pool.served and _is_forsaken(snapshot, left)
    if phase is Phase.STOPPED or not (left or forsaken):
        return Plan(Phase.STOPPED, pool)
    if phase is Phase.STOPPING:
        stop = tuple(c.serial for c in left if c.state not in (ChildState.STOPPING, ChildState.KILLING))
        return Plan(phase, pool, stop=stop)
    holders = [c for c in left if c.kind is ChildKind.HOLDER]
    if not forsaken and len(holders) == len(left):
        return Plan(phase, pool, stop=tuple(c.serial for c in holders if c.staying))
    drain = [c for c in left if c.serving and (quiet or late or (c.state is ChildState.STARTING and not forsaken))]
    if late or (all(c.is_companion for c in left if c not in holders) and not forsaken):
        drain += [c for c in left if c.is_companion and c.staying]
    spawn = int(forsaken and now >= snapshot.pool.next_start and not any(c.serving for c in left))
    return Plan(phase, pool, spawn=spawn, drain=tuple((c.serial, ExitReason.DRAINED) for c in drain))


def _is_forsaken(snapshot: PoolSnapshot, left: list[ChildView]) -> bool:
    """Return whether something is queued and no worker is there to take it, though one could be."""
    able = snapshot.can_start and snapshot.pool.ever_ready
    return able and snapshot.queued and not any(c.ready for c in left if not c.is_companion)


def narrow_at(phase_since: float, pool: Pool, limits: Limits) -> float:
    """Return when a draining service refuses new connections: after `drain_delay`, or at once if it never served."""
    return phase_since + (limits.drain_delay if pool.ever_ready else 0.0)


def _still_open(snapshot: PoolSnapshot, limits: Limits, now: float) -> bool:
    return snapshot.phase is Phase.DRAINING and now < narrow_at(snapshot.phase_since, snapshot.pool, limits)


def queue_deadline(snapshot: PoolSnapshot, limits: Limits) -> float:
    """Return until when the workers go on accepting while the whole service drains."""
    return narrow_at(snapshot.phase_since, snapshot.pool, limits) + limits.graceful_timeout / 2


# The pool.


def _resize(snapshot: PoolSnapshot, limits: Limits, now: float) -> Pool:
    """Return the pool with its new target: more when idle workers are short, fewer when there are too many."""
    pool = snapshot.pool
    low, high = min(limits.min_children, limits.max_children), limits.max_children
    pool = pool._replace(target=min(max(pool.target, low), high))
    if low == high:
        return pool
    ready = [c for c in snapshot.children if c.ready]
    starting = sum(c.serving for c in snapshot.children) - len(ready)
    spare = sum(c.free_lanes for c in ready) // max((c.lanes for c in ready), default=1) + starting
    saturated = snapshot.saturated and not _passed_over(snapshot)
    short = saturated or spare < (limits.min_spare_children or 0)
    if short and ((saturated and not starting) or now >= pool.next_resize):
        grown = min(high, pool.target + pool.burst)
        burst = min(SPAWN_BURST_MAX, pool.burst * 2)
        return pool._replace(target=grown, burst=burst, next_resize=now + RESIZE_EVERY_S)
    if now >= pool.next_resize:
        too_many = limits.max_spare_children is not None and spare > limits.max_spare_children
        shrunk = pool.target - 1 if too_many and pool.target > low else pool.target
        return pool._replace(target=shrunk, burst=1, next_resize=now + RESIZE_EVERY_S)
    return pool


def _spawn(pool: Pool, limits: Limits, serving: list[ChildView], leavers: list[ChildView], now: float) -> int:
    """Return how many workers to fork now: as many as are missing, else one replacement at a time."""
    wanted = pool.target - len(serving)
    starting = any(not c.ready for c in serving)
    if wanted <= 0:
        wanted = 1 if leavers and not starting and len(serving) <= pool.target else 0
    if now < pool.next_start:
        return 0
    if pool.backing_off:
        return 0 if starting else min(wanted, 1)
    return wanted


def _surplus(
    snapshot: PoolSnapshot, pool: Pool, limits: Limits, ready: list[ChildView], leavers: list[ChildView]
) -> tuple[tuple[int, ExitReason], ...]:
    """Return the READY workers over the target, to be drained: those that are due first, then the youngest idle."""
    draining = sum(c.state in TOLD_TO_LEAVE for c in snapshot.children if not c.is_companion)
    most = min(len(ready) - pool.target, limits.max_children - draining)
    if most <= 0:
        return ()
    rest = sorted((c for c in ready if c not in leavers), key=lambda c: (len(c.busy_since), -c.started))
    reasons = [(c.serial, c.due or ExitReason.REPLACED) for c in leavers]
    reasons += [(c.serial, ExitReason.SCALED_DOWN) for c in rest]
    return tuple(reasons[:most])


def _passed_over(snapshot: PoolSnapshot) -> tuple[int, ...]:
    """Return the workers with threads that a connection may have passed over, which woke the master instead.

    They go to the back of the listener's waiters with each request, and so behind the master.
    """
    if not snapshot.saturated:
        return ()
    return tuple(c.serial for c in snapshot.children if c.ready and c.lanes > 1 and c.free_lanes)


def _looked_at(snapshot: PoolSnapshot, now: float) -> QueueWatch:
    workers = [c for c in snapshot.children if c.ready]
    idle = [Unmoved(c.serial, c.tried_ns, now, not c.busy_since) for c in workers if c.free_lanes]
    return snapshot.pool.queue.looked(snapshot.queued, idle, sum(c.accepted for c in workers), now)


def _stuck(queue: QueueWatch, ready: list[ChildView], limits: Limits, now: float) -> tuple[int, ...]:
    cut = {c.serial for c in ready if c.cut_at is not None}
    return tuple(serial for serial in queue.stuck(limits.stall_timeout, now) if serial not in cut)


def _missing(snapshot: PoolSnapshot) -> list[CompanionView]:
    """Return the companions that are to be started, if not before their time: their code has booted a worker."""
    if not _may_start_companions(snapshot):
        return []
    living = {c.name for c in snapshot.children if c.is_companion}
    return [view for view in snapshot.companions if view.name not in living]


def _may_start_companions(snapshot: PoolSnapshot) -> bool:
    return any(c.ready and c.generation >= snapshot.generation for c in snapshot.children)


def _replaced_companions(snapshot: PoolSnapshot, serving: list[ChildView]) -> tuple[tuple[int, ExitReason], ...]:
    """Return the companions to be drained: of an older generation, once only workers of the wanted one serve; and those
    that were asked to be replaced, where they can be."""
    new = any(c.ready for c in serving) and all(c.generation >= snapshot.generation for c in serving)
    staying = [c for c in snapshot.children if c.is_companion and c.staying]
    startable = {view.name for view in snapshot.companions} if _may_start_companions(snapshot) else set()
    leaving = [c for c in staying if (c.due and c.name in startable) or (new and c.generation < snapshot.generation)]
    return tuple((c.serial, ExitReason.REPLACED) for c in leaving)


# Deadlines.


def _overdue(child: ChildView, limits: Limits, now: float) -> bool:
    if child.state is ChildState.KILLING:
        return False
    if child.deadline is not None and now >= child.deadline:
        return True
    if child.kind in (ChildKind.WORKER, ChildKind.COMPANION) and child.state is ChildState.STARTING:
        return now >= child.started + limits.boot_timeout
    if child.cut_at is None or now < child.cut_at + CUT_KILL_S:
        return False
    if child.cut_for is ExitReason.STALLED:
        return not child.moved
    if child.is_companion:
        return _late_run(child, now)
    if limits.request_timeout is None:
        return False
    # With threads, the other requests of the process may finish before its deadline. With none it is leaving, and takes
    # one last that is queued.
    return bool(child.busy_since) and all(now >= since + limits.request_timeout for since in child.busy_since)


def _told_to_leave(child: ChildView) -> bool:
    """Return whether the child is to leave, and not by itself."""
    return child.state is ChildState.DRAINING and child.reason is not None


def _hanging_up(child: ChildView, limits: Limits) -> bool:
    """Return whether the child may still have connections to hang up."""
    return limits.hang_up and child.state is ChildState.DRAINING and bool(child.busy_since)


def _cut(children: Iterable[ChildView], limits: Limits, now: float) -> tuple[dict[int, ExitReason], tuple[int, ...]]:
    """Return the children that were cut and are to be drained now, and those with requests, or a run, over their time,
    to be asked for their stacks first."""
    drain: dict[int, ExitReason] = {}
    dump = []
    for child in children:
        if child.cut_at is not None:
            if now >= child.cut_at + CUT_TERM_S and child.state in (ChildState.STARTING, ChildState.READY):
                drain[child.serial] = child.cut_for
        elif child.state is not ChildState.KILLING and (
            _over(child, limits.request_timeout, now) or _late_run(child, now)
        ):
            dump.append(child.serial)
    return drain, tuple(dump)


def _late_run(child: ChildView, now: float) -> bool:
    return child.run_late_at is not None and now >= child.run_late_at


def _over(child: ChildView, timeout: float | None, now: float) -> bool:
    return timeout is not None and any(now >= since + timeout for since in child.busy_since)


def _times(snapshot: PoolSnapshot, result: Plan, limits: Limits, now: float) -> Iterable[float]:
    """Yield every moment at which a later plan could differ from this one."""
    requests = [t for t in (limits.request_timeout, limits.slow_request_timeout) if t is not None]
    yield now + min([TICK_S, *requests])
    yield result.pool.next_start
    yield from (view.next_start for view in _missing(snapshot))
    if limits.min_children < limits.max_children and result.pool.burst > 1:
        yield result.pool.next_resize
    if result.pool.queue.unmoved:
        yield now + QUEUE_LOOK_S
    # What this plan begins has deadlines that are not in the snapshot.
    if result.spawn or result.companions:
        yield now + limits.boot_timeout
    if result.drain:
        yield now + limits.graceful_timeout
        if limits.hang_up:
            yield now + REMIND_S
    if result.stop:
        yield now + STOP_GRACE_S
    if result.dump or result.stuck:
        yield now + CUT_TERM_S
    if _still_open(snapshot, limits, now):
        yield narrow_at(snapshot.phase_since, snapshot.pool, limits)
    elif snapshot.phase is Phase.DRAINING:
        yield max(snapshot.queued_at + QUIET_S, now + QUIET_S / 3)
    for child in snapshot.children:
        if child.deadline is not None:
            yield child.deadline
        if child.state is ChildState.STARTING:
            yield child.started + limits.boot_timeout
        if _told_to_leave(child):
            yield child.told + ROUSE_S
        if _hanging_up(child, limits):
            yield from (child.told + REMIND_S, now + REMIND_S)
        if child.cut_at is not None:
            yield from (child.cut_at + CUT_TERM_S, child.cut_at + CUT_KILL_S, now + CUT_LOOK_S)
        yield from (since + timeout for since in child.busy_since for timeout in requests)
        if child.run_late_at is not None:
            yield child.run_late_at


# What events change in the pool.


def after_ready(pool: Pool) -> Pool:
    """Return the pool after a worker became READY: whatever kept others from it is over, and the back-off ends."""
    return pool._replace(ever_ready=True, boot_deaths=0, boot_kills=0)


def after_boot_death(pool: Pool, limits: Limits, now: float, *, killed: bool) -> Pool:
    """Return the pool after a child died before READY.

    A SIGKILL is taken for another process's doing, unless it happens three times (BOOT_DEATHS_MAX) in a row.
    """
    if killed:
        pool = pool._replace(boot_kills=pool.boot_kills + 1)
        if pool.boot_kills < BOOT_DEATHS_MAX:
            return pool
    deaths = pool.boot_deaths + 1
    return pool._replace(boot_deaths=deaths, next_start=now + restart_delay(deaths, limits))


def restart_delay(deaths: int, limits: Limits) -> float:
    """Return the seconds of back-off after so many deaths in a row."""
    return min(limits.max_restart_delay, FIRST_RESTART_DELAY_S * 2.0 ** min(deaths - 1, 30))


def after_fork_failure(pool: Pool, now: float) -> Pool:
    """Return the pool after the kernel refused a fork: try again soon, for that is cheap and the shortage may pass."""
    return pool._replace(next_start=now + FORK_RETRY_S)


def hopeless(pool: Pool) -> bool:
    """Return whether to give up starting: no worker has ever been READY, and three died before it."""
    return not pool.ever_ready and pool.boot_deaths >= BOOT_DEATHS_MAX
