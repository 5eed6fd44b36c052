"""What a program may do, in the master, to the streams and to logging; HOSTILE names which of it, by commas.

Each is done before the service begins, and so again in each image. `Hooks` goes before the server's class.
"""

import logging
import logging.config
import logging.handlers
import os
import queue
import signal
import sys
import threading
import time
import warnings
from collections.abc import Callable

from prefork import PreForkingTCPServer
from tests.support.programs.served import tell

room = threading.Lock()  # of a queue
UNREAD: list[int] = []  # the read ends of pipes that nobody reads
LINE = "x" * 100


class Raises(logging.Handler):
    """Its emit() raises, and so does its flush()."""

    def emit(self, record: logging.LogRecord) -> None:
        raise ValueError("of emit()")

    def flush(self) -> None:
        raise ValueError("of flush()")


class Blocks(logging.Handler):
    """Its emit() waits for ever in the master, and its flush() everywhere."""

    def emit(self, record: logging.LogRecord) -> None:
        if os.getpid() == MASTER:
            tell("blocks")
            threading.Event().wait()

    def flush(self) -> None:
        threading.Event().wait()


class Full(logging.handlers.QueueHandler):
    """Its queue is full, and it waits for room."""

    def enqueue(self, record: logging.LogRecord) -> None:
        if os.getpid() == MASTER:
            room.acquire()


MASTER = os.getpid()
END = threading.Event()  # of the service


def add(handler: logging.Handler) -> None:
    logging.getLogger().addHandler(handler)


def blocks() -> None:
    add(Blocks())


def raises() -> None:
    logging.getLogger().handlers.insert(0, Raises())


def filter_raises() -> None:
    def raising(record: logging.LogRecord) -> bool:
        raise ValueError("of a filter")

    logging.getLogger("prefork.server").addFilter(raising)


def full_queue() -> None:
    room.acquire()
    add(Full(queue.SimpleQueue()))


class Held(logging.Handler):
    """A handler with a lock that is not made anew in a new process."""

    def createLock(self) -> None:
        self.lock = threading.RLock()


def lock_for_ever() -> None:
    """A thread of the program's hangs inside a handler."""
    handler, inside = Held(), threading.Event()

    def hang() -> None:
        handler.acquire()
        inside.set()
        threading.Event().wait()

    threading.Thread(target=hang, daemon=True).start()
    inside.wait()
    add(handler)


def closed_stream() -> None:
    stream = open(os.devnull, "w")  # noqa: SIM115
    add(logging.StreamHandler(stream))
    stream.close()


def pipe(*fds: int, full: bool) -> None:
    """Put a pipe behind these descriptors: full and never read, or without a reader."""
    read, write = os.pipe()
    if full:
        os.set_blocking(write, False)
        try:
            while True:
                os.write(write, bytes(4096))
        except BlockingIOError:
            pass
        os.set_blocking(write, True)
        UNREAD.append(read)
    else:
        os.close(read)
    for fd in fds:
        os.dup2(write, fd)
    os.close(write)


def stdout_full() -> None:
    pipe(1, full=True)
    add(logging.StreamHandler(sys.stdout))


def stuck_printer() -> None:
    """A thread hangs in print(), with the lock of stdout, at every fork."""
    pipe(1, full=True)

    def hang() -> None:
        while True:
            print(LINE, flush=True)

    threading.Thread(target=hang, daemon=True).start()


def stderr_full() -> None:
    pipe(2, full=True)


def reader_gone() -> None:
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)
    pipe(1, 2, full=False)
    add(logging.StreamHandler(sys.stdout))


def disk_full() -> None:
    sys.stdout = open("/dev/full", "w")  # noqa: SIM115
    add(logging.StreamHandler(sys.stdout))


def streams_gone() -> None:
    sys.stdout, sys.stderr = None, object()


def standard_descriptors_closed() -> None:
    for fd in (0, 1, 2):
        os.close(fd)


def hooks_raise() -> None:
    def raising(*args: object, **kwargs: object) -> None:
        raise ValueError("of a hook")

    sys.excepthook = sys.unraisablehook = threading.excepthook = warnings.showwarning = raising
    warnings.resetwarnings()
    warnings.simplefilter("error")
    threading.Thread(target=threading.Event().wait, daemon=True).start()


def logging_off() -> None:
    logging.config.dictConfig({"version": 1})
    logging.raiseExceptions = False
    logging.shutdown()


def file() -> None:
    """Not hostile: where the log is then to be found."""
    add(logging.FileHandler("file.log"))


def hot_threads() -> None:
    """Threads that log and print all the time: to a file, to stdout, and to a stdout of the program's own."""
    hot_log = logging.getLogger("hot")
    hot_log.propagate = False
    hot_log.addHandler(logging.FileHandler("hot.log", "w"))
    sys.stdout = open("hot.out", "w", buffering=1)  # noqa: SIM115

    def hot(log: Callable[[str], object]) -> None:
        while not END.is_set():
            log(LINE)
            time.sleep(0)

    def hot_print(line: str) -> None:
        print(line * 40, flush=True)

    def hot_stderr(line: str) -> None:
        print(line, file=sys.__stderr__)

    os.dup2(os.open("hot.err", os.O_WRONLY | os.O_CREAT, 0o600), 2)
    for log in (hot_log.error, hot_print, hot_stderr):
        threading.Thread(target=hot, args=(log,)).start()


class Hooks(PreForkingTCPServer):
    """Does what HOSTILE says, and prints what nobody has flushed yet at each end."""

    def serve_forever(self, poll_interval: float | None = None) -> None:
        global MASTER
        MASTER = os.getpid()
        for name in os.environ["HOSTILE"].split(","):
            globals()[name]()
        self.say()
        try:
            super().serve_forever(poll_interval)
        finally:
            END.set()

    def worker_stopping(self) -> None:
        self.say()
        super().worker_stopping()

    def say(self) -> None:
        stuck = "stuck_printer" in os.environ["HOSTILE"] and os.getpid() == MASTER
        if sys.stdout is not None and "reader_gone" not in os.environ["HOSTILE"] and not stuck:
            sys.stdout.write("not flushed")
