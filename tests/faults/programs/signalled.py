"""A program whose own processes, of a handler and of the master, are sent each signal: it tells how they ended."""

import multiprocessing
import os
import signal
from typing import Any

from tests.support.programs.served import Told, Who, tell

ENDS = [signal.SIGTERM, signal.SIGQUIT, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2]


def wait_for_signals(ready: Any) -> None:
    ready.close()
    while True:
        signal.pause()


def ended_by(signum: int) -> int | None:
    """The exit status of a process of ours that was sent this."""
    reading, writing = multiprocessing.Pipe(False)
    process = multiprocessing.get_context("fork").Process(target=wait_for_signals, args=(writing,))
    process.start()
    writing.close()
    reading.poll(None)
    reading.close()
    assert process.pid is not None
    os.kill(process.pid, signum)
    process.join(5)
    code = process.exitcode
    process.kill()
    process.join()
    return code


def end_each() -> dict[int, int | None]:
    return {int(signum): ended_by(signum) for signum in ENDS}


class Handler(Who):
    def do_signals(self) -> None:
        tell("signalled", codes=end_each())


class Hooks(Told):
    asked = False

    def service_actions(self) -> None:
        super().service_actions()
        if os.path.exists("ask") and not self.asked:
            self.asked = True
            tell("signalled", codes=end_each())
