"""A service that leaves to its end everything that a program can: begun in each worker, and in the master before it
serves. `Quick` leaves an atexit function and a thread, both of which a worker that is stopped does not wait for."""

import atexit
import concurrent.futures
import multiprocessing.util
import os
import signal
import tempfile
import threading
import weakref
from typing import Any

from tests.support.programs.served import Told, tell

mp = multiprocessing.get_context("fork")
words: Any = mp.Queue()
told = threading.Event()  # of a worker: worker_draining() was called
kept: list[Any] = []


def finished(kind: str) -> None:
    tell("finished", kind=kind)


def wait_and_finish(kind: str) -> None:
    told.wait()
    finished(kind)


def read_words() -> None:
    while True:
        pid, word = words.get()
        if pid is None:
            return
        tell("read", by=pid, size=len(word))


class Thing:
    pass


def begin() -> None:
    manager, executor = mp.Manager(), concurrent.futures.ThreadPoolExecutor()
    kept[:0] = [Thing(), manager, executor]  # what the master has kept stays
    atexit.register(finished, "atexit")
    weakref.finalize(kept[0], finished, "finalize")
    multiprocessing.util.Finalize(None, finished, args=("multiprocessing",), exitpriority=1)
    child = mp.Process(target=signal.pause, daemon=True)
    child.start()
    processes = concurrent.futures.ProcessPoolExecutor(1, mp)
    processes.submit(os.getpid).result()
    kept.append(processes)
    tell("processes", pids=[child.pid, manager._process.pid, *processes._processes])  # type: ignore[attr-defined]


class Hooks(Told):
    def worker_started(self) -> None:
        super().worker_started()
        tell("inherited", value=kept[1].dict(a=1)["a"])  # of the master's manager
        begin()
        threading.Thread(target=wait_and_finish, args=("thread",)).start()
        kept[2].submit(wait_and_finish, "executor")

    def worker_draining(self) -> None:
        tell("worker_draining", thread=threading.current_thread() is not threading.main_thread())
        told.set()

    def worker_stopping(self) -> None:
        super().worker_stopping()
        words.put((os.getpid(), "x" * 300_000))

    def serve_forever(self, *args: Any) -> None:
        begin()
        words.put((os.getpid(), "first"))  # the master's feeder thread stays in the master
        self.folder = tempfile.TemporaryDirectory()
        reader = threading.Thread(target=read_words)
        reader.start()
        super().serve_forever(*args)
        words.put((None, ""))
        reader.join()
        told.set()
        tell("served", folder=os.path.exists(self.folder.name), manager=kept[1].dict(a=1)["a"])


class Quick(Told):
    def worker_started(self) -> None:
        super().worker_started()
        atexit.register(tell, "finished")
        threading.Thread(target=threading.Event().wait, daemon=False).start()

    def worker_draining(self) -> None:
        tell("finished")
