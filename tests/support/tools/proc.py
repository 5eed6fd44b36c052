"""Figures of /proc about the processes and sockets of a service under test, and a limit that is set on them from here.

Runs in the test's process. Reads, and sets soft limits; nothing of the service has to cooperate.
"""

import contextlib
import os
import re
import resource
import select
import socket
from collections.abc import Iterator
from pathlib import Path
from time import monotonic

import psutil

TCP_LISTEN = 0x0A
ACCEPTS = {"43", "288", "45"}  # accept, accept4, recvfrom on x86_64; /proc/PID/syscall
EPOLL_WAITS = {"232", "281", "441"}  # epoll_wait, epoll_pwait, epoll_pwait2 there
LOCK_WAITS = {"202"}  # futex there


def cpu_seconds(pid: int) -> float:
    """Of the process and of its children that were waited for."""
    times = psutil.Process(pid).cpu_times()
    return float(times.user + times.system + times.children_user + times.children_system)


@contextlib.contextmanager
def no_descriptor_left(*pids: int) -> Iterator[None]:
    """Let these processes get no new descriptor in the block: the soft RLIMIT_NOFILE is at their lowest free one."""
    before = {pid: resource.prlimit(pid, resource.RLIMIT_NOFILE) for pid in pids}
    for pid, (_, hard) in before.items():
        folder = Path(f"/proc/{pid}/fd")
        held = {int(name) for name in os.listdir(folder) if os.path.lexists(folder / name)}  # without what lists it
        lowest_free = next(fd for fd in range(len(held) + 1) if fd not in held)
        resource.prlimit(pid, resource.RLIMIT_NOFILE, (lowest_free, hard))
    try:
        yield
    finally:
        for pid, limits in before.items():
            with contextlib.suppress(ProcessLookupError):
                resource.prlimit(pid, resource.RLIMIT_NOFILE, limits)


def blocked_in_accept(pid: int) -> bool:
    """Say if the process sleeps inside accept, or inside the receive of a datagram. One that runs does not."""
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/syscall").read_text().split()[0] in ACCEPTS
    return False


def waits_in_epoll(thread: int) -> bool:
    """Say if this thread of ours sleeps in a wait for an epoll: no sooner would the kernel wake it."""
    with contextlib.suppress(OSError):
        return Path(f"/proc/self/task/{thread}/syscall").read_text().split()[0] in EPOLL_WAITS
    return False


def waits(pid: int) -> bool:
    """Say if every thread of the process sleeps until something comes or a lock is given up. Looked at twice: who wants
    the interpreter is woken by who has it, and runs then."""
    with contextlib.suppress(OSError):
        calls = [path / "syscall" for path in Path(f"/proc/{pid}/task").iterdir()] * 2
        return all(call.read_text().split()[0] in EPOLL_WAITS | LOCK_WAITS for call in calls)
    return False


def switches(pid: int) -> int:
    """Count how often the process has gone to sleep until now; proc(5)."""
    return int(Path(f"/proc/{pid}/status").read_text().split("voluntary_ctxt_switches:")[1].split()[0])


def held(pid: int) -> list[str]:
    """The descriptors of a process: files by name, the others by kind; one log is as good as another."""
    links = [os.readlink(f"/proc/{pid}/fd/{fd}") for fd in os.listdir(f"/proc/{pid}/fd")]
    return sorted(re.sub(r"[:(].*|log-.*", "", link) for link in links)


def threads(pid: int) -> int:
    return len(os.listdir(f"/proc/{pid}/task"))


def accept_queue(port: int) -> int:
    """The number of connections that wait in the kernel at the TCP listener of this port."""
    return next(int(row[4].partition(":")[2], 16) for row in _sockets("tcp", port) if int(row[3], 16) == TCP_LISTEN)


def is_listening(port: int) -> bool:
    """Whether somebody listens at this TCP port: a connection, to find out, would be one that he has to serve."""
    rows = (row for protocol in ("tcp", "tcp6") for row in _sockets(protocol, port))
    return any(int(row[3], 16) == TCP_LISTEN for row in rows)


def datagrams(port: int) -> tuple[int, int]:
    """Bytes that wait at the UDP socket of this port, and the datagrams that the kernel dropped there."""
    row = next(_sockets("udp", port))
    return int(row[4].partition(":")[2], 16), int(row[-1])


def _sockets(protocol: str, port: int) -> Iterator[list[str]]:
    """Rows of /proc/net/tcp or udp with this local port; proc(5)."""
    for line in Path(f"/proc/net/{protocol}").read_text().splitlines()[1:]:
        row = line.split()
        if int(row[1].rpartition(":")[2], 16) == port:
            yield row


def nothing_for(seconds: float, *sockets: socket.socket) -> float:
    """Let this much time pass, in which nobody may answer on these sockets; how long it was."""
    began = monotonic()
    assert not select.select(sockets, [], [], seconds)[0], "answered too early"
    return monotonic() - began
