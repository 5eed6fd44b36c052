"""A service that says what its processes may still do, and tries on demand what a worker that was taken over would."""

import ctypes
import os
import socket
import subprocess
import threading
from pathlib import Path
from typing import Any

from prefork import PreForkingTCPServer, rehearsing
from tests.support.programs.served import Told, Who, tell

LINES = ("Uid:", "Gid:", "Groups:", "CapInh:", "CapPrm:", "CapEff:", "CapAmb:", "NoNewPrivs:", "Umask:")


def status() -> str:
    """The lines of /proc/self/status about privileges."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return "; ".join(" ".join(line.split()) for line in lines if line.startswith(LINES))


class Handler(Who):
    def do_status(self) -> str:
        return status()

    def do_peer(self) -> str:
        return repr(self.peer_credentials)

    def do_attack(self, what: str, *arguments: str) -> str:
        """The name of the error by which this attack failed, or what it has brought."""
        try:
            return str(getattr(self, f"_{what}")(*arguments))
        except OSError as exc:
            return type(exc).__name__

    def _setuid(self) -> str:
        os.setuid(0)
        return "root"

    def _seteuid(self) -> str:
        os.seteuid(0)
        return "root"

    def _setgid(self) -> str:
        os.setgid(0)
        return "root"

    def _setgroups(self) -> str:
        os.setgroups([0])
        return "root"

    def _kill(self, pid: str) -> str:
        os.kill(int(pid), 9)
        return "killed"

    def _read(self, path: str) -> str:
        with open(path, "rb") as file:
            file.read(1)
        return "read"

    def _map(self, pid: str) -> str:
        """Read a byte of that process, where its memory begins."""
        first = Path(f"/proc/{pid}/maps").read_text().partition("-")[0]
        with open(f"/proc/{pid}/mem", "rb") as file:
            file.seek(int(first, 16))
            return "read" if file.read(1) else "nothing"

    def _write(self, path: str) -> str:
        with open(path, "ab"):
            return "opened"

    def _unlink(self, path: str) -> str:
        os.unlink(path)
        return "removed"

    def _bind(self, port: str) -> str:
        with socket.socket() as sock:
            sock.bind(("127.0.0.1", int(port)))
            return "bound"

    def _connect(self, path: str) -> str:
        with socket.socket(socket.AF_UNIX) as sock:
            sock.connect(path)
            return "connected"

    def _trace(self, pid: str) -> str:
        """Attach as a debugger does: PTRACE_SEIZE, ptrace(2)."""
        ctypes.set_errno(0)
        libc = ctypes.CDLL(None, use_errno=True)
        if libc.ptrace(0x4206, int(pid), None, None) < 0:
            raise OSError(ctypes.get_errno(), "ptrace")
        return "traced"

    def _shut(self) -> str:
        self.server.socket.shutdown(socket.SHUT_RDWR)
        return "shut"

    def _log(self, *words: str) -> str:
        os.write(2, f"{' '.join(words)}\n".encode())
        return "written"

    def _run(self, path: str) -> str:
        return subprocess.check_output([path, "-u"], text=True).strip()


def at_fork() -> None:
    """As exporters of traces do: a thread, which has what its process has."""
    if not rehearsing():
        tell("began", what="fork", status=status())
    threading.Thread(target=threading.Event().wait, daemon=True).start()


if "AT_FORK" in os.environ:
    os.register_at_fork(after_in_child=at_fork)


class Hooks(Told):
    def worker_started(self) -> None:
        if rehearsing() and os.geteuid() == 0:
            raise RuntimeError("rehearsed as root")
        tell("began", what="worker", status=status())
        super().worker_started()


def companion(server: Any) -> None:
    tell("began", what="companion", status=status())
    server.wait_draining()


class Single(Hooks, PreForkingTCPServer):
    RequestHandlerClass = Handler


if __name__ == "__main__":
    with Single(("127.0.0.1", 0), Handler) as server:
        server.user = "nobody"
        server.handle_request()
