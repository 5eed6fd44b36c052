"""One service under the injector, what is done to it, and what must hold after each fault.

Runs in the test's process. A stimulus is something that makes the master act (a death, a question, a reload, the end);
a fault is armed for the time from the stimulus until the service is at rest again. Whatever the fault was, afterwards
the invariants of `Scene.violations()` hold: the client's connection or the reload itself may have failed, and nothing
else. Waits by looking again every few milliseconds, under one timeout that means hung.
"""

import contextlib
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from time import monotonic
from typing import Any

import psutil

from prefork.exporter.server import NOBODY
from tests.support.clients.scraping import get
from tests.support.programs.service import ROOT, kill_session

from .injector import CALLS, Fault, Injector

HUNG = 20.0  # seconds; a fork that failed is tried again after 0.5 s, an exporter after at most a few
WORKERS = 2
GRACEFUL_S = 3.0
LOOK_S = 0.02
GONE_S = 6.0  # a client of the control socket that has hung up is worked for as long as that, where stacks never come
WAITS = {str(CALLS["epoll_wait"]), str(CALLS["epoll_pwait2"])}
SETTINGS = f"""
[prefork]
target = "app:Handler"
bind = "127.0.0.1:0"
metrics = "unix:metrics"
control = "unix:control"
max_children = {WORKERS}
graceful_timeout = {GRACEFUL_S}
boot_timeout = 10
"""
Status = dict[str, Any]


class Hung(Exception):
    """The service did not come to rest."""


class Scene:
    """A running service; use as a context manager."""

    def __init__(self, folder: Path, injector: Injector) -> None:
        self.folder = folder
        self.injector = injector
        self.release(1)
        (folder / "app.py").write_text((Path(__file__).parent / "app.py").read_text())
        (folder / "prefork.toml").write_text(SETTINGS)
        self._log = (folder / "log").open("wb")
        self._releases = 1
        environ = os.environ | {"PYTHONPATH": str(ROOT)}
        self.process = subprocess.Popen(
            [*injector.before, sys.executable, "-m", "prefork", "run", "--config", "prefork.toml"],
            cwd=folder, env=environ, stdin=subprocess.DEVNULL, stdout=self._log, stderr=self._log,
            pass_fds=injector.fds, start_new_session=True,
        )  # fmt: skip
        try:
            injector.attach(self.process.pid)
            self.settle(lambda status: True)
            self.expected = "1"
            self.descriptors = self._descriptors()
        except BaseException:
            sys.stderr.write(self.log)
            self._end()
            raise

    def __enter__(self) -> "Scene":
        return self

    def __exit__(self, *exc: object) -> None:
        self._end()

    def _end(self) -> None:
        self.injector.disarm()
        kill_session(self.process.pid)
        self.process.wait()
        self._log.close()

    @property
    def log(self) -> str:
        return (self.folder / "log").read_text(errors="replace")

    # Clients.

    def release(self, name: object) -> None:
        new = self.folder / "release.new"
        new.write_text(str(name))
        new.rename(self.folder / "release")

    def command(self, verb: str, within: float = 2.0) -> Any:
        """The last line of the answer. Raises OSError or ValueError when there is none: the fault may have cost this
        very connection.

        Half closes the connection and reads to its end, so that the master has closed it before this returns: else it
        would be found among the descriptors of a master that has only not yet had its turn.
        """
        with self._connected("control", within) as sock, sock.makefile("rb") as answers:
            sock.sendall(json.dumps({"verb": verb}).encode() + b"\n")
            sock.shutdown(socket.SHUT_WR)
            for message in [json.loads(line) for line in answers]:
                if "ok" in message:
                    if not message["ok"]:
                        raise ValueError(message["error"])
                    return message["result"]
        raise ConnectionError("the connection was closed")

    @contextlib.contextmanager
    def _connected(self, name: str, within: float) -> Iterator[socket.socket]:
        with socket.socket(socket.AF_UNIX) as sock:
            sock.settimeout(within)
            sock.connect(os.path.relpath(self.folder / name))
            yield sock

    def status(self) -> Status:
        found: Status = self.command("status")
        return found

    def ask(self) -> str:
        """Which release answers a client."""
        return self._answer()[0]

    def _answer(self) -> tuple[str, str]:
        """The release and the pid of the worker that takes a client; empty where a fault has cost the answer."""
        host, _, port = self.status()["address"].rpartition(":")
        with socket.create_connection((host, int(port)), HUNG) as sock:
            sock.sendall(b"who\n")
            sock.shutdown(socket.SHUT_WR)
            with sock.makefile() as answer:
                release, _, pid = answer.readline().rstrip().partition(" ")
                return release, pid

    def workers(self) -> list[int]:
        """Asked as often as it takes, for one connection at a time may be what a fault costs."""
        deadline = monotonic() + HUNG
        while True:
            try:
                return [worker["pid"] for worker in self.command("workers")["workers"]]
            except (OSError, ValueError):
                if self.process.poll() is not None or monotonic() > deadline:
                    raise
            time.sleep(LOOK_S)

    # What is done to it.

    def settle(self, where: Callable[[Status], bool]) -> Status:
        """Until the pool is whole, nothing is on its way, the exporter answers, and `where` is true."""
        deadline = monotonic() + HUNG
        last: object = "nothing"
        while monotonic() < deadline:
            if self.process.poll() is not None:
                raise Hung(f"the master ended with {self.process.returncode}")
            try:
                status = self.status()
                last = status
                if _at_rest(status) and where(status) and get(os.path.relpath(self.folder / "metrics")).status == 200:
                    return status
            except (OSError, ValueError) as exc:
                last = exc
            time.sleep(LOOK_S)
        raise Hung(f"not at rest after {HUNG} s: {last}")

    def signal(self, signum: int) -> None:
        """Send the master a signal while it waits: a handler would end any filtered call that has not reached us yet
        with EINTR, which the call itself never says."""
        deadline = monotonic() + HUNG
        while Path(f"/proc/{self.process.pid}/syscall").read_text().split()[0] not in WAITS and monotonic() < deadline:
            time.sleep(0)
        os.kill(self.process.pid, signum)

    def kill_worker(self) -> None:
        victim = self.workers()[0]
        os.kill(victim, signal.SIGKILL)
        self.settle(lambda status: victim not in self.workers())

    def ask_control(self) -> None:
        for verb in ("status", "workers", "stacks", "version"):
            with contextlib.suppress(OSError, ValueError):
                self.command(verb)
        self.settle(lambda status: True)

    def reload(self) -> None:
        """It ends in a new generation, or says why not."""
        self._reload(self.next_release())

    def next_release(self) -> str:
        self._releases += 1
        return str(self._releases)

    def reload_broken(self) -> None:
        self._reload("broken")

    def reload_late(self) -> None:
        """The new image fails, the degraded master obeys, and the next reload mends it."""
        self._reload("late")
        self.reload()

    def _reload(self, release: str) -> None:
        self.ask_reload(release)
        self.settle(lambda status: not status["reloading"])

    def ask_reload(self, release: str) -> bool:
        """Until it is counted, by the exporter; whether it ended well."""
        self.release(release)
        before = self._reloads()
        self.signal(signal.SIGHUP)
        deadline = monotonic() + HUNG
        while (after := self._reloads()) == before:
            if monotonic() > deadline:
                raise Hung("a reload was never said to have ended")
            time.sleep(LOOK_S)
        if after[0] > before[0]:
            self.expected = release
        return after[0] > before[0]

    def _reloads(self) -> tuple[float, float]:
        """How many have ended well, and how many have not."""
        deadline = monotonic() + HUNG
        while True:
            try:
                found = get(os.path.relpath(self.folder / "metrics")).samples
                ok, failed = (found[f'prefork_reloads_total{{result="{result}"}}'] for result in ("ok", "failed"))
                return ok, failed
            except (OSError, ValueError, KeyError) as exc:
                if self.process.poll() is not None:
                    raise Hung(f"the master ended with {self.process.returncode}") from exc
                if monotonic() > deadline:
                    raise Hung(f"nobody says how many reloads there were: {exc}") from exc
            time.sleep(LOOK_S)

    def mend(self) -> None:
        """A fault in a new image leaves the old generation in service, degraded: the next reload makes it whole, or
        one more, where a busy machine has kept its rehearsal for longer than boot_timeout."""
        for _ in range(2):
            if self.settle(lambda status: True)["degraded"]:
                self.reload()

    def serve(self) -> None:
        """A few requests, which a fault in the worker may cost, and a scrape."""
        for _ in range(2 * WORKERS):
            with contextlib.suppress(OSError, ValueError):
                self.ask()
        self.settle(lambda status: True)

    def kill_exporter(self) -> None:
        before = self._exporters()
        for pid in before:
            os.kill(pid, signal.SIGKILL)
        self.settle(lambda status: not set(before) & set(self._exporters()))

    def replace_workers(self) -> None:
        before = set(self.workers())
        self.signal(signal.SIGUSR2)
        self.settle(lambda status: not before & set(self.workers()))

    def end(self) -> None:
        self.signal(signal.SIGTERM)

    def pid_of(self, who: str) -> int:
        """Into whom the fault goes."""
        match who:
            case "worker":
                return int(self._answer()[1])  # who keeps its place, and so takes the next client as well
            case "exporter":
                return self._exporters()[0]
        return self.process.pid

    def died_at_start(self) -> bool:
        """Whether the new image died before a line of ours ran in it: in the loader, or in the interpreter's start."""
        said = self.log.rpartition("replacing this image by a new one")[2]
        began = "prefork.supervisor" in said or "in take_over" in said
        return not began and "replacing this image" in self.log

    # What must hold.

    def _children(self) -> list[psutil.Process]:
        return psutil.Process(self.process.pid).children()

    def _exporters(self) -> list[int]:
        return [pid for pid, title in self._titles().items() if "exporter" in title]

    def _titles(self) -> dict[int, str]:
        found = {}
        for child in self._children():
            with contextlib.suppress(psutil.Error):
                found[child.pid] = " ".join(child.cmdline()) or child.status()
                if child.uids().real == NOBODY:  # setproctitle, too, may have met a fault
                    found[child.pid] += " (exporter)"
        return found

    def _descriptors(self) -> list[str]:
        """Kinds of the master's descriptors; of a socket also what the kernel's tables say of it."""
        folder = f"/proc/{self.process.pid}/fd"
        sockets = _sockets()
        found = []
        for name in os.listdir(folder):
            with contextlib.suppress(OSError):
                what = os.readlink(f"{folder}/{name}")
                found.append(sockets.get(what) or re.sub(r"[\[(].*", "", what))
        return sorted(found)

    def violations(self) -> list[str]:
        """What is not as it must be, in a word each, with what was seen."""
        found = []
        if trace := _unasked_traceback(self.log):
            found.append(f"traceback: {trace}")
        if (release := self.ask()) != self.expected:
            found.append(f"generation: {release} answers, not {self.expected}")
        known = set(self.workers())
        titles = self._titles()
        strange = {pid: title for pid, title in titles.items() if pid not in known and "exporter" not in title}
        if strange:
            found.append(f"stranger: {strange}")
        if missing := known - set(titles):
            found.append(f"row without a process: {missing}")
        if len(self._exporters()) > 1:
            found.append(f"exporters: {self._exporters()}")
        if (now := self._descriptors()) != self.descriptors:
            more, fewer = (Counter(a) - Counter(b) for a, b in ((now, self.descriptors), (self.descriptors, now)))
            found.append(f"descriptors: too many {dict(more)}, too few {dict(fewer)}")
        return found

    def wait_violations(self) -> list[str]:
        """Those that are still there after a while: a process that is about to end has a moment for it."""
        deadline = monotonic() + GONE_S
        while (found := self.violations()) and monotonic() < deadline:
            time.sleep(LOOK_S)
        return found


def _sockets() -> dict[str, str]:
    """Of each Unix socket, by what a descriptor of it links to: its path, which one that was accepted there has too."""
    found = {}
    for line in re.findall(r"^[0-9a-f]+: .*$", Path("/proc/net/unix").read_text(errors="replace"), re.MULTILINE):
        _, _, _, _, _, _, inode, *path = line.split()
        found[f"socket:[{inode}]"] = f"socket: unix {' '.join(path) or 'without a path'}"
    return found


def _unasked_traceback(log: str) -> str:
    """The first one that neither a broken release explains, nor a new image or a handler that failed by the fault."""
    expected = (
        "RuntimeError: release", "in take_over", "Exception ignored", "in _rehearse", "prefork: could not ",
        "<frozen site>", "in finish_request", "server.RequestHandlerClass(",
    )  # fmt: skip
    traceback = r"^(.*\n)?( *)Traceback \(most recent call last\):\n(?:\2 .*\n)*.*\n( *prefork: .*\n)?"
    for found in re.finditer(traceback, log, re.MULTILINE):
        if not any(each in found[0] for each in expected):
            return found[0][-600:]
    return ""


def _at_rest(status: Status) -> bool:
    workers = status["workers"]
    serving = workers["idle"] + workers["busy"]
    return bool(serving == WORKERS == sum(workers.values()) and not status["reloading"])


STIMULI: dict[str, Callable[[Scene], None]] = {
    "requests": Scene.serve,
    "a worker is killed": Scene.kill_worker,
    "control is asked": Scene.ask_control,
    "the exporter is killed": Scene.kill_exporter,
    "workers are replaced": Scene.replace_workers,
    "a reload": Scene.reload,
    "a reload that fails": Scene.reload_broken,
    "a reload that fails late": Scene.reload_late,
}
ENDS = "the end"


def inject(scene: Scene, stimulus: str, fault: Fault, who: str = "master") -> tuple[bool, list[str]]:
    """Whether the fault was met, and what did not hold afterwards. A scene that was spoiled is of no more use."""
    scene.injector.arm(fault, scene.pid_of(who))
    try:
        if stimulus == ENDS:
            return _inject_into_end(scene)
        STIMULI[stimulus](scene)
        hit = scene.injector.disarm()
        scene.mend()
        return hit, scene.wait_violations()
    except (Hung, OSError, ValueError) as exc:
        lost = scene.process.poll() is not None
        what = "start" if lost and scene.died_at_start() else "lost" if lost else "hung"
        return scene.injector.disarm(), [f"{what}: {exc}"]


def _inject_into_end(scene: Scene) -> tuple[bool, list[str]]:
    scene.end()
    try:
        status = scene.process.wait(GRACEFUL_S + 2.0)
    except subprocess.TimeoutExpired:
        return scene.injector.disarm(), ["hung: it does not end"]
    left = kill_session(scene.process.pid)
    found = [f"status: ended with {status}"] * (status != 0) + [f"stranger: {left}"] * bool(left)
    return scene.injector.disarm(), found
