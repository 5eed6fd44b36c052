"""A service manager as the service sees one: a socket for its notices, sockets that it passes on, and those it keeps.

Runs in the test's process. Owns the notify socket and the descriptors that came over it (FDSTORE); gives the
environment and the command prefix with which a `Service` is started under it.
"""

import contextlib
import os
import select
import socket
import sys
from array import array
from pathlib import Path
from time import monotonic
from types import TracebackType
from typing import Self

HUNG = 30.0  # seconds; never reached unless something hangs
STATES = ("READY=1", "RELOADING=1", "STOPPING=1")
FILLER = b"FILLER"
# Put the descriptors named by number in their place, 3 and up, and become the command: LISTEN_PID is the pid it has.
ACTIVATE = Path(__file__).parents[1] / "programs" / "activate.py"


class Manager:
    """Use it as a context manager around the service. `messages` are in the order in which they came."""

    def __init__(self, folder: Path, *, abstract: bool = False) -> None:
        path = str(folder / "notify")
        name = f"\0{path}" if abstract else os.path.relpath(path)
        self._variable = f"@{path}" if abstract else path
        self.messages: list[str] = []
        self.times: list[float] = []
        self.kept: dict[str, int] = {}
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.socket.bind(name)

    def env(self, watchdog_s: float | None = None, watchdog_pid: int | None = None) -> dict[str, str]:
        found = {"NOTIFY_SOCKET": self._variable}
        if watchdog_s is not None:
            found["WATCHDOG_USEC"] = str(int(watchdog_s * 1e6))
        if watchdog_pid is not None:
            found["WATCHDOG_PID"] = str(watchdog_pid)
        return found

    @property
    def states(self) -> list[str]:
        """The state words until now."""
        self.look()
        return [line for message in self.messages for line in message.split("\n") if line in STATES]

    def wait(self, text: str, *, after: int = 0) -> int:
        """Until a message that has this text came, counted from `after`; its number."""
        deadline = monotonic() + HUNG
        while True:
            for number in range(after, len(self.messages)):
                if text in self.messages[number]:
                    return number
            after = max(after, len(self.messages))
            left = max(0.0, deadline - monotonic())
            assert select.select([self.socket], [], [], left)[0], f"hung: no {text!r}; there came {self.messages}"
            self.look()

    def look(self) -> int:
        """Take what has come; how many messages there are."""
        while select.select([self.socket], [], [], 0)[0]:
            message, rights, _, _ = self.socket.recvmsg(4096, socket.CMSG_SPACE(16))
            if message == FILLER:
                continue
            lines = dict(line.partition("=")[::2] for line in message.decode().split("\n"))
            self.messages.append(message.decode())
            self.times.append(monotonic())
            for _, _, data in rights:
                (fd,) = array("i", data)
                self._keep(lines["FDNAME"], fd)
            if "FDSTOREREMOVE" in lines:
                self.drop(lines["FDNAME"])
        return len(self.messages)

    def fill(self) -> None:
        """Let its queue be full until it is looked at: what is sent meanwhile is refused with EAGAIN."""
        sent = True
        while sent:  # by one after the other, for each may have only so much under way
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sender, contextlib.suppress(BlockingIOError):
                sent = False
                while True:
                    sender.sendto(FILLER, socket.MSG_DONTWAIT, self.socket.getsockname())
                    sent = True

    def nothing_for(self, seconds: float) -> None:
        """Let this much time pass, in which nothing may come."""
        assert not select.select([self.socket], [], [], seconds)[0], "the manager was told something"

    def _keep(self, name: str, fd: int) -> None:
        """As systemd: the same socket a second time is no news."""
        self.drop(name)
        self.kept[name] = fd

    def drop(self, name: str) -> None:
        """Keep it no longer."""
        if name in self.kept:
            os.close(self.kept.pop(name))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None) -> None:
        self.look()
        for name in list(self.kept):
            self.drop(name)
        self.socket.close()
        sys.stderr.write("".join(f"{message!r}\n" for message in self.messages))  # pytest shows it on failure


def passing(*sockets: tuple[str, int]) -> list[str]:
    """The beginning of a command that gets these descriptors, each with its name, as from a socket unit."""
    return [
        sys.executable, str(ACTIVATE), ",".join(str(fd) for _, fd in sockets), ":".join(name for name, _ in sockets)
    ]  # fmt: skip
