"""A service that is released anew while it runs: what `release.py` in its folder says is its code from then on.

Runs in the test's process. A release may define `RELEASE`, which the command `release` answers, and `Hooks`; it may as
well raise, exit or hang.
"""

from pathlib import Path
from time import monotonic
from typing import Any
from urllib.request import urlopen

import psutil

from tests.support.programs.served import RELOADS
from tests.support.programs.service import HUNG, Service, script

DEFINITIONS = """
RELEASE = ""
with open("release.py") as file:
    exec(compile(file.read(), "release.py", "exec"))

class Handler(Who):
    def do_release(self):
        return RELEASE
"""
HANGS = "import time\nwhile True: time.sleep(60)\n"
# Before what is to go wrong only after the rehearsal.
AFTERWARDS = "if not rehearsing():\n    "


def release(folder: Path, text: str) -> None:
    """Put it there as a whole, as a deployment should."""
    new = folder / "release.new"
    new.write_text(text)
    new.rename(folder / "release.py")


def numbered(number: int, more: str = "") -> str:
    return f"RELEASE = 'r{number}'\n{more}"


class Released(Service):
    """The service, with its first release in place."""

    def __init__(self, folder: Path, first: str = numbered(1), source: str | None = None, **settings: Any) -> None:
        release(folder, first)
        argv, before, fds = settings.pop("argv", None), settings.pop("before", ()), settings.pop("fds", ())
        env = {RELOADS: "1", **settings.pop("env", {})}
        if argv is None and source is None:
            source = script(DEFINITIONS, **settings)
        super().__init__(folder, source, argv=argv, env=env, before=before, fds=fds)

    def release(self, text: str) -> None:
        release(self.directory, text)

    def answering(self) -> str:
        """Which release answers a new connection now."""
        with self.connect() as connection:
            return connection.ask(b"release").decode()

    def wait_answering(self, release: str) -> None:
        """Until a new connection is answered by this release: an old worker that is told to leave accepts once more."""
        deadline = monotonic() + HUNG
        while (found := self.answering()) != release:
            assert monotonic() < deadline, f"hung: {found} answers"

    def wait_degraded(self) -> None:
        """Until the master shows in its title that it goes on without the program."""
        while "degraded" not in " ".join(psutil.Process(self.pid).cmdline()):
            assert self.process.poll() is None

    def wait_reloads(self, **counts: int) -> None:
        """Until so many reloads have ended so."""
        self.wait_pool(lambda pool: all(pool["reloads"][result] >= count for result, count in counts.items()))


def scraped(port: int, name: str) -> float | None:
    """The value of this series now, its name as it stands in the text; None where it is absent or nobody answers."""
    try:
        with urlopen(f"http://127.0.0.1:{port}/metrics", timeout=HUNG) as answer:
            text = answer.read().decode()
    except OSError:
        return None
    return next((float(line.rpartition(" ")[2]) for line in text.splitlines() if line.startswith(name + " ")), None)


def wait_scraped(port: int, name: str, value: float | None) -> None:
    """Until the series has this value: for what only the exporter can tell. None: until nobody answers with it."""
    deadline = monotonic() + HUNG
    while (found := scraped(port, name)) != value:
        assert monotonic() < deadline, f"hung: {name} is {found}, not {value}"
