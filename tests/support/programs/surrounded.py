"""Give this process hostile surroundings, then become the service.

    surrounded.py WHAT=VALUE... -- COMMAND...

    closed=0,1         these descriptors are closed
    blocked=15,1       these signals are blocked
    pending=15         so they are, and one of each is pending
    ignored=17         these signals are ignored
    timer=real:0.5     this interval timer runs
    limit=NOFILE:9:20  this resource limit, soft and hard
    refused=424:38     this system call fails with this errno; a third number: if that is its first argument

Needs nothing of ours, so it is run by its path with `-I -S`.
"""

import ctypes
import errno
import os
import resource
import signal
import struct
import sys

LOAD, EQUAL, RETURN = 0x20, 0x15, 0x06  # BPF_LD|BPF_W|BPF_ABS, BPF_JMP|BPF_JEQ|BPF_K, BPF_RET|BPF_K
ALLOW, ERRNO = 0x7FFF0000, 0x00050000
FIRST_ARGUMENT = 16  # of struct seccomp_data
PR_SET_NO_NEW_PRIVS, PR_SET_SECCOMP, SECCOMP_MODE_FILTER = 38, 22, 2
TIMERS = {"real": signal.ITIMER_REAL, "virtual": signal.ITIMER_VIRTUAL, "prof": signal.ITIMER_PROF}


class Filter(ctypes.Structure):
    _fields_ = [("length", ctypes.c_ushort), ("filter", ctypes.c_char_p)]


def refuse(call: int, error: int, argument: int | None = None) -> None:
    """Put a filter on this process, and all that it becomes; see seccomp(2)."""
    code = [(LOAD, 0, 0, 0), (EQUAL, 0, 1 if argument is None else 3, call)]
    if argument is not None:
        code += [(LOAD, 0, 0, FIRST_ARGUMENT), (EQUAL, 0, 1, argument)]
    code += [(RETURN, 0, 0, ERRNO | error), (RETURN, 0, 0, ALLOW)]
    text = b"".join(struct.pack("=HBBI", *each) for each in code)
    libc = ctypes.CDLL(None, use_errno=True)
    libc.prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
    if libc.prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, ctypes.byref(Filter(len(code), text))):
        sys.exit(f"could not put a filter on this process: {errno.errorcode[ctypes.get_errno()]}")


def surround(what: str, value: str) -> None:
    numbers = [int(each) for each in value.replace(":", ",").split(",") if each.lstrip("-").isdigit()]
    match what:
        case "closed":
            for fd in numbers:
                os.close(fd)
        case "blocked" | "pending":
            signal.pthread_sigmask(signal.SIG_BLOCK, numbers)
            for signum in numbers if what == "pending" else ():
                os.kill(os.getpid(), signum)
        case "ignored":
            for signum in numbers:
                signal.signal(signum, signal.SIG_IGN)
        case "timer":
            signal.setitimer(TIMERS[value.partition(":")[0]], float(value.partition(":")[2]))
        case "limit":
            resource.setrlimit(getattr(resource, f"RLIMIT_{value.partition(':')[0]}"), (numbers[0], numbers[1]))
        case "refused":
            refuse(*numbers)
        case _:
            sys.exit(f"there are no such surroundings: {what}")


if __name__ == "__main__":
    split = sys.argv.index("--")
    for each in sys.argv[1:split]:
        what, _, value = each.partition("=")
        surround(what, value)
    os.execvp(sys.argv[split + 1], sys.argv[split + 1 :])
