"""The live screen of `prefork top`: poll the source, draw, and act on keys.

Runs in its own process. Threads poll the source and carry out commands, which may take long, so that the screen and the
keys work even if the service does not answer. The threads end with the process. rich is imported only here.
"""

import contextlib
import os
import queue
import re
import select
import termios
import threading
import time
import tty
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

from ..control.render import duration
from ..errors import PreforkError
from .rates import Look
from .screen import SORTS, Line, View, lines, ordered
from .sources import Source

__all__ = ["show"]

EVERY_S = 1.0
SPAN_S = 4.5  # rates cover about this time: five looks
NOTICE_S = 10.0
_KEY = re.compile(rb"\x1b[\[O]([A-Z])|\x1b?(.)", re.DOTALL)
ARROWS = {"A": "k", "B": "j"}
# With metrics only.
REFUSED = {
    "d": "could not replace a worker: metrics can only be read; say --control PATH",
    **dict.fromkeys("sjk", "there are no rows of workers here; they need --control PATH"),
}


def show(source: Source) -> int:
    """Show the screen until the user quits. Raises PreforkError if the service cannot be reached at the start."""
    try:
        from rich.console import Console
        from rich.live import Live
        from rich.text import Text
    except ImportError:
        raise PreforkError("could not show the screen: rich is not installed; the extra top has it") from None
    console = Console()
    if console.is_dumb_terminal:
        raise PreforkError("could not show the screen: TERM is dumb; --once prints it")
    screen = Screen(source, source.look())

    def drawn() -> Text:
        width, height = console.size
        text = Text(no_wrap=True, overflow="crop", end="")
        for number, line in enumerate(screen.lines(width, height)):
            text.append("\n" * bool(number) + line.text.ljust(width), line.style)
        return text

    with _keys(), Live(console=console, screen=True, auto_refresh=False) as live:
        while not screen.left:
            live.update(drawn(), refresh=True)
            screen.wait()
    return 0


@contextlib.contextmanager
def _keys() -> Iterator[None]:
    """Read keys at once and without echo; Ctrl-C keeps its meaning."""
    before = termios.tcgetattr(0)
    tty.setcbreak(0)
    try:
        yield
    finally:
        termios.tcsetattr(0, termios.TCSADRAIN, before)


@dataclass(frozen=True, slots=True)
class Notice:
    text: str


class Screen:
    """The contents of the screen, and the handling of keys."""

    def __init__(self, source: Source, look: Look) -> None:
        self.left = False
        self._source = source
        self._looks = [look]
        self._view = View(0, chosen=_first(look))
        self._problem = ""
        self._notice_until = 0.0
        self._found: queue.SimpleQueue[Look | Notice | PreforkError] = queue.SimpleQueue()
        self._woken = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._start(self._ask)

    def lines(self, width: int, height: int) -> list[Line]:
        notice = self._view.notice if time.monotonic() < self._notice_until else ""
        view = replace(self._view, width=width, height=height, notice=notice, problem=self._said_problem())
        return lines(self._before(), self._looks[-1], view)

    def wait(self) -> None:
        """Wait until there is something to draw: an answer, a key, or after a second."""
        ready = select.select([0, self._woken], [], [], EVERY_S)[0]
        if self._woken in ready:
            os.eventfd_read(self._woken)
            while not self._found.empty():
                self._note(self._found.get())
        if 0 in ready:
            self.typed(os.read(0, 1024))

    def typed(self, data: bytes) -> None:
        self.left = self.left or not data  # the terminal is gone
        for arrow, key in _KEY.findall(data):
            self._act(ARROWS.get(arrow.decode(), "") if arrow else key.decode("ascii", "replace"))

    # Keys.

    def _act(self, key: str) -> None:
        if key == "q":
            self.left = True
        elif key in REFUSED and self._looks[-1].workers is None:
            self._say(REFUSED[key])
        elif key == "s":
            self._view = replace(self._view, sort=SORTS[(SORTS.index(self._view.sort) + 1) % len(SORTS)])
        elif key in ("j", "k"):
            self._choose(1 if key == "j" else -1)
        elif key == "d" and self._view.chosen is not None:
            slot = self._view.chosen[0]
            self._start(lambda: self._source.replace(slot, lambda text: self._put(Notice(text))))

    def _choose(self, step: int) -> None:
        there = [(w["slot"], w["pid"]) for w in ordered(self._before(), self._looks[-1], self._view.sort)]
        if self._view.chosen in there:
            at = there.index(self._view.chosen) + step
            self._view = replace(self._view, chosen=there[max(0, min(at, len(there) - 1))])

    # Threads and their results.

    def _start(self, work: Callable[[], None]) -> None:
        def run() -> None:
            try:
                work()
            except PreforkError as exc:
                self._put(Notice(str(exc)))

        threading.Thread(target=run, daemon=True).start()

    def _ask(self) -> None:
        while True:
            time.sleep(EVERY_S)
            try:
                self._put(self._source.look())
            except PreforkError as exc:
                self._put(exc)

    def _put(self, found: Look | Notice | PreforkError) -> None:
        self._found.put(found)
        os.eventfd_write(self._woken, 1)

    def _note(self, found: Look | Notice | PreforkError) -> None:
        if isinstance(found, Look):
            self._problem = ""
            oldest = found.at - SPAN_S
            self._looks = [*([look for look in self._looks if look.at >= oldest] or self._looks[-1:]), found]
            self._keep_chosen(found)
        elif isinstance(found, Notice):
            self._say(found.text)
        else:
            self._problem = str(found)

    def _keep_chosen(self, look: Look) -> None:
        """Keep the same worker selected; if it is gone, its successor in the slot, or the first worker."""
        there = [(w["slot"], w["pid"]) for w in look.workers or []]
        chosen = self._view.chosen
        if chosen not in there:
            same = [worker for worker in there if chosen is not None and worker[0] == chosen[0]]
            self._view = replace(self._view, chosen=same[0] if same else _first(look))

    def _say(self, text: str) -> None:
        self._view = replace(self._view, notice=text)
        self._notice_until = time.monotonic() + NOTICE_S

    def _said_problem(self) -> str:
        age = time.monotonic() - self._looks[-1].at
        if age < 2 * EVERY_S:
            return ""
        return f"no answer for {duration(age)}" + (f": {self._problem}" if self._problem else "")

    def _before(self) -> Look | None:
        return self._looks[0] if len(self._looks) > 1 else None


def _first(look: Look) -> tuple[int, int] | None:
    workers = sorted((w["slot"], w["pid"]) for w in look.workers or [])
    return workers[0] if workers else None
