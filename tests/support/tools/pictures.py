"""The pictures that the pages show: `prefork top` on a real terminal (tmux), and the dashboard of deploy/grafana.

    python -m tests.support.tools.pictures [SECONDS [FOLDER]]     into deploy/pictures, of a run of 60 s

Both are of the same real service, which is watched by a real Prometheus while it has a burst of clients, a reload, a
worker that is killed, and requests that fail; the dashboard shows another one beside it, whose clients stay. Runs in a
process of its own; owns all of that.
"""

import io
import os
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from random import Random
from threading import Event
from time import monotonic, time

from tests.support.clients.connections import HUNG, Load, connect, free_port
from tests.support.clients.keeping import Crowd
from tests.support.hosts.prometheus import prometheus
from tests.support.programs.monitored import WINDOW, monitored, watching
from tests.support.programs.monitored import target as named
from tests.support.programs.service import ROOT, Service
from tests.support.tools.panels import drawn

FOLDER = ROOT / "deploy" / "pictures"
SIZE = 110, 14  # of the terminal
INDENTED = r'x="([\d.]+)"( y="[\d.]+" )textLength="([\d.]+)"([^>]*)>((?:&#160;)+)(?=[^&<])'
LETTER = 12.2  # pixels of one, in rich's pictures
APP = Path(__file__).parents[1] / "programs" / "gateway_app.py"
WORKERS = 6
DEVICES = 60


def make(seconds: float, into: Path) -> None:
    """Run it all for about this long, and write top.svg and dashboard.svg."""
    with tempfile.TemporaryDirectory(prefix="pictures") as name:
        folder = Path(name)
        shutil.copy(APP, folder / "app.py")
        bind, metrics = (("127.0.0.1", free_port()) for _ in range(2))
        argv = [
            "-m", "prefork", "run", "app:Gateway", "--bind", f"127.0.0.1:{bind[1]}", "--control", "unix:control",
            "--metrics", f"127.0.0.1:{metrics[1]}", "--max-children", str(WORKERS),
        ]  # fmt: skip
        target: dict[str, object] = {"labels": {"service": "gateway"}, "targets": [f"127.0.0.1:{metrics[1]}"]}
        with (
            Service(folder, argv=argv, accounts=False) as service,
            devices(folder / "devices") as other,
            prometheus(folder, watching(folder, [target, other])) as server,
        ):
            service.expect("ValueError: not a message of ours", r"killed \(killed by SIGKILL\)")
            server.wait_for(f"prefork_lanes == {WORKERS}")
            began = time()
            with Load(bind, 3, right=b"PID\n"):
                live(service, bind, seconds * 3 / 4)
                with connect(bind) as slow:
                    assert slow.ask(b"hello") == b"HELLO"  # and stays: a worker that the screen shows busy for long
                    Event().wait(seconds / 4)
                    screen = screen_of_top(folder)
                    (into / "dashboard.svg").write_text(drawn(server, began, time(), WINDOW))
        (into / "top.svg").write_text(svg(screen))


@contextmanager
def devices(folder: Path) -> Iterator[dict[str, object]]:
    """A service whose clients stay, and say something now and then; who is silent for long is cut, and comes again."""
    folder.mkdir()
    source = monitored("from tests.support.programs.kept import Handler", max_children=2, keepalive_timeout=3.0)
    with Service(folder, source) as service, Crowd(service.address, DEVICES, Random(1), threads=1, pause=1.0):
        yield named("devices", service)


def live(service: Service, address: tuple[str, int], seconds: float) -> None:
    """Have each of these happen to the service, for an equal part of the time."""
    part = seconds / 4
    Event().wait(part)
    with Load(address, 9, right=b"PID\n"):
        Event().wait(part)
    Event().wait(part / 2)
    subprocess.run([sys.executable, "-m", "prefork", "ctl", "--control", "unix:control", "reload"],
                   cwd=service.directory, env=environ(), check=True, capture_output=True, timeout=HUNG)  # fmt: skip
    Event().wait(part / 2)
    os.kill(service.workers()[-1], 9)
    with Load(address, 1, question=b"bad"):
        Event().wait(part / 4)
    Event().wait(part * 3 / 4)


def environ() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(ROOT), "TERM": "xterm-256color", "LC_ALL": "C.UTF-8"}


def screen_of_top(folder: Path) -> str:
    """The screen of the terminal, with its colours, once `prefork top` has looked twice and knows the share of CPU."""
    with terminal(folder, [sys.executable, "-m", "prefork", "top", "--control", "unix:control"]) as tmux:
        deadline = monotonic() + HUNG
        while not re.search(r"^ +\d.* \d+% ", plain := capture(tmux), re.MULTILINE):
            assert monotonic() < deadline, f"hung: no rate on the screen:\n{plain}"
            Event().wait(0.1)  # a terminal tells nobody when it has shown something
        return capture(tmux, "-e")


@contextmanager
def terminal(folder: Path, argv: list[str]) -> Iterator[list[str]]:
    """The command on a terminal of its own; how that is asked."""
    tmux = ["tmux", "-S", str(folder / "t"), "-f", "/dev/null"]
    size = ["-x", str(SIZE[0]), "-y", str(SIZE[1])]
    subprocess.run([*tmux, "new-session", "-d", *size, shlex.join(argv)], cwd=folder, env=environ(), check=True)
    try:
        yield tmux
    finally:
        subprocess.run([*tmux, "kill-server"], check=True, timeout=HUNG)


def capture(tmux: list[str], *how: str) -> str:
    return subprocess.check_output([*tmux, "capture-pane", "-p", *how], text=True, timeout=HUNG)


def svg(screen: str) -> str:
    """The screen as a picture that needs no font of another host."""
    from rich.console import Console
    from rich.text import Text

    console = Console(record=True, width=SIZE[0], file=io.StringIO(), force_terminal=True)
    console.print(Text.from_ansi(screen.rstrip("\n")), no_wrap=True, crop=True)
    picture = console.export_svg(title="prefork top", unique_id="top")
    picture = re.sub(r"@font-face \{.*?\}\s*|<!--.*?-->\s*", "", picture, flags=re.DOTALL)
    picture = re.sub(INDENTED, _indented, picture)
    return "".join(f"{line.rstrip()}\n" for line in picture.replace("Fira Code, monospace", "monospace").splitlines())


def _indented(text: re.Match[str]) -> str:
    """Begins where its first letter is: some viewers drop the blanks before it."""
    x, middle, length, more, blanks = text.groups()
    moved = LETTER * blanks.count(";")
    return f'x="{float(x) + moved:g}"{middle}textLength="{float(length) - moved:g}"{more}>'


if __name__ == "__main__":
    seconds = float(sys.argv[1]) if len(sys.argv) > 1 else 60.0
    make(seconds, Path(sys.argv[2]) if len(sys.argv) > 2 else FOLDER)
