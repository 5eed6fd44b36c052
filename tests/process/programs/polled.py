"""Hooks of a server whose `statistics()` four threads ask for, from before the first fork until after the close."""

import signal
import sys
import threading
import time
from typing import Any

from tests.support.programs.served import Told, tell

polls, stop = [0], threading.Event()
sys.setswitchinterval(1e-5)


class Hooks(Told):
    def serve_forever(self, *args: Any) -> None:
        signal.signal(signal.SIGTERM, lambda *args: self.shutdown_nowait())
        for _ in range(4):
            threading.Thread(target=self.poll).start()
        super().serve_forever(*args)

    def server_close(self) -> None:
        super().server_close()
        before = polls[0]
        while polls[0] < before + 100:
            time.sleep(0)
        stop.set()

    def poll(self) -> None:
        try:
            while not stop.is_set():
                self.statistics()
                polls[0] += 1
        except BaseException as exc:
            tell("poll_raised", error=repr(exc))
            raise
