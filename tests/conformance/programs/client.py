"""A program's own client, a process that asks when it is told to: `python -m tests.conformance.programs.client MODULE`.

    {"host": "127.0.0.1", "port": 9999}     on stdin: ask there, once
    null                                    on stdout: the answer was right; or a text: what went wrong

Runs in the environment of the programs; `Client` is its other end, in the process that tests.
"""

import importlib
import json
import select
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

HUNG = 30.0  # seconds; never reached unless something hangs


class Client:
    """A client process, for the length of a block."""

    def __init__(self, command: Sequence[str], module: str, folder: Path, environ: Mapping[str, str]) -> None:
        self._command = [*command, "-m", __name__, module]
        self._folder, self._environ = folder, environ

    def begin(self, address: tuple[str, int]) -> None:
        """Have it ask there; `answer()` tells what came of it."""
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps({"host": address[0], "port": address[1]}).encode() + b"\n")

    def answer(self) -> str | None:
        """None if the answer was right, else what went wrong."""
        assert self._process.stdout is not None
        assert select.select([self._process.stdout], [], [], HUNG)[0], "hung: the client has no answer"
        line = self._process.stdout.readline()
        assert line, "the client ended"
        found: str | None = json.loads(line)
        return found

    def ask(self, address: tuple[str, int]) -> None:
        """Ask there; the answer must be right."""
        self.begin(address)
        wrong = self.answer()
        assert wrong is None, wrong

    def __enter__(self) -> Self:
        pipe = subprocess.PIPE
        self._process = subprocess.Popen(
            self._command, cwd=self._folder, env=self._environ, stdin=pipe, stdout=pipe, bufsize=0
        )
        return self

    def __exit__(self, kind: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None) -> None:
        if kind is not None:
            self._process.kill()
        self._process.communicate(timeout=HUNG)


def main(module: str) -> None:
    out, sys.stdout = sys.stdout, sys.stderr  # what a client's library prints is no answer
    ask = importlib.import_module(module).ask
    for line in sys.stdin:
        wrong = None
        try:
            ask(**json.loads(line))
        except Exception as exc:
            wrong = f"{type(exc).__name__}: {exc}"
        print(json.dumps(wrong), file=out, flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
