"""A service whose master is stopped as soon as its first worker has started: what that becomes is not looked at."""

import os
import signal
from pathlib import Path

from tests.support.programs.served import Told, Who


class Handler(Who):
    def do_leave(self) -> None:
        self.server.shutdown_nowait()
        os._exit(0)


class Hooks(Told):
    def worker_started(self) -> None:
        super().worker_started()
        if not os.path.exists("stopped"):
            Path("stopped").touch()
            os.kill(os.getppid(), signal.SIGSTOP)
