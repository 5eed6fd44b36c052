"""A service whose handler ends its worker by an exception, with things of the program's begun there: `Hooks`.
`Endless` has begun a thread that never ends. `Measured` is for coverage.py: two branches, one line each."""

import atexit
import concurrent.futures
import multiprocessing
import signal
import threading
import time
from typing import Any

from tests.support.programs.served import Told, Who, tell

A_WHILE_S = 0.2
mp = multiprocessing.get_context("fork")
words: Any = mp.Queue()


class Abort(BaseException):
    """Goes through every `except Exception`, and ends the loop."""


class Handler(Who):
    def do_crash(self) -> None:
        words.put("x" * 300_000)
        raise Abort("asked to")

    def do_leave(self) -> None:
        words.put("x" * 300_000)
        raise SystemExit("no database")


class Hooks(Told):
    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.asked = threading.Event()

    def worker_started(self) -> None:
        super().worker_started()
        atexit.register(tell, "finished", kind="atexit")
        threading.Thread(target=self.finish_later).start()
        self.processes = concurrent.futures.ProcessPoolExecutor(1, mp)
        self.processes.submit(int).result()
        child = mp.Process(target=signal.pause, daemon=True)
        child.start()
        tell("processes", pids=[child.pid, *self.processes._processes])

    def shutdown_request(self, request: Any) -> None:
        super().shutdown_request(request)
        self.asked.set()

    def finish_later(self) -> None:
        self.asked.wait()
        time.sleep(A_WHILE_S)  # longer than what is left of the worker's life
        tell("finished", kind="thread")

    def serve_forever(self, *args: Any) -> None:
        threading.Thread(target=self.read_words, daemon=True).start()
        super().serve_forever(*args)

    def read_words(self) -> None:
        tell("read", size=len(words.get()))


class Endless(Told):
    def worker_started(self) -> None:
        super().worker_started()
        threading.Thread(target=threading.Event().wait, name="endless").start()


class NeverReady(Told):
    """Begins things before its boot fails."""

    def worker_started(self) -> None:
        super().worker_started()
        atexit.register(tell, "finished", kind="atexit")
        threading.Thread(target=self.finish_later).start()
        raise RuntimeError("no database")

    def finish_later(self) -> None:
        time.sleep(A_WHILE_S)
        tell("finished", kind="thread")


class Measured(Who):
    def do_left(self) -> str:
        return "left"

    def do_right(self) -> str:
        return "right"
