"""A real systemd that runs the units of deploy/systemd: PID 1 of namespaces of its own, as a small host.

Runs in the test's process, as root. Owns the namespaces and the cgroup; what systemd writes goes to memory,
and nothing of the machine's own systemd, users or units is seen by it.
"""

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import sysconfig
from pathlib import Path
from time import monotonic
from typing import Self

import psutil

from .hosts import HUNG, ROOT, enter_network

DEPLOY = ROOT / "deploy" / "systemd"
SYSTEMD = Path("/usr/lib/systemd/systemd")
INSTANCE = "upper"
SERVICE, METRICS = ("127.0.0.1", 9999), ("127.0.0.1", 9465)  # the network is its own: these are free there
NAMESPACES = ["unshare", "--cgroup", "--pid", "--mount", "--uts", "--ipc", "--net", "--fork", "--kill-child"]
STUBS = ("boot", "sysinit", "basic", "shutdown", "network", "sockets", "multi-user")
# Run as PID 1 of new namespaces. Nothing of /run, /etc, /opt, /srv, /var or /tmp is the machine's; the interpreter, the
# libraries and the code are seen under /opt, since ProtectHome= and PrivateTmp= hide where they are. /opt/prefork is a
# virtual environment, as a user's is, whose packages are those two folders.
BOOT = """
set -e
mount --make-rprivate /
mount -t proc proc /proc
mount --bind /proc/sys /proc/sys && mount -o remount,bind,ro /proc/sys
mount -t cgroup2 cgroup2 /sys/fs/cgroup
for device in console kmsg; do [ ! -e /dev/$device ] || mount --bind /dev/null /dev/$device; done
mount -t tmpfs -o mode=755 tmpfs /opt
packages=/opt/prefork/lib/python$VERSION/site-packages
mkdir -p /opt/python /opt/prefork/bin $packages /opt/prefork/code /opt/prefork/libraries /opt/keep
ln -s /opt/python/bin/python$VERSION /opt/prefork/bin/python
echo "home = /opt/python/bin" >/opt/prefork/pyvenv.cfg
printf '/opt/prefork/%s\n' code libraries >$packages/prefork.pth
mount --rbind "$PYTHON" /opt/python
mount --bind "$LIBRARIES" /opt/prefork/libraries
mount --bind "$CODE" /opt/prefork/code
mount --bind "$FILES" /opt/keep
cp -a /etc/passwd /etc/group /etc/nsswitch.conf /etc/ld.so.cache /opt/keep/
for folder in /etc /run /srv /var/lib /var/tmp /tmp /usr/lib/systemd/system /usr/lib/systemd/system-generators; do
    mount -t tmpfs -o mode=755 tmpfs $folder
done
mkdir -p /etc/systemd /srv/releases/1
ln -s releases/1 /srv/upper
cp /opt/keep/passwd /opt/keep/group /opt/keep/nsswitch.conf /opt/keep/ld.so.cache /etc/
cp -r /opt/keep/system /etc/systemd/
cp /opt/keep/prefork /opt/prefork/bin/
systemd-sysusers /opt/prefork/code/deploy/systemd/prefork.sysusers.conf
systemd-tmpfiles --create /opt/prefork/code/deploy/systemd/prefork.tmpfiles.conf
cp /opt/keep/upper.toml /etc/prefork/
cp /opt/keep/app.py /srv/upper/
exec env -i container=prefork-tests PATH="$PATH" "$SYSTEMD" --unit=boot.target --log-target=null --show-status=no
"""
# An interpreter made with a shared library looks for that where it was built.
OURS = """
[Service]
StandardOutput=append:/run/log.txt
StandardError=append:/run/log.txt
Environment=LD_LIBRARY_PATH=/opt/python/lib
"""
COMMAND = """\
#!/opt/prefork/bin/python
import sys
from prefork.cli.main import main
sys.exit(main())
"""


class Systemd:
    """Use it as a context manager, within which the test's own thread, and those it starts, are in its network.

    `files` are the program (app.py) and the settings (upper.toml) of the instance, `dropins` are of the service.
    """

    def __init__(self, folder: Path, files: dict[str, str], dropins: dict[str, str]) -> None:
        self._cgroup = Path(_cgroup2() or "/") / f"prefork-tests-{os.getpid()}"
        self._folder = folder / "booted"
        self._write(files, dropins)
        self._process: subprocess.Popen[bytes] | None = None
        self._outside = os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
        self.pid = 0

    def _write(self, files: dict[str, str], dropins: dict[str, str]) -> None:
        units = self._folder / "system"
        for name, text in ({"tests.conf": OURS} | dropins).items():
            path = units / f"prefork@{INSTANCE}.service.d" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
        for name in ("prefork@.service", "prefork@.socket"):
            shutil.copy(DEPLOY / name, units)
        socket = units / f"prefork@{INSTANCE}.socket.d" / "address.conf"
        socket.parent.mkdir()
        socket.write_text(f"[Socket]\nListenStream=\nListenStream=0.0.0.0:{SERVICE[1]}\n")
        for stub in STUBS:
            (units / f"{stub}.target").write_text("[Unit]\nDefaultDependencies=no\n")
        for name, text in files.items():
            (self._folder / name).write_text(text)
        command = self._folder / "prefork"
        command.write_text(COMMAND)
        command.chmod(0o755)

    def __enter__(self) -> Self:
        self._cgroup.mkdir()
        environ = {
            "PATH": os.environ["PATH"] + ":/usr/sbin:/sbin", "SYSTEMD": str(SYSTEMD), "PYTHON": sys.base_prefix,
            "VERSION": sysconfig.get_python_version(), "LIBRARIES": sysconfig.get_path("platlib"), "CODE": str(ROOT),
            "FILES": str(self._folder),
        }  # fmt: skip
        start = 'echo $$ >"$0/cgroup.procs" && exec "$@"'
        with (self._folder / "boot.log").open("wb") as log:
            self._process = subprocess.Popen(
                ["sh", "-c", start, self._cgroup, *NAMESPACES, "sh", "-c", BOOT], env=environ,
                stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True,
            )  # fmt: skip
        try:
            self._wait_booted()
            enter_network(f"/proc/{self.pid}/ns/net")
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
        done = subprocess.run([*enter, *argv], capture_output=True, text=True, timeout=HUNG, check=False)
        assert not check or done.returncode == 0, f"{argv}: {done.stdout}{done.stderr}\n{self.log}"
        return done.stdout + done.stderr

    def systemctl(self, verb: str, *units: str) -> str:
        return self.run("systemctl", "--no-pager", verb, *units)

    def shown(self, name: str) -> str:
        """Of the service, as `systemctl show` has it."""
        return self.run("systemctl", "show", "--value", "-p", name, f"prefork@{INSTANCE}.service").strip()

    @property
    def log(self) -> str:
        """What the service wrote."""
        path = self.path("/run/log.txt")
        return path.read_text() if path.exists() else ""

    def path(self, inside: str) -> Path:
        """A path of there, from here."""
        return Path(f"/proc/{self.pid}/root{inside}")

    def outside(self, title: str) -> int:
        """The pid of a process of the service, by its title, as it is called here."""
        return self._pids(title)[0]

    def inside(self, title: str) -> int:
        """The same, as it is called there."""
        return self._pids(title)[-1]

    def _pids(self, title: str) -> list[int]:
        for process in psutil.Process(self.pid).children(recursive=True):
            with contextlib.suppress(psutil.Error, IndexError):
                if process.cmdline()[0].startswith(f"prefork: {title}"):
                    status = Path(f"/proc/{process.pid}/status").read_text()
                    return [int(pid) for pid in status.partition("NSpid:")[2].splitlines()[0].split()]
        raise AssertionError(f"there is no {title}\n{self.log}")


def _cgroup2() -> str | None:
    """Where the unified hierarchy is mounted."""
    lines = (line.split() for line in Path("/proc/self/mounts").read_text().splitlines())
    return next((words[1] for words in lines if words[2] == "cgroup2"), None)


def possible() -> bool:
    """Whether this machine lets us: root, a systemd that can be started, and a cgroup to put it in."""
    where = _cgroup2()
    if os.geteuid() != 0 or not SYSTEMD.exists() or where is None or not os.access(where, os.W_OK):
        return False
    return subprocess.run([*NAMESPACES, "true"], capture_output=True, check=False).returncode == 0
