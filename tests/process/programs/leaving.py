"""Hooks of a program that leaves `serve_forever()` in the master by SystemExit: from its handler of TERM or, told by
USR2, from `service_actions()`. From USR1 on that raises errors, of one kind in turn with another."""

import signal
import sys
from typing import Any

from tests.support.programs.served import Told, tell


def leave(*args: Any) -> None:
    sys.exit(5)


class Hooks(Told):
    faults: tuple[BaseException, ...] = ()
    told_to_end = False

    def serve_forever(self, *args: Any) -> None:
        signal.signal(signal.SIGTERM, leave)
        signal.signal(signal.SIGUSR1, self.begin)
        signal.signal(signal.SIGUSR2, self.end)
        super().serve_forever(0.02)

    def begin(self, *args: Any) -> None:
        self.faults = (OSError(5, "of the kernel's"), ValueError("of the program's"))

    def end(self, *args: Any) -> None:
        self.told_to_end = True

    def service_actions(self) -> None:
        super().service_actions()
        if self.told_to_end:
            self.told_to_end, self.faults = False, ()
            raise SystemExit(6)
        if self.faults:
            fault, *others = self.faults
            tell("raised")
            self.faults = (*others, fault)
            raise type(fault)(*fault.args)
