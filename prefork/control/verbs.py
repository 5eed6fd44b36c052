"""Carry out the verbs of the control socket: the only module that knows both its protocol and the supervisor.

Runs in the master's turns and must not wait. A verb that takes time is a generator: it is resumed in every turn, yields
a sentence of progress or None, and returns the answer.
"""

import logging
from collections.abc import Generator
from time import monotonic
from typing import Any

from prefork.metrics.facts import ChildKind
from prefork.metrics.log_events import LogEvent, event
from prefork.metrics.scoreboard import LOG_FOLLOWED, LOG_KEPT
from prefork.workers import sinks

from .. import logs
from ..commands import Command
from ..master import signalling
from ..master.children import Child, ChildState
from ..master.policy import BOOT_DEATHS_MAX, Phase
from ..master.supervisor import Supervisor
from ..reload.generations import Generations
from ..reload.reloading import ReloadResult, Stage
from . import protocol, report
from .connection import Peer
from .facts import Facts
from .protocol import Request

log = logging.getLogger("prefork.supervisor")

STACKS_WITHIN_S = 3.0  # a worker that does not answer for so long is stopped, or blocked in the kernel
REOPENED_WITHIN_S = 1.0  # an idle process has done it by then; a busy one does so with its next line
TOLD_MAX = 256

Answer = dict[str, Any]
Work = Generator[str | None, None, Answer]


class PlaceInQueue:
    """A client's place in the queue of reloads, handed over to the next image. None: it waits for no reload."""

    def __init__(self, skip: int | None = None) -> None:
        self.skip = skip  # the number of results to skip, which are for earlier reloads


class Verbs(Facts):
    """Answer requests by querying or commanding the supervisor."""

    def __init__(self, supervisor: Supervisor, generations: Generations) -> None:
        super().__init__(supervisor, generations)
        self._told: list[ReloadResult | str] = []
        self._told_before = 0  # the number of dropped entries
        generations.told = self._note

    def answer(self, request: Request, peer: Peer, place: PlaceInQueue) -> Answer | Work:
        """Carry out a request. Return its answer, or the work that will return it. A reload sets `place`."""
        command, argument, supervisor = request.row.command, request.argument, self._supervisor
        if not request.row.looks:
            log.info(
                "control: %s asks for %s%s", peer, request.row.verb, "" if argument is None else f" {argument}",
                extra=event(LogEvent.CONTROL_REQUEST, peer=str(peer), verb=request.row.verb, argument=argument),
            )  # fmt: skip
        match command:
            case Command.STATUS:
                return protocol.result(report.status_report(self._facts()))
            case Command.WORKERS:
                return self._report_workers(argument)
            case Command.VERSION:
                return protocol.result(report.version(self._facts()))
            case Command.STACKS:
                return self._stacks(argument)
            case Command.REOPEN:
                return self._reopen()
            case Command.DRAIN | Command.STOP:
                supervisor.obey(command)
                return self._ending()
        if supervisor.phase not in (Phase.STARTING, Phase.RUNNING):
            return protocol.error(f"could not {request.row.verb}: the service is about to end")
        match command:
            case Command.RELOAD:
                place.skip = self._before_mine()
                return self.reload(place)
            case Command.SCALE:
                return self._scale(int(argument or 1))
            case Command.LOG_LEVEL:
                return self._log_level(str(argument))
            case Command.RELOAD_TLS:
                return self._reload_tls()
            case Command.RESTART if supervisor.service.work is None:
                return protocol.error(f"could not restart: there is no program to start; {self._generations.degraded}")
            case Command.RESTART if isinstance(argument, str):
                return self._restart_companion(argument)
            case Command.RESTART:
                return self._restart(argument)
        raise AssertionError(f"{command} has a verb and nobody to do it")

    # Reports.

    def _report_workers(self, slot: int | str | None) -> Answer:
        if slot is not None and not self._chosen(slot):
            return protocol.error(f"could not show workers: there is no worker {slot}")
        return protocol.result(report.workers(self._facts(look=True, slot=slot), slot))

    # Verbs, most of which take time.

    def _no_companion(self, name: str) -> str:
        """Return why there is no companion of this name."""
        table = self._supervisor.companions.table
        known = [] if table is None else list(table.intervals)
        return f"there is no companion {ascii(name)[1:-1]}; " + (
            f"this service has {', '.join(known)}" if known else "this service has none"
        )

    def _stacks(self, which: int | str | None) -> Work:
        table = self._supervisor.table
        companions = [child for name, child in self._companions_living().items() if which in (None, name)]
        chosen = [child for child in (*self._chosen(which), *companions) if child.state is not ChildState.KILLING]
        if not chosen and which is not None:
            why_not = self._no_companion(which) if isinstance(which, str) else f"there is no worker {which}"
            return protocol.error(f"could not get stacks: {why_not}")
        for child in chosen:
            signalling.show_stacks(child, self._supervisor.clock.now())
        until = monotonic() + STACKS_WITHIN_S
        while any(child.stacks_wanted for child in chosen if child in table) and monotonic() < until:
            yield None
        return protocol.result({
            "workers": [_stacks_of(child) for child in chosen if not child.name],
            "companions": [_stacks_of(child) for child in chosen if child.name],
        })  # fmt: skip

    def _reopen(self) -> Work:
        """Reopen the log file, and tell how many of the processes have done so."""
        why_not, handler = self._supervisor.reopen(), sinks.installed()
        if why_not or handler is None:
            return protocol.error(why_not)
        number, told = handler.sink.number, [c for c in self._supervisor.table if c.kind in signalling.POKED]
        until = monotonic() + REOPENED_WITHIN_S
        while behind := [child for child in told if _lives(child) and child.slot.words[LOG_FOLLOWED] < number]:
            if monotonic() >= until:
                break
            yield None
        everybody = 1 + sum(map(_lives, told))
        how_many = f"reopened by {everybody - len(behind)} of {_counted(everybody, 'process', 'processes')}"
        if kept := [child for child in behind if child.slot.words[LOG_KEPT] >= number]:
            return protocol.error(f"{how_many}; going on in the old log file: {', '.join(map(str, kept))}")
        return protocol.result({"reopened": how_many, "late": [str(child) for child in behind]})

    def _ending(self) -> Work:
        """Report progress until the last turn. Nothing can be sent after that, when the connection is closed."""
        said = ""
        while self._supervisor.phase is not Phase.STOPPED:
            before, said = said, self._in_hand()
            yield None if said == before else said
        return protocol.result({"phase": "stopped"})

    def _in_hand(self) -> str:
        workers, now_ns = self._workers(), self._supervisor.clock.stamp_ns()
        requests = sum(len(child.reader.look(now_ns).busy_since_ns) for child in workers)
        phase = self._supervisor.phase.name.lower()
        said = f"{phase}: {_counted(len(workers), 'worker')} left, {_counted(requests, 'request')} in hand"
        companions = self._supervisor.table.count(ChildKind.COMPANION)
        return f"{said}, {_counted(companions, 'companion')} left" if companions else said

    def _scale(self, workers: int) -> Answer:
        if workers > (room := self._supervisor.limits.room):
            return protocol.error(f"could not scale: beside the companions there is room for {room} workers at most")
        if self._supervisor.limits.one_size:
            return protocol.error("could not scale: with peer_affinity each worker has its place; it needs a restart")
        limits = self._supervisor.scale(workers)
        return protocol.result({"min_children": limits.min_children, "max_children": limits.max_children})

    def _log_level(self, level: str) -> Work:
        """Change the level. Workers read it from `prefork run`'s log handler; without that, they are replaced."""
        logs.set_level(level)
        answer: Answer = protocol.result({}) if sinks.installed() else (yield from self._restart(None))
        return protocol.result({"level": level}) if answer["ok"] else answer

    def _restart(self, slot: int | str | None) -> Work:
        chosen = [child for child in self._chosen(slot) if child.state in (ChildState.STARTING, ChildState.READY)]
        if slot is None:
            self._supervisor.obey(Command.RESTART)
        elif not chosen:
            return protocol.error(f"could not restart: there is no worker {slot} that serves")
        for child in chosen:
            child.replace = True
        said = 0
        while True:
            yield None
            replaced = sum(child.state not in (ChildState.STARTING, ChildState.READY) for child in chosen)
            if replaced == len(chosen):
                return protocol.result({"replaced": replaced})
            if why_not := self._why_none_starts():
                return protocol.error(f"could not restart: {why_not}")
            if replaced != said:
                said = replaced
                yield f"{replaced} of {_counted(len(chosen), 'worker')} replaced"

    def _reload_tls(self) -> Answer | Work:
        """Replace the TLS context by one that is made anew, and every worker that has the old one."""
        renew = self._supervisor.service.renew_tls
        if renew is None:
            return protocol.error("could not reload-tls: this service has no TLS of prefork's own")
        try:
            renew()
        except (Exception, SystemExit) as exc:  # create_ssl_context() is the program's
            log.error("could not reload-tls, the old certificate stays in service: %s", exc,
                      extra=event(LogEvent.RELOAD_TLS_FAILED, reason=str(exc)))  # fmt: skip
            return protocol.error(f"could not reload-tls: {exc}; the old certificate stays in service")
        return self._restart(None)

    def _why_none_starts(self) -> str:
        if self._supervisor.phase not in (Phase.STARTING, Phase.RUNNING):
            return "the service is about to end"
        if self._supervisor.pool.boot_deaths >= BOOT_DEATHS_MAX:
            return f"new workers die at boot: {self._supervisor.last_error}"
        return ""

    def _restart_companion(self, name: str) -> Work:
        """Replace a companion; one that waits in back-off is started now."""
        companions = self._supervisor.companions
        if name not in companions.specs:
            return protocol.error(f"could not restart: {self._no_companion(name)}")
        old = self._companions_living().get(name)
        if old is None:
            companions.start_now(name)
        else:
            old.replace = True
        while True:
            yield None
            new = self._companions_living().get(name)
            if new is not None and new is not old and new.state is ChildState.READY:
                return protocol.result({"companion": name, "pid": new.pid})
            if new is None and companions.back_off[name].ends:
                return protocol.error(f"could not restart: companion {name} has ended again; the log says how")
            if why_not := self._why_none_starts():
                return protocol.error(f"could not restart: {why_not}")

    # Reloads. Every waiting client gets the results in the order of the requests.

    def _note(self, told: ReloadResult | str) -> None:
        self._told.append(told)
        if len(self._told) > TOLD_MAX:
            del self._told[0]
            self._told_before += 1

    def _before_mine(self) -> int:
        """Return how many results precede that of a reload requested now: 1 while another one is running."""
        generations = self._generations
        return int(generations.reloading and generations.stage is not Stage.WAITING)

    def reload(self, place: PlaceInQueue, *, asked: bool = False) -> Work:
        """Wait for a reload. `asked` is true if the previous image has requested it and handed the client over."""
        seen = len(self._told) + self._told_before
        generations = self._generations
        if asked and generations.degraded and not generations.reloading:
            return _reloaded(ReloadResult(False, generations.degraded))
        if not asked:
            self._supervisor.obey(Command.RELOAD)
            yield None
            if generations.stage is Stage.WAITING:
                yield "waiting: two generations live; this one begins when the older one is gone"
        while True:
            at = max(0, seen - self._told_before)
            if at >= len(self._told):
                yield None
                continue
            told = self._told[at]
            seen = max(seen, self._told_before) + 1
            if isinstance(told, str):
                yield told
            elif place.skip:
                place.skip -= 1
                yield "an earlier reload has ended; this one begins"
            else:
                return _reloaded(told)


def _counted(number: int, what: str, many: str = "") -> str:
    return f"{number} {what if number == 1 else many or what + 's'}"


def _lives(child: Child) -> bool:
    return child.state is not ChildState.REAPED


def _reloaded(told: ReloadResult) -> Answer:
    wrong = {**protocol.error(told.reason), "output": told.output}
    return protocol.result({"reason": told.reason}) if told.ok else wrong


def _stacks_of(child: Child) -> Answer:
    text = child.stacks_text
    if child.stacks_wanted:
        text = "it has ended" if child.state is ChildState.REAPED else "it does not answer; is it stopped?"
    child.stacks_wanted, child.stacks_text = False, ""
    return {**({"name": child.name} if child.name else {"slot": child.number}), "pid": child.pid, "stacks": text}
