"""A simulated pool that can be reloaded: its rehearsal is a fake process, its exec the next supervisor.

Runs in the test's process. What goes over to the next supervisor is what goes over an exec: the record, as JSON, and
the descriptors under their numbers. The old objects are dropped, as an exec drops them.
"""

import errno
import json
import os
from collections.abc import Callable, Sequence
from enum import Enum

from prefork.commands import Command
from prefork.master.policy import Limits
from prefork.metrics.board import Board
from prefork.metrics.scoreboard import Slot
from prefork.reload import degraded
from prefork.reload.generations import Generations
from prefork.reload.handover import Handed, Record
from prefork.workers.wakeup import Wakeup
from tests.support.programs.simulation import LIMITS, FakeProcess, Simulation


class Program(Enum):
    """The fate of the program in its next image."""

    WORKS = "comes to its serve_forever()"
    FAILS = "raises, or ends"
    IS_GONE = "execve refuses"


class _Exec(BaseException):
    """The supervisor does not return from an exec."""

    def __init__(self, record: Record) -> None:
        self.record = record


class Reloadable(Simulation):
    """`images` counts the images of the master; `program`, `takes_s` and `meanwhile` say how the next one comes."""

    def __init__(
        self, limits: Limits = LIMITS, *, lanes: int = 1, max_lifetime: float | None = None,
        companions: Sequence[str] = (),
    ) -> None:  # fmt: skip
        super().__init__(limits, lanes=lanes, max_lifetime=max_lifetime, companions=companions)
        self.images = 1
        self.born_of: dict[int, int] = {}  # the image that started a process, by pid
        self.program = Program.WORKS
        self.takes_s = 0.0  # from the exec to the new image's first turn
        self.meanwhile: list[Command] = []  # asked for in that time
        self.on_image: Callable[[], None] = lambda: None
        self._limits = limits
        self._record = Record({})
        self._mapped: list[Slot | Board] = []  # of images before: memory that lives on, descriptors that are not theirs

    def succession(self, handed: Handed | None, failed: str) -> Generations:
        return Generations(pack=self._pack, execute=self._execute, handed=handed, failed=failed)

    def _pack(self, record: Record) -> None:
        self._record = record
        record.add("own", ([], []))
        record.values["fixed"] = {}

    def _execute(self, record: Record, asked: Callable[[], bool]) -> None:
        if self.program is Program.IS_GONE:
            raise OSError(errno.ENOENT, os.strerror(errno.ENOENT))
        if not asked():
            raise _Exec(record)

    def _nudging(self, process: FakeProcess) -> None:
        super()._nudging(process)
        if process.rehearsal:
            process.word = os.dup(self._record.values["pipe"])
        elif not process.companion:
            self.born_of[process.pid] = self.images

    def turn(self) -> None:
        try:
            self.supervisor.turn()
        except _Exec as exc:
            self._next_image(exc.record)
            self.turn()
            return
        for check in self.checks:
            check()

    def _next_image(self, record: Record) -> None:
        self.supervisor.waiting.forget()  # exec closes these: the rest is handed over
        self._mapped += [self.board, *(child.slot for child in self.supervisor.table)]
        self.images += 1
        self.ns += round(self.takes_s * 1e9)
        handed = Handed(json.loads(json.dumps(record.values)))
        self.board, self.wakeup = handed.board(), Wakeup()
        if self.program is Program.WORKS:
            self.supervisor = self.image(self.service, self._limits, handed)
        else:
            service = self.service._replace(work=None)
            self.supervisor = self.image(service, degraded.limits(handed.values), handed, "the program failed")
        self.on_image()
        for command in self.meanwhile:
            self.supervisor.mailbox.post(command)
        self.meanwhile = []

    def close(self) -> None:
        super().close()
        for memory in self._mapped:  # a log record may hold them still
            memory.fd = os.open(os.devnull, os.O_RDONLY)
            if isinstance(memory, Slot):
                memory.close()
            else:
                memory.forget()

    @property
    def alive(self) -> set[int]:
        """The images of which a worker lives or waits to be reaped."""
        return {self.born_of[child.pid] for child in self.supervisor.table if child.pid in self.born_of}
