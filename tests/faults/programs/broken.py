"""Hooks of a service whose workers fail at boot as the file `broken` says, while it is there."""

import os
import signal
import sys
import time
from pathlib import Path

from tests.support.programs.served import Told, tell


class Hooks(Told):
    def worker_started(self) -> None:
        try:
            end = Path("broken").read_text()
        except FileNotFoundError:
            super().worker_started()
            return
        tell("broken", end=end)
        if end == "raises":
            raise RuntimeError("no database")
        if end == "exits":
            sys.exit(5)
        if end == "hangs":
            while True:
                time.sleep(60)
        os.kill(os.getpid(), getattr(signal, end))
