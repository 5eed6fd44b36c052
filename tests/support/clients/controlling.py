"""`prefork ctl` as a user runs it, and the bare socket underneath.

Runs in the test's process; the command is a process of its own.
"""

import contextlib
import json
import os
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from time import monotonic
from typing import Any, BinaryIO, TypeVar

from prefork.commands import COMMAND_TABLE
from prefork.control.client import Client
from tests.support.programs.command import HUNG, MODULE, ROOT

Done = subprocess.CompletedProcess
T = TypeVar("T")


def ctl(path: Path, *argv: str, before: Sequence[str] = ()) -> "Done[str]":
    """`prefork ctl` at the control socket of this path, to its end; `before` is put in front of the command."""
    environ = {**os.environ, "PYTHONPATH": str(ROOT), "PREFORK_CONTROL": path.name}
    command = [*before, *MODULE, "ctl", *argv]
    return subprocess.run(command, env=environ, cwd=path.parent, capture_output=True, text=True, timeout=HUNG)


@contextlib.contextmanager
def started(path: Path, *argv: str) -> Iterator["subprocess.Popen[str]"]:
    """The same, while it runs; killed at the end of the block if it still does."""
    environ = {**os.environ, "PYTHONPATH": str(ROOT), "PREFORK_CONTROL": path.name}
    pipe = subprocess.PIPE
    with subprocess.Popen(
        [*MODULE, "ctl", *argv], env=environ, cwd=path.parent, stdout=pipe, stderr=pipe, text=True
    ) as process:
        try:
            yield process
        finally:
            process.kill()


def printed(path: Path, *argv: str, before: Sequence[str] = ()) -> Any:
    """The result of a verb as `prefork ctl --json` prints it, which must be good."""
    done = ctl(path, *argv, "--json", before=before)
    assert done.returncode == 0, done.stdout + done.stderr
    return json.loads(done.stdout.splitlines()[-1])["result"]


def asked(path: Path, verb: str, argument: int | str | None = None) -> Any:
    """The same without a process, which costs more than the service's answer."""
    (row,) = (row for row in COMMAND_TABLE if row.verb == verb)
    with Client(os.path.relpath(path), HUNG) as client:
        return client.result(row, argument)


def until(true: Callable[[T], object], ask: Callable[[], T]) -> T:
    """What is answered, once this is true of it. A look at the processes ends after LOOKING_S, whatever it has found by
    then: where the machine stands still meanwhile, nothing."""
    deadline = monotonic() + HUNG
    while not true(found := ask()):
        assert monotonic() < deadline, f"hung: {found}"
    return found


def looked_at(found: dict[str, Any]) -> bool:
    """Whether what `workers` answers has all that a look finds."""
    rows = [*found["workers"], *(found["holders"] or ())]
    return all(row["rss_bytes"] and (row.get("peers") or row["state"] != "busy") for row in rows)


@contextlib.contextmanager
def connected(path: Path) -> Iterator[tuple[socket.socket, BinaryIO]]:
    """A client of the socket itself, for what the command cannot do: two requests at once, half a request, silence."""
    with socket.socket(socket.AF_UNIX) as sock, sock.makefile("rb") as answers:
        sock.settimeout(HUNG)
        sock.connect(os.path.relpath(path))
        yield sock, answers


def answer(answers: BinaryIO) -> dict[str, Any]:
    """The line that ends an answer; progress is passed over."""
    for line in answers:
        message: dict[str, Any] = json.loads(line)
        if "ok" in message:
            return message
    raise AssertionError("the connection was closed before the answer had ended")


@contextlib.contextmanager
def open_folder() -> Iterator[Path]:
    """A folder that another user may enter, wherever TMPDIR is; its path is short."""
    with tempfile.TemporaryDirectory(dir="/var/tmp") as name:
        os.chmod(name, 0o711)
        yield Path(name)


OTHER = 65534
AS_OTHER = ROOT / "tests" / "support" / "programs" / "as_other.py"


def as_other(path: Path, verb: str, uid: int = OTHER) -> dict[str, Any]:
    """Return the answer that another user gets."""
    line = json.dumps({"verb": verb, **({"workers": 1} if verb == "scale" else {})})
    command = [sys.executable, str(AS_OTHER), str(path), line, str(uid)]
    return dict(json.loads(subprocess.check_output(command, text=True, timeout=HUNG)))
