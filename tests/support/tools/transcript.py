"""The terminal of a page, run: its commands are run, and their output is compared with what the page says.

A page is one session in a folder of its own, in which its files lie. `prefork run` is left running until the next one,
or until the page ends. Numbers may be others than on the page, and a line `…` stands for any lines, `…` in a line for
any text. The ports and paths of the page are replaced by free ones.
"""

import contextlib
import os
import re
import shlex
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

from tests.support.programs.service import HUNG, ROOT, kill_session

_SHIM = '#!/bin/sh\nexec "{python}" {arguments} "$@"\n'


class Mismatch(AssertionError):
    """The output is not as the page shows it."""


def normal(line: str) -> str:
    """A line without the numbers, durations and addresses that differ from run to run."""
    return re.sub(r"\d[\d.:]*(?:ms|[smhd]\d*)*", "#", " ".join(line.split()))


def _pattern(line: str) -> str:
    return ".*".join(re.escape(part.strip()) for part in normal(line).split("…"))


def matches(shown: list[str], printed: list[str], *, so_far: bool = False) -> bool:
    """Say if the page shows what was printed; `so_far`: more may have been printed after it."""
    if not shown:
        return so_far or not printed
    if shown[0].strip() == "…":
        return any(matches(shown[1:], printed[start:], so_far=so_far) for start in range(len(printed) + 1))
    if not printed or not re.fullmatch(_pattern(shown[0]), normal(printed[0])):
        return False
    return matches(shown[1:], printed[1:], so_far=so_far)


class Session:
    """The terminal of one page, in `folder`."""

    def __init__(self, folder: Path, substitutes: dict[str, str]) -> None:
        self._folder = folder
        self._substitutes = substitutes
        self._environ = {**os.environ, "PYTHONPATH": f"{folder}:{ROOT}", "PATH": f"{folder}/bin:{os.environ['PATH']}"}
        self._service: subprocess.Popen[str] | None = None
        (folder / "bin").mkdir()
        for name, arguments in (("prefork", "-m prefork"), ("python", "")):
            shim = folder / "bin" / name
            shim.write_text(_SHIM.format(python=sys.executable, arguments=arguments))
            shim.chmod(0o755)

    def write(self, name: str, text: str) -> None:
        """Put a file of the page into the folder."""
        (self._folder / name).write_text(self._replaced(text))

    def follow(self, text: str) -> None:
        """Do what the text of a terminal shows. Raises Mismatch."""
        for part in re.split(r"^\$ ", text, flags=re.MULTILINE)[1:]:
            command, *shown = part.splitlines()
            command, shown = self._replaced(command), [self._replaced(line) for line in shown]
            if command.startswith("export "):
                name, _, value = command.removeprefix("export ").partition("=")
                self._environ[name] = value
            elif "prefork run" in command and "…" not in command and self._serves(shown):
                self.serve(command, shown)
            else:
                printed = self._run(command)
                if not matches(shown, printed.splitlines()):
                    raise Mismatch(f"$ {command}\n{printed}\nis shown as\n" + "\n".join(shown))

    @staticmethod
    def _serves(shown: list[str]) -> bool:
        return any("INFO" in line for line in shown)

    def _replaced(self, text: str) -> str:
        for theirs, ours in self._substitutes.items():
            text = text.replace(theirs, ours)
        return text

    def _run(self, command: str) -> str:
        done = subprocess.run(
            ["bash", "-c", command], cwd=self._folder, env=self._environ, stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=HUNG,
        )  # fmt: skip
        return done.stdout

    def serve(self, command: str, shown: list[str]) -> None:
        """Leave a command running once it has printed this. Raises Mismatch."""
        self.end_service()
        command = self._replaced(command)
        self._service = subprocess.Popen(
            shlex.split(command), cwd=self._folder, env=self._environ, stdin=subprocess.DEVNULL,
            stderr=subprocess.PIPE, text=True, start_new_session=True,
        )  # fmt: skip
        printed: list[str] = []
        assert self._service.stderr is not None
        with watchdog(self._service):
            for line in self._service.stderr:
                printed.append(line)
                if matches(shown, printed, so_far=True):
                    return
        raise Mismatch(f"$ {command}\n{''.join(printed)}\nis shown as\n" + "\n".join(shown))

    def end_service(self) -> None:
        """Drain what was left running. Nothing of it may remain."""
        if self._service is None:
            return
        service, self._service = self._service, None
        with contextlib.suppress(ProcessLookupError):
            service.send_signal(signal.SIGTERM)
        try:
            log = service.communicate(timeout=HUNG)[1]
        finally:
            left = kill_session(service.pid)
        assert (service.returncode, left) == (0, []), log


@contextlib.contextmanager
def watchdog(process: "subprocess.Popen[str]") -> Iterator[None]:
    """End the process, and so its output, when the block hangs."""
    timer = threading.Timer(HUNG, process.terminate)
    timer.start()
    try:
        yield
    finally:
        timer.cancel()
        timer.join()


@contextlib.contextmanager
def session(folder: Path, substitutes: dict[str, str]) -> Iterator[Session]:
    """A terminal whose service has ended when the block has."""
    terminal = Session(folder, substitutes)
    try:
        yield terminal
    finally:
        terminal.end_service()
