"""A real systemd that runs the units of deploy/systemd: PID 1 of namespaces of its own, as a small host.

Runs in the test's process, as root. The host is a Debian release with its own Python (see roots.py), over which lies
what is installed, and over that memory: what a boot writes is gone with it. Nothing of this machine's own systemd,
users or units is seen by it.
"""

import contextlib
import os
import re
import shutil
import signal
import subprocess
from dataclasses import dataclass
from pathlib import Path
from time import monotonic
from typing import Self

import prometheus_client
import psutil

from tests.support.hosts.namespaces import HUNG, ROOT, enter_network

DEPLOY = ROOT / "deploy" / "systemd"
PAGE = DEPLOY / "README.md"
FILES, UNITS = "/opt/deploy/systemd", "/etc/systemd/system"  # in there
# The line of the page that installed() is for.
FETCH = "python3 -m venv /opt/prefork && /opt/prefork/bin/pip install ../.."
INSTANCE = "upper"
SERVICE, METRICS = ("127.0.0.1", 9999), ("127.0.0.1", 9465)  # the network is its own: these are free there
RELEASES = {"bookworm": 252, "trixie": 257}  # of Debian, and the version of their systemd
PACKAGES = (
    "systemd", "iproute2", "passwd", "procps", "python3-psutil", "python3-setproctitle",
)  # fmt: skip
NAMESPACES = ["unshare", "--cgroup", "--pid", "--mount", "--uts", "--ipc", "--net", "--fork", "--kill-child"]
STUBS = ("boot", "sysinit", "basic", "shutdown", "network", "sockets", "multi-user")
CLEAN = ["env", "-i", "PATH=/usr/sbin:/usr/bin:/sbin:/bin", "HOME=/root", "LANG=C.UTF-8"]
# Once for all boots of a release. /opt/prefork is as FETCH leaves it, but the libraries are Debian's, and the one of
# which Debian 12 has too old a version is the tests' own. In memory at first, since a folder that is itself of layers
# cannot be the upper one of others.
INSTALL = """
set -e
mount --make-rprivate /
mount -t tmpfs tmpfs /mnt
mkdir /mnt/upper /mnt/work /mnt/host
mount -t overlay overlay -o "lowerdir=$HOST,upperdir=/mnt/upper,workdir=/mnt/work" /mnt/host
chroot /mnt/host python3 -m venv --without-pip --system-site-packages /opt/prefork
cp -rL "$CODE/prefork" "$PROMETHEUS" /mnt/host/opt/prefork/lib/python3.*/site-packages/
cp -r "$CODE/deploy" /mnt/host/opt/
printf '%s\\n' '#!/opt/prefork/bin/python' 'import sys' 'from prefork.cli.main import main' 'sys.exit(main())' \
    >/mnt/host/opt/prefork/bin/prefork
chmod +x /mnt/host/opt/prefork/bin/prefork
chroot /mnt/host /opt/prefork/bin/python -m compileall -q /opt/prefork
cp -a /mnt/upper/opt "$LAYER"
"""
# Run as PID 1 of new namespaces, in a folder of its own.
BOOT = """
set -e
mount --make-rprivate /
mount -t tmpfs tmpfs /mnt
mkdir /mnt/upper /mnt/work /mnt/host
mount -t overlay overlay -o "lowerdir=$LOWER,upperdir=/mnt/upper,workdir=/mnt/work" /mnt/host
cd /mnt/host
for stub in $STUBS; do printf '[Unit]\\nDefaultDependencies=no\\n' >etc/systemd/system/$stub.target; done
mount -t proc proc proc
mount --bind proc/sys proc/sys && mount -o remount,bind,ro proc/sys
mount -t sysfs -o ro sysfs sys
mount -t cgroup2 cgroup2 sys/fs/cgroup
mount -t tmpfs -o mode=755 tmpfs dev
mkdir dev/shm dev/pts
ln -s pts/ptmx dev/ptmx
for device in null zero full random urandom tty; do touch dev/$device && mount --bind /dev/$device dev/$device; done
for device in console kmsg; do touch dev/$device && mount --bind /dev/null dev/$device; done
mount -t tmpfs tmpfs usr/lib/systemd/system-generators
mkdir old
pivot_root . old
umount -l /old
exec env -i container=prefork-tests PATH="$PATH" /usr/lib/systemd/systemd --unit=boot.target --log-target=null \
    --show-status=no
"""
ADDRESS = f"[Socket]\nListenStream=\nListenStream=0.0.0.0:{SERVICE[1]}\n"
TESTS = "[Service]\nStandardOutput=append:/run/log.txt\nStandardError=append:/run/log.txt\n"


def page_lines(word: str) -> str:
    """The block of the page's shell commands in which this word is."""
    return next(block for block in _blocks("sh") if word in block)


def page_unit(name: str) -> str:
    """The unit or drop-in that the page has under this name, below the folder of units."""
    return next(block for block in _blocks("ini") if block.startswith(f"# {UNITS}/{name}\n"))


def page_dropin(name: str) -> dict[str, str]:
    """The drop-in of the service that the page has under this name."""
    return {name: page_unit(f"prefork@{INSTANCE}.service.d/{name}")}


def page_commands() -> dict[str, str]:
    """The page's table: the command of each job."""
    return dict(re.findall(r"^\| ([^|`]+) \| `([^`]+)`", PAGE.read_text(), re.MULTILINE))


def page_exposure() -> tuple[float, ...]:
    """The exposure that the page claims for the unit, and for one with a port of its own."""
    found = re.search(r"gives the unit (\d\.\d), with a port of its own (\d\.\d)", PAGE.read_text())
    assert found is not None
    return tuple(map(float, found.groups()))


def _blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", PAGE.read_text(), re.DOTALL | re.MULTILINE)


@dataclass(frozen=True)
class Release:
    """A Debian release with prefork in it: what a boot lies upon."""

    suite: str
    layers: str

    @property
    def version(self) -> int:
        return RELEASES[self.suite]


def installed(suite: str, host: Path, folder: Path) -> Release:
    """Put prefork over this root; what lies over it is kept in `folder`, which is empty."""
    environ = {
        "PATH": _path(), "HOST": str(host), "LAYER": str(folder), "CODE": str(ROOT),
        "PROMETHEUS": str(Path(prometheus_client.__file__).parent),
    }  # fmt: skip
    done = subprocess.run(
        ["unshare", "--mount", "sh", "-c", INSTALL], env=environ, capture_output=True, text=True, timeout=HUNG,
        check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    return Release(suite, f"{folder}:{host}")


class Systemd:
    """Use it as a context manager, within which the test's own thread, and those it starts, are in its network.

    It has what the page installs. `files` are the program (app.py) and the settings (upper.toml) of the instance;
    without them there is none. `dropins` are of its service. `newer`: with what the page has
    for 257; left out, that is as the release is.
    """

    def __init__(
        self, release: Release, folder: Path, files: dict[str, str] | None = None,
        dropins: dict[str, str] | None = None, *, newer: bool | None = None,
    ) -> None:  # fmt: skip
        self._cgroup = Path(_cgroup2() or "/") / f"prefork-tests-{os.getpid()}"
        self._release, self._folder = release, folder / "booted"
        self._files, self._dropins = files, {"tests.conf": TESTS} | (dropins or {})
        self._newer = release.version >= 257 if newer is None else newer
        self._process: subprocess.Popen[bytes] | None = None
        self._outside = os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
        self.pid = 0

    def __enter__(self) -> Self:
        self._folder.mkdir()
        self._cgroup.mkdir()
        start = 'echo $$ >"$0/cgroup.procs" && exec "$@"'
        with (self._folder / "boot.log").open("wb") as log:
            self._process = subprocess.Popen(
                ["sh", "-c", start, self._cgroup, *NAMESPACES, "sh", "-c", BOOT],
                env={"PATH": _path(), "LOWER": self._release.layers, "STUBS": " ".join(STUBS)},
                stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True,
            )  # fmt: skip
        try:
            self._wait_booted()
            enter_network(f"/proc/{self.pid}/ns/net")
            self._install()
        except BaseException:
            self.__exit__()
            raise
        return self

    def _wait_booted(self) -> None:
        assert self._process is not None
        deadline = monotonic() + HUNG
        while True:
            assert self._process.poll() is None, (self._folder / "boot.log").read_text()
            assert monotonic() < deadline, "hung: systemd does not start"
            with contextlib.suppress(psutil.NoSuchProcess, IndexError):
                self.pid = psutil.Process(self._process.pid).children()[0].pid
                if "running" in self.run("systemctl", "is-system-running", check=False):
                    return

    def _install(self) -> None:
        """By the page's own lines, all but the one that fetches prefork; and the instance."""
        lines = page_lines(FETCH).replace(FETCH, "")
        self.said = self.shell(lines + (page_lines("10-systemd-257.conf") if self._newer else ""))
        if self._files is not None:
            self.write(f"{UNITS}/prefork@{INSTANCE}.socket.d/address.conf", ADDRESS)
            self.write(f"/etc/prefork/{INSTANCE}.toml", self._files["upper.toml"])
            self.write(f"/srv/{INSTANCE}-1/app.py", self._files["app.py"])
            self.path(f"/srv/{INSTANCE}").symlink_to(f"{INSTANCE}-1")
        self.dropin(self._dropins)

    def __exit__(self, *exc: object) -> None:
        assert self._process is not None
        enter_network(self._outside)
        os.close(self._outside)
        if self.pid:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, signal.SIGKILL)  # and with it everything in its pid namespace
        self._process.kill()
        self._process.wait(HUNG)
        deadline = monotonic() + HUNG
        while "populated 1" in (self._cgroup / "cgroup.events").read_text():
            assert monotonic() < deadline, "hung: something is left in the cgroup"
        for path, _, _ in os.walk(self._cgroup, topdown=False):
            os.rmdir(path)

    def run(self, *argv: str, check: bool = True) -> str:
        """Run this in there; what it printed."""
        enter = ["nsenter", "-t", str(self.pid), "--mount", "--pid", "--net", "--"]
        done = subprocess.run([*enter, *CLEAN, *argv], capture_output=True, text=True, timeout=HUNG, check=False)
        assert not check or done.returncode == 0, f"{argv}: {done.stdout}{done.stderr}\n{self.log}"
        return done.stdout + done.stderr

    def shell(self, lines: str) -> str:
        """Run these of the page, where its files are; what they printed."""
        return self.run("sh", "-ec", f"cd {FILES}\n{lines}")

    def dropin(self, files: dict[str, str]) -> None:
        """Drop-ins of the service, by their names."""
        for name, text in files.items():
            self.write(f"{UNITS}/prefork@{INSTANCE}.service.d/{name}", text)
        self.systemctl("daemon-reload")

    def write(self, inside: str, text: str) -> None:
        """A file in there, whose folder is made."""
        path = self.path(inside)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)

    def systemctl(self, verb: str, *units: str) -> str:
        return self.run("systemctl", "--no-pager", verb, *units)

    def shown(self, name: str) -> str:
        """Of the service, as `systemctl show` has it."""
        return self.run("systemctl", "show", "--value", "-p", name, f"prefork@{INSTANCE}.service").strip()

    @property
    def log(self) -> str:
        """Return all that the service wrote."""
        path = self.path("/run/log.txt")
        return path.read_text() if path.exists() else ""

    def path(self, inside: str) -> Path:
        """A path of there, from here."""
        return Path(f"/proc/{self.pid}/root{inside}")

    def pid_of(self, title: str) -> int:
        """A process of the service, by its title; the pid is the one that it has here."""
        for process in psutil.Process(self.pid).children(recursive=True):
            with contextlib.suppress(psutil.Error, IndexError):
                if process.cmdline()[0].startswith(f"prefork: {title}"):
                    return process.pid
        raise AssertionError(f"there is no {title}\n{self.log}")


def _cgroup2() -> str | None:
    """Return the folder where the unified hierarchy is mounted."""
    lines = (line.split() for line in Path("/proc/self/mounts").read_text().splitlines())
    return next((words[1] for words in lines if words[2] == "cgroup2"), None)


def _path() -> str:
    return os.environ["PATH"] + ":/usr/sbin:/sbin"


def possible() -> bool:
    """Say if this machine lets us: root, what makes a root of a release, and a cgroup to put it in."""
    where = _cgroup2()
    if os.geteuid() != 0 or not shutil.which("mmdebstrap") or where is None or not os.access(where, os.W_OK):
        return False
    return subprocess.run([*NAMESPACES, "true"], capture_output=True, check=False).returncode == 0
