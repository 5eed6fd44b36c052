"""What the companions of a tested service do, and what they tell of it.

Runs in a companion's process, as functions that the program declares. Each tells `begun` first.
"""

import atexit
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil

from tests.support.programs.served import tell


def begin(name: str, **more: Any) -> None:
    tell("begun", name=name, **more)


def steady(server: Any) -> None:
    """Runs until it is told to end, and says what it has and has not."""
    atexit.register(lambda: tell("atexit", name="steady"))
    mine = psutil.Process()
    begin(
        "steady", slot=server.slot, variable=os.environ.get("PREFORK_SLOT"), draining=server.draining,
        title=mine.cmdline()[0], listens=_listening(), fileno=server.fileno(),
    )  # fmt: skip
    server.wait_draining()
    tell("told", name="steady", draining=server.draining)


def _listening() -> list[str]:
    """The listening sockets among the descriptors of this process."""
    found = []
    for name in os.listdir("/proc/self/fd"):
        try:
            sock = socket.socket(fileno=os.dup(int(name)))
        except OSError:  # none
            continue
        if sock.family != socket.AF_UNIX and sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
            found.append(str(sock.getsockname()))
        sock.close()
    return found


def deaf(server: Any) -> None:
    """Never asks whether it is to end."""
    begin("deaf")
    while True:
        time.sleep(60)


def ignoring(server: Any) -> None:
    """Ignores TERM, and never asks whether it is to end."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    begin("ignoring")
    while True:
        time.sleep(60)


def demoted(server: Any) -> None:
    """Changes its user, after which the kernel no longer tells it of the master's death by itself."""
    os.setgid(65534)
    os.setuid(65534)
    server.wait_draining(0)
    begin("demoted")
    server.wait_draining()


def slow(server: Any) -> None:
    """Takes a while to end."""
    begin("slow")
    server.wait_draining()
    time.sleep(0.3)
    tell("told", name="slow")


def returns(server: Any) -> None:
    begin("returns")


def raises(server: Any) -> None:
    begin("raises")
    raise RuntimeError("asked to raise")


def leaves(server: Any) -> None:
    begin("leaves")
    sys.exit(7)


def threaded(server: Any) -> None:
    """Returns at once, and lives on by a thread, which asks the server itself."""
    begin("threaded")

    def work() -> None:
        server.wait_draining()
        tell("told", name="threaded", draining=server.draining)

    threading.Thread(target=work).start()


def forks(server: Any) -> None:
    """Forks a process that returns, one that raises, one that leaves, and one that waits to be told."""
    ends: tuple[Callable[[], object], ...] = (lambda: None, lambda: 1 / 0, lambda: sys.exit(5))
    statuses = []
    for end in ends:
        pid = os.fork()
        if pid == 0:
            end()
            return
        statuses.append(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
    pid = os.fork()
    if pid == 0:
        server.wait_draining()
        os._exit(9)
    begin("forks", statuses=statuses)
    server.wait_draining()
    tell("told", name="forks", status=os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))


def asks_for_the_end(server: Any) -> None:
    begin("asks_for_the_end")
    server.shutdown()
    server.wait_draining()
    tell("told", name="asks_for_the_end")


def job(server: Any) -> None:
    """A periodic job, which does what the file `job` says."""
    said = Path("job").read_text() if Path("job").exists() else ""
    begin("job", said=said)
    if said == "raise":
        raise RuntimeError("asked to raise")
    if said == "take long":
        time.sleep(0.5)
    if said == "hang":
        time.sleep(60)
    if said == "listen":
        server.wait_draining()
    if said == "die":
        Path("job").unlink()
        os._exit(3)
    tell("done", name="job")
