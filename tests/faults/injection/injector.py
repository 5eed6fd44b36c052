"""Make one system call of one process fail: the N-th of its kind after arming, with the errno of our choice.

By seccomp's user notification (seccomp_unotify(2), Linux 5.19 or newer): `launch.py` puts a filter on itself before it
becomes the service, so the filter holds for every process of the service and over every exec. The kernel then asks us
before each call that the filter names; a thread of the test's process answers "go on" to all but one.
"""

import ctypes
import errno
import fcntl
import os
import select
import struct
import sys
import threading
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

LAUNCH = Path(__file__).parent / "launch.py"
_RECV, _SEND = 0xC0502100, 0xC0182101  # SECCOMP_IOCTL_NOTIF_RECV and _SEND
_NOTIFICATION = struct.Struct("=QIIiIQ6Q")  # id, pid, flags, call, architecture, instruction, arguments
_ANSWER = struct.Struct("=QqiI")  # id, value, error, flags
_GO_ON = 1  # SECCOMP_USER_NOTIF_FLAG_CONTINUE

# x86_64's numbers of the calls that a master, a worker or an exporter makes and that a kernel may refuse.
CALLS = {
    "read": 0, "write": 1, "lseek": 8, "mmap": 9, "ioctl": 16, "socket": 41, "connect": 42, "sendto": 44,
    "recvfrom": 45, "sendmsg": 46, "recvmsg": 47, "bind": 49, "listen": 50, "getsockname": 51, "getpeername": 52,
    "socketpair": 53, "setsockopt": 54, "getsockopt": 55, "clone": 56, "fork": 57, "vfork": 58, "execve": 59,
    "wait4": 61, "fcntl": 72, "fsync": 74, "ftruncate": 77, "getdents": 78, "getcwd": 79, "chdir": 80, "rename": 82,
    "mkdir": 83, "unlink": 87, "readlink": 89, "chmod": 90, "fchmod": 91, "chown": 92, "fchown": 93, "lchown": 94,
    "setgroups": 116, "setresuid": 117, "setresgid": 119, "capset": 126,
    "prctl": 157, "epoll_ctl": 233, "waitid": 247, "openat": 257,
    "newfstatat": 262, "unlinkat": 263, "readlinkat": 267, "fchmodat": 268, "accept4": 288, "eventfd2": 290,
    "epoll_create1": 291, "dup3": 292, "pipe2": 293, "prlimit64": 302, "getrandom": 318, "memfd_create": 319,
    "statx": 332, "pidfd_send_signal": 424, "clone3": 435, "pidfd_open": 434, "dup": 32, "dup2": 33, "fstat": 5,
    "stat": 4, "lstat": 6, "poll": 7, "epoll_wait": 232, "getdents64": 217, "kill": 62, "accept": 43,
    "sched_getaffinity": 204, "epoll_pwait2": 441, "setitimer": 38, "munmap": 11, "mprotect": 10, "brk": 12,
    "shutdown": 48, "setrlimit": 160, "getrlimit": 97, "madvise": 28,
}  # fmt: skip

_DESCRIPTORS = ("EMFILE", "ENFILE", "ENOMEM")
# What a kernel may answer to each, by section 2 of the manual.
ERRNOS: dict[str, Sequence[str]] = {
    "read": ("EIO", "EINTR"), "write": ("ENOSPC", "EIO", "EINTR"), "mmap": ("ENOMEM",),
    "socket": (*_DESCRIPTORS, "EACCES"), "socketpair": _DESCRIPTORS, "sendto": ("EAGAIN", "ENOBUFS", "EPIPE"),
    "sendmsg": ("EAGAIN", "ENOBUFS", "EPIPE", "ETOOMANYREFS"), "recvfrom": ("ECONNRESET", "ENOMEM", "EINTR"),
    "recvmsg": ("ENOMEM", "EINTR"), "bind": ("EACCES", "EADDRINUSE", "EROFS"), "listen": ("EADDRINUSE",),
    "setsockopt": ("ENOMEM", "EPERM"), "getsockopt": ("ENOBUFS",), "clone": ("EAGAIN", "ENOMEM"),
    "clone3": ("EAGAIN", "ENOMEM"), "fork": ("EAGAIN", "ENOMEM"), "vfork": ("EAGAIN", "ENOMEM"),
    "execve": ("ENOENT", "EACCES", "ENOMEM", "E2BIG"), "wait4": ("EINTR",), "fcntl": ("EMFILE", "EPERM"),
    "ftruncate": ("ENOSPC", "EIO"), "getcwd": ("ENOENT", "EACCES"), "chdir": ("ENOENT", "EACCES"),
    "rename": ("EACCES", "EROFS"), "unlink": ("EACCES", "EROFS", "ENOENT"), "readlink": ("ENOENT", "EACCES"),
    "chmod": ("EPERM", "EROFS"), "fchmod": ("EPERM", "EROFS"), "chown": ("EPERM",), "fchown": ("EPERM",),
    "lchown": ("EPERM",), "setgroups": ("EPERM",), "setresuid": ("EAGAIN", "EPERM"), "setresgid": ("EPERM",),
    "capset": ("EPERM",),
    "epoll_ctl": ("ENOMEM", "ENOSPC"), "epoll_wait": ("EINTR",), "poll": ("ENOMEM", "EINTR"),
    "openat": (*_DESCRIPTORS, "EACCES", "EIO"), "newfstatat": ("EACCES", "ENOMEM", "EIO"), "stat": ("EACCES", "EIO"),
    "lstat": ("EACCES", "EIO"), "fstat": ("EIO",), "unlinkat": ("EACCES", "EROFS"), "readlinkat": ("ENOENT",),
    "accept4": (*_DESCRIPTORS, "ECONNABORTED", "EPERM"), "eventfd2": _DESCRIPTORS, "epoll_create1": _DESCRIPTORS,
    "pipe2": _DESCRIPTORS[:2], "dup": ("EMFILE",), "dup2": ("EMFILE",), "dup3": ("EMFILE",), "ioctl": ("EIO",),
    "memfd_create": _DESCRIPTORS, "pidfd_open": _DESCRIPTORS, "pidfd_send_signal": ("EPERM",), "kill": ("EPERM",),
    "getdents64": ("EIO",), "prlimit64": ("EPERM",), "sched_getaffinity": ("EPERM",), "mprotect": ("ENOMEM",),
    "getsockname": ("ENOBUFS",), "getpeername": ("ENOTCONN",), "lseek": ("ESPIPE",), "prctl": ("EPERM",),
    "shutdown": ("ENOTCONN",),
}  # fmt: skip
ALL = tuple(name for name in ERRNOS if name in CALLS)
# Nine of ten calls of a new image: by these an interpreter starts and imports.
IMPORTS = ("read", "mmap", "lseek", "openat", "newfstatat", "ioctl", "getdents64", "mprotect", "readlink")
OTHERS = tuple(name for name in ALL if name not in IMPORTS)


class Fault(NamedTuple):
    """The N-th such call, from arming, answers with this errno."""

    call: str
    errno: str
    occurrence: int

    def __str__(self) -> str:
        return f"{self.call} -> {self.errno} at its occurrence {self.occurrence}"


class Injector:
    """Answers the kernel for one service. Use as a context manager around the start of it: `before` goes in front of
    its command line and `fds` are to be passed on. One of the calls must be execve, which holds the launcher until it
    was attached to. Raises OSError where the kernel has no user notification."""

    def __init__(self, calls: Iterable[str] = ALL) -> None:
        self._calls = tuple(calls)
        self._names = {CALLS[name]: name for name in self._calls}
        self._told_read, self._told = os.pipe()
        self._stop_read, self._stop = os.pipe()
        self._lock = threading.Lock()
        self._fault: Fault | None = None
        self._pid = 0
        self._seen = 0
        self._counted: dict[str, int] | None = None
        self.hit = threading.Event()
        self._thread: threading.Thread | None = None
        self._listener = -1

    @property
    def fds(self) -> tuple[int, ...]:
        return (self._told,)

    @property
    def before(self) -> tuple[str, ...]:
        numbers = ",".join(str(CALLS[name]) for name in self._calls)
        return (sys.executable, "-I", "-S", str(LAUNCH), str(self._told), numbers)

    def attach(self, pid: int) -> None:
        """The process was started: take its listener, and answer from now on."""
        os.close(self._told)
        self._told = -1
        number = int(os.read(self._told_read, 16))
        pidfd = os.pidfd_open(pid)
        try:
            self._listener = _take_descriptor(pidfd, number)
        finally:
            os.close(pidfd)
        self._thread = threading.Thread(target=self._answer, name="injector")
        self._thread.start()

    def arm(self, fault: Fault, pid: int) -> None:
        with self._lock:
            self.hit.clear()
            self._seen, self._fault, self._pid = 0, fault, pid

    def disarm(self) -> bool:
        """Whether the fault was met."""
        with self._lock:
            self._fault = None
            return self.hit.is_set()

    def count(self, pid: int) -> None:
        """From now on count which calls that process makes."""
        with self._lock:
            self._counted, self._pid = {}, pid

    def counted(self) -> dict[str, int]:
        with self._lock:
            found, self._counted = self._counted or {}, None
            return found

    def _answer(self) -> None:
        poll = select.poll()
        poll.register(self._listener, select.POLLIN)
        poll.register(self._stop_read, select.POLLIN)
        while True:
            ready = dict(poll.poll())
            if self._stop_read in ready:
                return
            if ready.get(self._listener, 0) & select.POLLIN:
                self._answer_one()
            elif ready.get(self._listener, 0) & (select.POLLHUP | select.POLLERR):
                poll.unregister(self._listener)  # nobody is left under the filter

    def _answer_one(self) -> None:
        message = bytearray(_NOTIFICATION.size)
        try:
            fcntl.ioctl(self._listener, _RECV, message)
        except OSError:  # who asked was killed meanwhile
            return
        number, pid, _, call, *_ = _NOTIFICATION.unpack(message)
        error = self._error(pid, self._names.get(call, ""))
        answer = bytearray(_ANSWER.pack(number, 0, -error, 0 if error else _GO_ON))
        try:
            fcntl.ioctl(self._listener, _SEND, answer)
        except OSError:
            pass

    def _error(self, pid: int, call: str) -> int:
        with self._lock:
            if pid != self._pid:
                return 0
            if self._counted is not None:
                self._counted[call] = self._counted.get(call, 0) + 1
            fault = self._fault
            if fault is None or fault.call != call:
                return 0
            self._seen += 1
            if self._seen != fault.occurrence:
                return 0
            self.hit.set()
            return int(getattr(errno, fault.errno))

    def __enter__(self) -> "Injector":
        return self

    def __exit__(self, *exc: object) -> None:
        os.write(self._stop, b"\n")
        if self._thread is not None:
            self._thread.join()
        for fd in (self._told_read, self._told, self._stop_read, self._stop, self._listener):
            if fd >= 0:
                os.close(fd)


def _take_descriptor(pidfd: int, number: int) -> int:
    """pidfd_getfd(2), as soon as there is one: the filter comes one call after its number."""
    libc = ctypes.CDLL(None, use_errno=True)
    while (fd := int(libc.syscall(438, pidfd, number, 0))) < 0:
        if ctypes.get_errno() != errno.EBADF:
            raise OSError(ctypes.get_errno(), "could not take the listener of the filter")
        if select.select([pidfd], [], [], 0)[0]:
            raise OSError(errno.ENOSYS, "the launcher could not put its filter")
    return fd
