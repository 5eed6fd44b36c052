"""Room for a pool: whether the kernel lets this process do what a pool needs, and has as many descriptors as it may
take.

Runs in the master before the first fork, and in a rehearsal. Must not change anything: it tries, and says what is
missing.
"""

import os
import select
import signal
import socket
from collections.abc import Callable
from errno import EFBIG, ENOMEM
from functools import partial

from prefork.metrics.board import BOARD_BYTES
from prefork.metrics.scoreboard import sealed_memory
from prefork.workers import descriptor_limit
from prefork.workers.connection_table import MEMORY_BYTES
from prefork.workers.wakeup import Wakeup

from ..commands import WORKERS_MAX
from ..errors import ConfigError, PreforkError, reason_of

__all__ = ["check_kernel", "check_room"]

RESERVE = 32  # descriptors: control clients, exporter, rehearsal, and what an interpreter needs at its start

_HINT = "It needs Linux 5.10, and no filter of system calls (seccomp) in its way."
_HINTS = {
    EFBIG: "A limit of file sizes (ulimit -f) must be above {largest} bytes.",
    ENOMEM: "Memory is short, or its limit (ulimit -v) is.",
}


def check_kernel(*, counts_connections: bool = False) -> None:
    """Raise PreforkError if the kernel, or a filter on this process, refuses a call that a pool cannot do without."""
    largest = max(BOARD_BYTES, MEMORY_BYTES if counts_connections else 0)
    memory: Callable[[], None] = partial(_try_memory, largest)
    for call, attempt in (("memfd_create", memory), *_CALLS):
        try:
            attempt()
        except AttributeError as exc:
            error = PreforkError(f"could not start a pool: this Python has no {call}: {exc}")
            error.add_note(
                "It must have been built on Linux 5.10 or newer, and no library may take it away (gevent does)."
            )
            raise error from None
        except OSError as exc:
            error = PreforkError(f"could not start a pool: the kernel refuses {call}: {reason_of(exc)}")
            error.add_note(_HINTS.get(exc.errno or 0, _HINT).format(largest=largest))
            raise error from None


def _try_pidfd_open() -> None:
    os.close(os.pidfd_open(os.getpid()))


def _try_pidfd_send_signal() -> None:
    pidfd = os.pidfd_open(os.getpid())
    try:
        signal.pidfd_send_signal(pidfd, 0)
    finally:
        os.close(pidfd)


def _try_memory(size: int) -> None:
    fd, memory = sealed_memory("prefork-probe", size)
    memory.close()
    os.close(fd)


def _try_eventfd() -> None:
    os.close(os.eventfd(0, os.EFD_CLOEXEC))


def _try_epoll() -> None:
    with select.epoll():
        pass


def _try_pipe() -> None:
    Wakeup().close()


def _try_socketpair() -> None:
    for end in socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET):
        end.close()


_CALLS: tuple[tuple[str, Callable[[], None]], ...] = (
    ("pidfd_open", _try_pidfd_open),
    ("pidfd_send_signal", _try_pidfd_send_signal),
    ("eventfd", _try_eventfd),
    ("epoll_create1", _try_epoll),
    ("pipe", _try_pipe),
    ("socketpair", _try_socketpair),  # for the exporter, a log file and kept connections
)


def check_room(
    max_children: int, companions: int = 0, lent: int = 0, spares: int = 0, *, rehearsing: bool = False
) -> None:
    """Raise ConfigError if so many workers and companions, and as many of a reload's other generation, cannot be
    watched.

    `lent`: how many descriptors are open for children of another generation; `spares`: how many only until this process
    serves. A rehearsal must not pass what its new image would then refuse, which has some descriptors more.
    """
    children, asked = max_children + companions, f"max_children={max_children}"
    if companions:
        asked += f" and {companions} companion{'s' * (companions != 1)}"
    if children > WORKERS_MAX:
        raise ConfigError(f"could not serve with {asked}: together they must be at most {WORKERS_MAX}")
    both = 2 * children + max(2 * children, lent)  # two for each: its pidfd and its memory
    most, needed = descriptor_limit.hard_limit(), _open_now() - lent - spares + both + RESERVE * (1 + rehearsing)
    if needed > most:
        error = ConfigError(
            f"could not serve with {asked}: with both generations of a reload that may take "
            f"{needed} descriptors, and {most} is the limit"
        )
        error.add_note("Raise the hard limit (LimitNOFILE=, ulimit -Hn), or lower max_children.")
        raise error


def _open_now() -> int:
    """Return how many descriptors are open in this process; without /proc how many are below the lowest free one."""
    try:
        return len(os.listdir("/proc/self/fd"))
    except OSError:
        lowest_free = os.dup(0)
        os.close(lowest_free)
        return lowest_free
