"""Hosts on one machine: network namespaces, each with its own address and its own pool, and a real HAProxy before them.

Runs in the test's process, as root. Owns the namespaces, their links, and what runs in them.
"""

import contextlib
import ctypes
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from time import monotonic
from urllib.request import urlopen

import psutil

from tests.support.tools.complaints import Judged
from tests.support.tools.proc import is_listening

HUNG = 30.0  # seconds; never reached unless something hangs
ROOT = Path(__file__).parents[3]
CLONE_NEWNET = 0x40000000
SERVICE, METRICS = 9999, 9465  # the namespace is the host's own: these are free there


def ip(*argv: str) -> None:
    subprocess.run(["ip", *argv], check=True, capture_output=True)


class Host(Judged):
    """One of them. It is up as soon as its pool is ready."""

    def __init__(self, number: int, folder: Path) -> None:
        super().__init__()
        self.name = f"prefork{os.getpid()}-{number}"
        self.link = f"pf{os.getpid() % 100000}h{number}"
        self.address = f"10.199.{number}.2"
        self.folder = folder
        self.process: subprocess.Popen[bytes] | None = None
        ip("netns", "add", self.name)
        ip("link", "add", self.link, "type", "veth", "peer", "name", "eth0", "netns", self.name)
        ip("addr", "add", f"10.199.{number}.1/30", "dev", self.link)
        ip("link", "set", self.link, "up")
        for argv in (["addr", "add", f"{self.address}/30", "dev", "eth0"], ["link", "set", "eth0", "up"],
                     ["link", "set", "lo", "up"]):  # fmt: skip
            ip("-n", self.name, *argv)

    def start(self, target: str, *options: str) -> None:
        """Run a pool there, until it is ready."""
        argv = [
            "ip", "netns", "exec", self.name, sys.executable, "-m", "prefork", "run", target,
            "--bind", f"0.0.0.0:{SERVICE}", "--metrics", f"0.0.0.0:{METRICS}", *options,
        ]  # fmt: skip
        with (self.folder / f"{self.name}.log").open("ab") as log:
            self.process = subprocess.Popen(
                argv, cwd=self.folder, env=os.environ | {"PYTHONPATH": str(ROOT)}, stdin=subprocess.DEVNULL, stdout=log,
                stderr=log,
            )  # fmt: skip
        deadline = monotonic() + HUNG
        while not self.ready():
            assert monotonic() < deadline, f"hung: {self.name} does not get ready"

    @property
    def log(self) -> str:
        path = self.folder / f"{self.name}.log"
        return path.read_text() if path.exists() else ""

    def ready(self) -> bool:
        try:
            with urlopen(f"http://{self.address}:{METRICS}/-/ready", timeout=1) as answer:
                return bool(answer.status == 200)
        except OSError:
            return False

    def runs(self, pid: int) -> bool:
        """Say if this process is one of its workers."""
        assert self.process is not None
        return psutil.Process(pid).ppid() == self.process.pid

    def signal(self, signum: int) -> None:
        assert self.process is not None
        self.process.send_signal(signum)

    def stop(self) -> int:
        """Drain it; its exit status."""
        assert self.process is not None
        self.signal(signal.SIGTERM)
        return self.process.wait(HUNG)

    def kill(self) -> None:
        """The host is dead at once: nothing of it runs, and nothing of it answers or says goodbye."""
        assert self.process is not None
        self.cut_off()
        self.allow(r"\(killed by SIGKILL\)")
        for process in [*psutil.Process(self.process.pid).children(recursive=True), psutil.Process(self.process.pid)]:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        self.process.wait(HUNG)
        self.process = None

    def cut_off(self) -> None:
        """Its network is gone; it runs on and does not know. At its end: were it ours, the way to it would be the
        machine's own way out, where somebody else may answer."""
        ip("-n", self.name, "link", "set", "eth0", "down")

    def close(self) -> None:
        if self.process is not None and self.process.poll() is None:
            self.kill()
        ip("link", "del", self.link)  # both ends: the namespace lives on while a connection in it does
        ip("netns", "del", self.name)


def enter_network(namespace: str | int) -> None:
    """setns(2), of this thread; os.setns() is new in 3.12."""
    fd = os.open(namespace, os.O_RDONLY | os.O_CLOEXEC) if isinstance(namespace, str) else namespace
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.setns(fd, CLONE_NEWNET) != 0:
        raise OSError(ctypes.get_errno(), "could not enter the network namespace")
    if fd is not namespace:
        os.close(fd)


@contextlib.contextmanager
def network_of(pid: int) -> Iterator[None]:
    """This thread, and those that it starts, are in the network of that process."""
    outside = os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
    enter_network(f"/proc/{pid}/ns/net")
    try:
        yield
    finally:
        enter_network(outside)
        os.close(outside)


@contextlib.contextmanager
def hosts(count: int, folder: Path) -> Iterator[list[Host]]:
    found: list[Host] = []
    try:
        for number in range(1, count + 1):
            found.append(Host(number, folder))
        yield found
        for host in found:
            host.judge()
    finally:
        for host in found:
            host.close()


@contextlib.contextmanager
def haproxy(config: str, folder: Path, port: int) -> Iterator[None]:
    """One that runs with this configuration, and listens on this port."""
    path = folder / "haproxy.cfg"
    path.write_text(config)
    check = subprocess.run(["haproxy", "-c", "-f", path], capture_output=True, text=True, check=False)
    assert check.returncode == 0, check.stdout + check.stderr
    with listener(["haproxy", "-db", "-f", path], folder / "haproxy.log", port):
        yield


@contextlib.contextmanager
def listener(argv: Sequence[str | Path], log: Path, port: int) -> Iterator[None]:
    """A program in the foreground that listens on this port; it is killed at the end."""
    with log.open("wb") as output:
        process = subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=output, stderr=output)
    try:
        listening(port, process)
        yield
    finally:
        process.kill()
        process.wait(HUNG)


def listening(port: int, process: "subprocess.Popen[bytes]") -> None:
    """Wait until this process listens there."""
    deadline = monotonic() + HUNG
    while not is_listening(port):
        assert process.poll() is None, f"{process.args!r} ended with {process.returncode}"
        assert monotonic() < deadline, f"hung: {process.args!r} does not listen"


def possible() -> bool:
    """Say if this machine lets us: root, HAProxy, and network namespaces."""
    if os.geteuid() != 0 or not shutil.which("haproxy") or not shutil.which("ip"):
        return False
    name = f"prefork{os.getpid()}-try"
    made = subprocess.run(["ip", "netns", "add", name], capture_output=True, check=False).returncode == 0
    if made:
        ip("netns", "del", name)
    return made
