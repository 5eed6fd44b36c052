"""A recipe of deploy/recipes as its page says it is run: `prefork run`, kept running while it is reloaded and killed.

Runs in the test's process. What the master does is learnt from its log, line by line, as an operator does.
"""

import contextlib
import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self

from tests.support.programs.command import MODULE, Run, watched
from tests.support.programs.service import HUNG, ROOT

RECIPES = ROOT / "deploy" / "recipes"
READY = r"worker .*pid=(\d+): ready$"  # in the log


class Recipe(Run):
    """A running recipe. `address` is where it listens."""

    workers = 2

    def __init__(self, process: "subprocess.Popen[str]") -> None:
        super().__init__(process)
        self.read_until(r"listening on (\S+)", 1)
        self.address = self.found
        self.read_until(READY, self.workers)

    def read_until(self, pattern: str, count: int) -> None:
        """Read the log until so many more lines have this in them; what the pattern's group found is in `found`."""
        assert self.process.stderr is not None
        for line in self.process.stderr:
            self.lines.append(line)
            if match := re.search(pattern, line):
                self.found = match[match.lastindex or 0]
                count -= 1
                if not count:
                    return
        raise AssertionError(f"the recipe ended before its log had {pattern}:\n{self.log}")

    def reload(self) -> None:
        """HUP, until the old generation is gone."""
        self.process.send_signal(signal.SIGHUP)
        self.read_until(r"generation \d+ is in service", 1)

    def kill_each_worker(self) -> None:
        """SIGKILL to one worker after the other, each when the one before has been replaced."""
        for pid in re.findall(READY, self.log, re.MULTILINE)[-self.workers :]:
            self.kill(int(pid))

    def kill(self, pid: int) -> None:
        """SIGKILL to this worker, until it has been replaced."""
        self.allow(rf"pid={pid}: killed \(killed by SIGKILL\)")
        os.kill(pid, signal.SIGKILL)
        self.read_until(READY, 1)


@contextlib.contextmanager
def recipe(
    target: str, bind: str, *options: str, command: Sequence[str] = MODULE, cwd: Path = RECIPES, **env: str
) -> Iterator[Recipe]:
    """`prefork run TARGET` with two workers until the block ends."""
    process = subprocess.Popen(
        [*command, "run", target, "--bind", bind, "--max-children", str(Recipe.workers), *options],
        cwd=cwd, env={**os.environ, "PYTHONPATH": str(ROOT), **env}, stdin=subprocess.DEVNULL,
        stderr=subprocess.PIPE, text=True, start_new_session=True, pipesize=1 << 20,
    )  # fmt: skip
    run = None
    try:
        with watched(process):
            run = Recipe(process)
            yield run
            run.end()
            run.judge()
    finally:
        if run is not None:
            sys.stderr.write(run.log)  # pytest shows it on failure


@dataclass
class Asking:
    """One client that asks again and again, in a thread, until the end of the block."""

    ask: Callable[[], object]  # raises where the answer is not what it should be
    pause: float = 0.0  # seconds between two questions
    answered: int = 0
    failed: list[str] = field(default_factory=list)
    _enough: threading.Event = field(default_factory=threading.Event)
    _first: threading.Event = field(default_factory=threading.Event)

    def _run(self) -> None:
        while not self._enough.wait(self.pause):
            try:
                self.ask()
                self.answered += 1
            except Exception as exc:
                self.failed.append(repr(exc))
            self._first.set()

    def __enter__(self) -> Self:
        self._thread = threading.Thread(target=self._run)
        self._thread.start()
        assert self._first.wait(HUNG), "hung: no answer"
        return self

    def __exit__(self, *exc: object) -> None:
        self._enough.set()
        self._thread.join(2 * HUNG)
        assert not self._thread.is_alive(), "hung: a client does not end"
