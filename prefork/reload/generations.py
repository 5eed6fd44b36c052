"""The generations of workers, and the way from one image of the master to the next.

Runs in the master, as a part of the supervisor's turn. Owns the number of the generation in service, whether the
service is degraded (an old generation goes on serving because a new one could not), and the reload in progress. A new
image begins with what `begin()` makes of the record; from then on the old workers are simply of a lower generation,
which policy replaces one by one. Must not replace a worker itself.
"""

import logging
from collections.abc import Callable, Mapping
from time import time_ns
from typing import Any

from prefork.metrics.board import Word
from prefork.metrics.facts import ChildKind
from prefork.metrics.log_events import LogEvent, event
from prefork.workers.descriptor_limit import pack_limit
from prefork.workers.flushing import flush_here, given_up_sentence
from prefork.workers.signals import HEARD, blocked, interrupted_after

from .. import systemd
from ..master.children import Child, ChildState
from ..master.policy import BOOT_DEATHS_MAX, QUIET_S
from ..master.succession import Workings
from ..sockets import shared
from ..sockets.addresses import address_text
from ..sockets.listener import Listener
from . import still_held
from .handover import METRICS, Handed, Record, has_lost_its_path, pack_board, pack_child, resume_child
from .left_over import LeftOver
from .reloading import ABOUT_TO_END, Reloading, ReloadResult, Stage, execute, not_run, require_descriptors
from .start_context import START, children

log = logging.getLogger("prefork.supervisor")

GENERATIONS_MAX = 2


class Generations:
    """The succession of generations of one pool."""

    _workings: Workings
    _reloading: Reloading

    def __init__(
        self, *, pack: Callable[[Record], None], refusal: str | None = None,
        execute: Callable[[Record, Callable[[], bool]], None] = execute, handed: Handed | None = None,
        failed: str = "",
    ) -> None:  # fmt: skip
        """`pack` adds to the record what is not the supervisor's; `refusal`: why there can be no reload. `handed`: what
        the previous image of this process handed over; `failed`: why the program did not take it over."""
        self.degraded = self.failure = ""  # the reason, in one sentence; why the last reload failed
        self.told: Callable[[ReloadResult | str], None] = lambda result: None
        self.pack_more: Callable[[Record], None] = lambda record: None  # adds what is not the pool's own
        self.resumed: Mapping[str, Any] | None = None if handed is None else handed.values
        self._handed, self._failed = handed, failed
        self._pack = pack
        self.refusal = refusal
        self._execute = execute
        self._first = 1  # of this image
        self._arriving = False  # this is a new image, and its workers have not yet taken over
        self._owed = False  # the result of the reload has not been reported yet
        self._left: list[Listener] = []  # listeners that the program no longer asks for
        self._quiet_since = 0.0
        self._started: set[int] = set()  # by the program of this image, before it served
        self._left_over = LeftOver()

    def begin(self, workings: Workings) -> None:
        """Attach to the supervisor whose parts these are, and go on with what the previous image had."""
        waiting = workings.waiting
        self._workings, self._board, self._table = workings, workings.board, workings.table
        self._reloading = Reloading(
            workings.boot_timeout, self._rehearsal_record, workings.fork, waiting.add, waiting.take_out, self._tell
        )
        self._started = children() - START.children
        if self._handed is None:
            self.current = 1
        else:
            self._resume(self._handed, self._failed)
            self._note_left_over(self._handed.values, self._failed)

    @property
    def current(self) -> int:
        """The generation in service; kept on the board."""
        return int(self._board.words[Word.GENERATION])

    @current.setter
    def current(self, generation: int) -> None:
        self._board.words[Word.GENERATION] = generation

    @property
    def reloading(self) -> bool:
        """True while a reload is in progress, before or after the exec: its result has not been reported."""
        return self._reloading.busy or self._owed

    @property
    def stage(self) -> Stage:
        return self._reloading.stage

    # A new image.

    def _resume(self, handed: Handed, failed: str) -> None:
        """Go on with what was handed over. If the program failed, nothing is replaced."""
        for packed in handed.values["children"]:
            child = resume_child(packed, self._board)
            self._table.adopt(child)
            self._workings.waiting.add(child.pidfd)
        self._board.keep_only_resumed()
        self.current = self._first = handed.values["generation"] + (not failed)
        self._arriving = self._owed = not failed
        self.degraded = failed
        if handed.values["again"]:
            self._reloading.ask()

    def _note_left_over(self, values: Mapping[str, Any], failed: str) -> None:
        """Note the children that no program knows any more: those of a program that failed are among them."""
        handed = {child["pid"] for child in values["children"]}
        unused, self._started = (self._started, set()) if failed else (set(), self._started)
        self._left_over = LeftOver(
            (START.children | unused) - handed, values.get("started", ()), unused - handed,
            lambda: any(child.pid in handed for child in self._workers()),
        )  # fmt: skip

    def arrive(self) -> None:
        """Take over for good: the loop is about to begin, and nothing before it can fail any more.

        What the previous image lent belongs to this one from now on, and listeners that the program no longer asks for
        are given up.
        """
        if self._handed is None:
            return
        handed, self._handed = self._handed, None
        vanished = {} if self.degraded else {name: handed.vanished(name) for name in handed.roles}
        handed.take()
        if self.degraded:
            self._tell(ReloadResult(False, self.degraded))
        for name, listener in vanished.items():
            if listener is not None:
                where = address_text(listener.getsockname())
                lost = " as it was before its path was removed" if has_lost_its_path(handed.values[name]) else ""
                log.info("no longer listening on %s%s", where, lost,
                         extra=event(LogEvent.LISTENER_GIVEN_UP, address=where))  # fmt: skip
                if name != METRICS and shared.narrow(listener):
                    self._left.append(listener)
                else:
                    listener.unlink()
                    listener.close()

    def wanted(self, now: float) -> int:
        """Return the generation that the pool should consist of.

        0, which lets the old one stay whole, until the accept queues of addresses that the program no longer asks for
        are served to their end.
        """
        if not self._left:
            return self.current
        if any(map(shared.queued, self._left)):
            self._quiet_since = now
        self._quiet_since = self._quiet_since or now
        if now - self._quiet_since < QUIET_S:
            return 0
        while self._left:
            self._left.pop().close()
        return self.current

    @property
    def arriving(self) -> bool:
        """True while everything is only lent to this image: if it fails, the service goes on without it."""
        return self._handed is not None

    # In every turn.

    def ask(self) -> None:
        """Ask for a reload. Where there can be none, report a failure with the reason."""
        if self.refusal is not None:
            self._tell(ReloadResult(False, f"could not reload: {self.refusal}"))
            return
        self._reloading.ask()

    def turn(self, now: float, boot_deaths: int, last_error: str) -> float:
        """Advance the reload in progress, with the exec as its last step; return when to be called again."""
        self._note_arrival(boot_deaths, last_error)
        when = self._reloading.turn(now, may_begin=self._may_begin())
        when = min(when, self._left_over.turn(now))
        if self._left:
            when = min(when, now + QUIET_S / 3)
        if self._reloading.stage is Stage.READY:
            self._exec()
        return when

    def rehearsal_ended(self, how: str) -> None:
        self._reloading.ended(how)

    def cancel(self) -> None:
        """Cancel any reload: the service is about to end."""
        self._arriving = False
        if self._owed:
            self._owed = False
            self._tell(ReloadResult(False, ABOUT_TO_END))
        self._reloading.cancel()

    def forget(self) -> None:
        """Called in a new child: close its copies of the descriptors. No other process may keep what is given up."""
        self._reloading.forget()
        self._left_over.forget()
        while self._left:
            self._left.pop().close()

    def close(self) -> None:
        """Called at the end of the service: what earlier programs have started is told to end."""
        self._left_over.end()

    def _workers(self) -> list[Child]:
        return [child for child in self._table if child.kind is ChildKind.WORKER]

    def _may_begin(self) -> bool:
        """Return whether the next reload may begin: at most two generations live at any time, and a third waits until
        the first is gone.

        A generation that is about to take over counts even if none of its workers is forked yet. Where the workers of
        this image could not take over, either they or the older ones must be gone.
        """
        generations = {child.generation for child in self._workers()}
        if self.degraded:
            sides = {generation >= self._first for generation in generations}
            return not self._arriving or len(sides) < GENERATIONS_MAX
        return not self._arriving and len(generations) < GENERATIONS_MAX

    @property
    def holding(self) -> bool:
        """True while no worker may be started: those of this image cannot start, and another reload is asked for."""
        return self._arriving and bool(self.degraded) and self._reloading.busy

    def withdrawn(self) -> list[Child]:
        """Return the workers that make room for the next generation: of the two that live, that with fewer READY."""
        if not self.holding or self.stage is not Stage.WAITING:
            return []
        old, new = self._serving(old=True), self._serving(old=False)
        return new if _ready(new) <= _ready(old) else old

    def _serving(self, *, old: bool) -> list[Child]:
        serving = [child for child in self._workers() if child.state in (ChildState.STARTING, ChildState.READY)]
        return [child for child in serving if self.is_of_this_image(child) != old]

    def is_of_this_image(self, child: Child) -> bool:
        """Return whether a child runs the code that this image has loaded, and not that of the previous image."""
        return child.generation >= self._first

    def _note_arrival(self, boot_deaths: int, last_error: str) -> None:
        if not self._arriving:
            return
        new = _ready(self._serving(old=False))
        if new and not self._serving(old=True):
            self._arrived()
        elif boot_deaths >= BOOT_DEATHS_MAX and not self.degraded:
            self.degraded = f"the new workers cannot {'all ' if new else ''}start, the old ones serve on: {last_error}"
            self._owed = False
            self._tell(ReloadResult(False, self.degraded))
        elif new and not boot_deaths:
            self.degraded = ""

    def _arrived(self) -> None:
        self._arriving, self.degraded, self.failure = False, "", ""
        said = f"generation {self.current} is in service"
        if self._owed:
            self._owed = False
            self._tell(ReloadResult(True, said))
        else:
            log.info("reload: %s after all", said, extra=event(LogEvent.RELOADED, reason=said))
            self._note_last(True)

    # Records.

    def _rehearsal_record(self) -> Record:
        record = Record(self._workings.values())
        record.add("passed", (passed := systemd.still_open(), passed))
        self._pack(record)
        return record

    def _record(self) -> Record:
        """Return the whole record, for the next image."""
        record = self._rehearsal_record()
        record.add("board", pack_board(self._board))
        record.values.update(generation=self.current, again=self._reloading.again, children=[])
        for child in self._table:
            values, fds = pack_child(child)
            record.values["children"].append(values)
            record.fds += fds
        record.values["started"] = [*self._started, *self._left_over.ours]
        record.add("nudge", self._workings.waiting.pack_nudge())
        record.add("companions", self._workings.companions())
        record.add("connections", self._workings.connections())
        record.add("queues", self._workings.queues())
        self.pack_more(record)
        record.add("held", (held := still_held.found(record.fds), held))
        return record

    def _exec(self) -> None:
        """Replace this image by a new one.

        Returns if the exec failed, and then nothing has changed; or if a command has to be obeyed first.
        """
        log.info("reload: replacing this image by a new one of the same program", extra=event(LogEvent.RELOAD_EXEC))
        if given_up := flush_here(interrupted_after):
            log.warning("%s", given_up_sentence(given_up), extra=event(LogEvent.FLUSH_GIVEN_UP, streams=given_up))
        with blocked() as mask:
            if self._workings.asked():  # a signal that comes later stays pending over the exec
                return
            try:
                require_descriptors()
                record = self._record()
                record.values |= {"mask": sorted(mask - HEARD), "handled": START.attributes.theirs()}
                record.values["soft_limit"] = pack_limit()
                self._execute(record, self._workings.asked)
            except OSError as exc:
                self._reloading.done(ReloadResult(False, not_run(exc)))

    # Reports.

    def _tell(self, told: ReloadResult | str) -> None:
        if isinstance(told, str):
            log.info("reload: %s", told, extra=event(LogEvent.RELOAD_PROGRESS, step=told))
        else:
            self._count(told.ok)
            self.failure = "" if told.ok else told.reason
            if told.ok:
                log.info("reload: %s", told.reason, extra=event(LogEvent.RELOADED, reason=told.reason))
            else:
                log.error(
                    "reload failed: %s%s",
                    told.reason,
                    f"\n{told.output}" if told.output else "",
                    extra=event(LogEvent.RELOAD_FAILED, reason=told.reason, detail=told.output or None),
                )
        self.told(told)

    def _count(self, ok: bool) -> None:
        with self._board.change() as words:
            words[Word.RELOADS_OK if ok else Word.RELOADS_FAILED] += 1
            self._note_last(ok)

    def _note_last(self, ok: bool) -> None:
        with self._board.change() as words:
            words[Word.LAST_RELOAD_OK] = ok
            words[Word.LAST_RELOAD_AT_NS] = time_ns()


def _ready(children: list[Child]) -> int:
    return sum(child.state is ChildState.READY for child in children)
