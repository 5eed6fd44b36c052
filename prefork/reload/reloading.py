"""Reload in place: rehearse the program that would be put in service, then exec.

    asked ─▶ WAITING ─▶ REHEARSING ─▶ exec ─▶ the new image: takeover.py
               │ two generations live    │ died, hung, or said why not
               ▼ until one is gone       ▼
              …                        failed: nothing has changed

Runs in the master, in its turns. Owns the rehearsal child, its result and its output. Must not wait. A rehearsal
succeeds only by what its own `serve_forever()` writes on a pipe, never by an exit status. When to exec is decided here;
the caller does it, with `execute()`.
"""

import contextlib
import errno
import json
import logging
import os
import re
import signal
from collections.abc import Callable, Iterator
from enum import Enum, auto
from typing import NamedTuple

from prefork.metrics.facts import ChildKind
from prefork.metrics.scoreboard import Slot
from prefork.workers.bootstrap import Birth, Master, leave

from .. import process
from ..errors import ConfigError, reason_of
from ..log_formats import escaped
from ..master.children import Child
from ..master.guard import attempt, named_reason, say_failed
from .handover import Record, handed_on
from .start_context import START
from .still_held import addresses, found, locked

log = logging.getLogger("prefork.supervisor")

OUTPUT_MAX = 64 * 1024  # of the output of a rehearsal, only the last so many bytes are kept
READS_A_TURN = 2  # of a pipe, each of so many bytes: a rehearsal may print faster than anybody reads
DESCRIPTORS_FREE = 16  # required before an exec
LAST_WORDS_S = 1.0  # from "ready" or "failed" to SIGKILL
KILL_AGAIN_S = 0.5  # until a SIGKILL that the kernel refused is sent again
ABOUT_TO_END = "the service is about to end"
WELL = {  # what a program may have done that ended with a good status
    "exit status 0": "; the program comes to its end without serving, or puts itself in the background (daemonises), "
    "where a reload cannot follow"
}
TAKEN = {errno.EADDRINUSE: addresses, errno.EWOULDBLOCK: locked}  # errors of who takes it, and what that may be
NOT_FOR_A_REHEARSAL = ("NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID", "LISTEN_PIDFDID")


class ReloadResult(NamedTuple):
    """The result of a reload. `reason` is one sentence; `output` is what the rehearsal printed."""

    ok: bool
    reason: str = ""
    output: str = ""


class Stage(Enum):
    IDLE = auto()
    WAITING = auto()  # asked for, not begun
    REHEARSING = auto()
    READY = auto()  # the rehearsal succeeded: the exec is next


# Called with a text for each step of a reload, and at last with its result.
TellReload = Callable[[ReloadResult | str], None]


class Reloading:
    """Run one reload at a time; one that is asked for meanwhile begins when this one has ended."""

    def __init__(
        self,
        boot_timeout: float,
        record: Callable[[], Record],
        fork: Callable[[ChildKind, Slot, Callable[[Birth, Master, int], int]], Child],
        watch: Callable[[int], None],
        unwatch: Callable[[int], None],
        tell: TellReload,
    ) -> None:
        self.stage = Stage.IDLE
        self.again = False  # another reload was asked for during this one
        self._boot_timeout = boot_timeout
        self._record = record
        self._fork = fork
        self._watch, self._unwatch = watch, unwatch
        self._tell = tell
        self._child: Child | None = None
        self._word = b""
        self._output = b""
        self._pipes: dict[str, int] = {}
        self._kill_at = 0.0
        self._killed = False
        self._cancelled = False

    @property
    def busy(self) -> bool:
        return self.stage is not Stage.IDLE

    def ask(self) -> None:
        if self.stage in (Stage.IDLE, Stage.WAITING):
            self.stage = Stage.WAITING
        else:
            self.again = True

    def turn(self, now: float, *, may_begin: bool) -> float:
        """Advance the reload as far as possible; return when to be called again at the latest."""
        if self.stage is Stage.WAITING and may_begin:
            self._begin(now)
        if self.stage is Stage.REHEARSING:
            self._listen()
            if self._word.endswith(b"\n"):
                self._kill_at = min(self._kill_at, now + LAST_WORDS_S)
            if self._child is not None and now >= self._kill_at and not self._killed:
                self._killed = self._child.signal(signal.SIGKILL)
                self._kill_at = max(self._kill_at, now + KILL_AGAIN_S)
            return self._kill_at if not self._killed else float("inf")
        return float("inf")

    def cancel(self) -> None:
        """End any reload: the service is about to end."""
        self.again = False
        if self.stage in (Stage.WAITING, Stage.READY):
            self._end(ReloadResult(False, ABOUT_TO_END))
        elif self._child is not None:
            self._cancelled = True
            self._killed = self._child.signal(signal.SIGKILL)
            self._kill_at = float("-inf")  # else in the next turn

    def done(self, result: ReloadResult) -> None:
        """Note the result of the exec; if this process is there to note it, the exec has failed."""
        self._end(result)

    # The rehearsal.

    def _begin(self, now: float) -> None:
        self.stage = Stage.REHEARSING
        self._kill_at = now + self._boot_timeout
        self._killed = self._cancelled = False
        self._word = self._output = b""
        try:
            self._start()
        except OSError as exc:
            self._close()
            self._end(ReloadResult(False, f"could not start the rehearsal: {reason_of(exc)}"))
            return
        self._tell(f"rehearsing ({self._child})")

    def _start(self) -> None:
        with contextlib.ExitStack() as stack:
            self._pipes["word"], word = os.pipe()
            stack.callback(os.close, word)
            self._pipes["output"], output = os.pipe()
            stack.callback(os.close, output)
            for fd in self._pipes.values():  # before the fork: a failure after it would leave a rehearsal unsupervised
                os.set_blocking(fd, False)
                self._watch(fd)
            record = self._record()
            record.values["pipe"] = word
            record.fds.append(word)
            slot = Slot(0)
            try:
                self._child = self._fork(
                    ChildKind.REHEARSAL, slot, lambda birth, master, number: _rehearse(record, birth, master, output)
                )
            except BaseException:
                slot.close()
                raise

    def _listen(self) -> None:
        self._word = (self._word + self._read("word"))[-OUTPUT_MAX:]
        self._output = (self._output + self._read("output"))[-OUTPUT_MAX:]

    def _read(self, name: str) -> bytes:
        """Return what is there, at most READS_A_TURN times OUTPUT_MAX bytes; the rest has to wait for the next turn."""
        found = b""
        for _ in range(READS_A_TURN if name in self._pipes else 0):
            fd = self._pipes[name]
            try:
                data = os.read(fd, OUTPUT_MAX)
            except BlockingIOError:
                break
            except OSError as exc:  # its end is noted nevertheless, and what is in the pipe is read in the next turn
                say_failed("read what the rehearsal says", exc)
                break
            if not data:
                self._unwatch(self._pipes.pop(name))
                os.close(fd)
                break
            found += data
        return found

    def ended(self, how: str) -> None:
        """Note that the rehearsal was reaped, and decide on its result; `how` it ended, in words."""
        self._listen()
        self._listen()  # what the kernel may have refused the first time: there is no next turn for it
        self._close()
        self._child = None
        output = self._output.decode(errors="replace").strip()
        said = {}
        with contextlib.suppress(ValueError):
            said = json.loads(self._word)
        if self._cancelled:  # even if it has reported a result meanwhile
            self._end(ReloadResult(False, ABOUT_TO_END))
            return
        if said.get("ready"):
            self.stage = Stage.READY
            self._tell("rehearsed: the new code has booted a worker")
            return
        if self._killed and not said:
            reason = f"the rehearsal was not ready within {self._boot_timeout:g} s (boot_timeout)"
        else:
            reason = (
                said.get("failed")
                or f"the rehearsal ended before its serve_forever() was ready: {how}{WELL.get(how, '')}"
                f"{_own_words(output)}"
            ) + self._only_once(output)
        self._end(ReloadResult(False, escaped(reason), output))

    def _only_once(self, output: str) -> str:
        """Return what to do where the program has failed to take once more what it has here: a port, or a lock."""
        for number, names_of in TAKEN.items():
            if f"[Errno {number}]" in output.rpartition("\n")[2]:
                names = ", ".join(names_of(found(self._record().fds)))
                return f"; the service has {names} itself: take it only if not prefork.rehearsing()" if names else ""
        return ""

    def _close(self) -> None:
        while self._pipes:
            _, fd = self._pipes.popitem()
            with contextlib.suppress(KeyError, OSError):
                self._unwatch(fd)
            os.close(fd)

    def _end(self, result: ReloadResult) -> None:
        self.stage = Stage.WAITING if self.again else Stage.IDLE
        self.again = False
        self._tell(result)

    def forget(self) -> None:
        """Called in a new child: close its copies of the descriptors."""
        for fd in self._pipes.values():
            os.close(fd)


def _own_words(output: str) -> str:
    """Return the sentence of an error of ours that has ended the rehearsal, from what Python or the command prints."""
    said = re.match(r"prefork(?:\.errors\.\w+)?: (.+)", output.rpartition("\n")[2])
    return f"; {said[1]}" if said else ""


def _rehearse(record: Record, birth: Birth, master: Master, output: int) -> int:
    """Run the program's own command line again, as the body of the rehearsal, with its output on a pipe to us."""
    os.setpgid(0, 0)  # whatever it starts ends with it
    null = os.open(os.devnull, os.O_RDONLY)
    for source, target in ((null, 0), (output, 1), (output, 2)):
        os.dup2(source, target)
    environment = {name: value for name, value in START.environment.items() if name not in NOT_FOR_A_REHEARSAL}
    if "LISTEN_PID" in environment:
        environment["LISTEN_PID"] = str(os.getpid())
    try:
        process.go(there := record.values["directory"])
    except ConfigError as exc:
        say(record.values["pipe"], failed=str(exc))
        leave(1)
    master.tell_us_when_dying(signal.SIGKILL)
    record.values["mask"] = sorted(birth.mask)  # until it holds still, every signal stays blocked
    try:
        with handed_on(record) as fd, START.attributes.restored(len(record.fds)):
            os.execve(START.executable, START.command(fd, there), environment)
    except OSError as exc:
        say(record.values["pipe"], failed=not_run(exc))
        leave(1)


def not_run(exc: OSError) -> str:
    """Return in one sentence that, and why, the program could not be run again."""
    what = f" by {exc.filename}" if exc.filename else ""
    return f"could not run the program again{what}: {named_reason(exc)}"


def say(pipe: int, **word: object) -> None:
    """Write the result of `serve_forever()` on the pipe; called in the rehearsal, once."""
    os.write(pipe, json.dumps(word).encode() + b"\n")


def require_descriptors() -> None:
    """Raise OSError unless DESCRIPTORS_FREE descriptors are free.

    With fewer, a new interpreter may end before any code of ours runs.
    """
    taken: list[int] = []
    try:
        for _ in range(DESCRIPTORS_FREE):
            taken.append(os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC))
    except OSError as exc:
        why = f"a new image needs {DESCRIPTORS_FREE} free descriptors, of which there are {len(taken)}; see ulimit -n"
        raise OSError(exc.errno, why) from exc
    finally:
        for fd in taken:
            os.close(fd)


def execute(record: Record, asked: Callable[[], bool]) -> None:
    """Replace this image by a new one. Every signal must be blocked.

    Returns, with nothing changed, if a command is `asked` for by then, which must be obeyed first: a thread of the
    program needs no signal for that. Raises OSError if the exec fails, and then nothing has changed either.
    """
    there = record.values["directory"]
    with _back_again(), handed_on(record) as fd, START.attributes.restored(len(record.fds)):
        os.chdir(there)
        if not asked():
            os.execve(START.executable, START.command(fd, there), START.environment)


@contextlib.contextmanager
def _back_again() -> Iterator[None]:
    """Go back, on the way out, to the working directory of before, even if its name is gone (a removed release)."""
    before = os.open(".", os.O_PATH | os.O_DIRECTORY)
    try:
        yield
    finally:
        attempt("go back to the directory of this image", lambda: os.fchdir(before))
        os.close(before)
