"""The new image, from the record to the end of the program. Called by takeover.py, which is run by its path.

Runs in the master's new image and in a rehearsal. Owns the signals until the pool takes them, and the alarm that ends
a program which does not reach its `serve_forever()`. Must not let the previous image reach into this one: what the
kernel keeps over an exec is undone first.
"""

import contextlib
import errno
import signal
import traceback
from collections.abc import Callable, Iterable
from functools import partial
from types import FrameType

from prefork.workers import sinks, user_forks
from prefork.workers.bootstrap import leave
from prefork.workers.descriptor_limit import resume_limit
from prefork.workers.signals import EVERY, Alarm, Signals, disarm, set_mask
from prefork.workers.wakeup import Wakeup

from ..commands import BY_SIGNAL, Command
from ..errors import BindError, ConfigError
from ..log_formats import escaped
from ..logs import complain
from ..master.guard import attempt, insist
from ..run_mode import RunMode, run_as
from ..sockets.kept_paths import paths_kept
from ..surroundings.inherited import forget_inherited
from ..surroundings.leading import may_lead_already
from .degraded import serve_degraded
from .handover import Handed, receive
from .program import run
from .reloading import ABOUT_TO_END
from .still_held import StillHeld

IN_USE_AMONG = (ConfigError.exit_code, BindError.exit_code)
END_WITHIN_S = 0.5  # for the program to reach its serve_forever() once the service is told to end


class TookTooLong(BaseException):
    """The program did not reach its serve_forever() within boot_timeout, or in the time that an end leaves it."""


def take_over(fd: int, program: list[str]) -> int:
    """Run the program with the record in descriptor `fd`; return the exit status of this process."""
    forget_inherited()
    attempt("stop the timers of the previous image", disarm)
    handed = insist("read what was handed over", lambda: receive(fd))
    if handed.rehearsal:
        run_as(RunMode.REHEARSE)
        Signals.hold_still(BY_SIGNAL)
        set_mask(handed.values.get("mask", ()))
        with paths_kept(handed.keeps), may_lead_already():
            run(program)
        return 1  # it did not reach a serve_forever()
    resume_limit(handed.values.get("soft_limit"))
    if "log" in handed.values:
        attempt("go on with the log of the previous image", lambda: sinks.resume(handed.values["log"]))
    held = StillHeld(handed.values.get("held", ()))
    watch = BootWatch(handed, held)
    handed.early = insist("note signals", lambda: TakeoverSignals(watch.hurry, handed.values.get("handled", ())))
    attempt("let go of what the old workers still have", held.let_go)
    user_forks.on_fork_by_user(watch.forget)
    set_mask(handed.values["mask"])
    watch.begin(handed.values["boot_timeout"])
    try:
        with contextlib.ExitStack() as keeping:
            keeping.enter_context(paths_kept(handed.keeps))
            keeping.enter_context(may_lead_already())
            handed.on_taken = partial(_taken, watch, keeping, held)
            run(program)
        why = "the program ended before its serve_forever() was ready"
    except TookTooLong:
        why = watch.why
    except BaseException as exc:
        if handed.taken or watch.forgotten:
            raise
        why = _say_why(exc)
        if _is_in_use(exc) and (told := held.told()):
            why = f"{why}; {told}"
    if handed.taken or watch.forgotten:
        return 0
    return watch.go_on(why)


def _taken(watch: "BootWatch", keeping: contextlib.ExitStack, held: StillHeld) -> None:
    watch.end()
    keeping.close()
    held.close()


def _say_why(exc: BaseException) -> str:
    """Return in one sentence why the program does not serve, after printing its traceback."""
    if isinstance(exc, SystemExit):
        return f"the program left with status {exc.code} before its serve_forever() was ready"
    text = "".join(traceback.format_exception(exc))
    attempt("print what the program failed of", lambda: complain(text))  # in one write: the workers write there too
    return escaped(f"the program failed: {type(exc).__name__}: {exc}")


def _is_in_use(exc: BaseException | None) -> bool:
    """Return whether an address was in use; the command line tells it by its exit status only."""
    while exc is not None:
        if getattr(exc, "errno", None) == errno.EADDRINUSE or getattr(exc, "code", None) in IN_USE_AMONG:
            return True
        exc = exc.__cause__ or exc.__context__
    return False


class TakeoverSignals(Signals):
    """The signals that come before the pool takes them: noted, and `hurry` is called when one ends the service.

    So are those that the program has `handled` in the previous image: until it does so again, the kernel's default
    action would end this process.
    """

    def __init__(self, hurry: Callable[[], None], handled: Iterable[int]) -> None:
        super().__init__(Wakeup())
        self._hurry = hurry
        self._missed: set[int] = set()
        theirs = set(handled) - {*BY_SIGNAL, signal.SIGALRM}
        self.take({**dict.fromkeys(theirs, self._miss), **dict.fromkeys(BY_SIGNAL, self.note)})

    def _miss(self, signum: int, frame: FrameType | None) -> None:
        self._missed.add(signum)

    def hand_over(self, to: Signals) -> None:
        """Pass on the notes; send the others once more to the handlers that the program has installed by now."""
        super().hand_over(to)
        for signum in self._missed:
            if callable(signal.getsignal(signum)):
                signal.raise_signal(signum)

    def note(self, signum: int, frame: FrameType | None = None) -> None:
        super().note(signum, frame)
        if BY_SIGNAL[signum] in (Command.DRAIN, Command.STOP):
            self._hurry()


class BootWatch:
    """Sees to it that the service goes on without a program that does not reach its `serve_forever()` in time."""

    def __init__(self, handed: Handed, held: StillHeld) -> None:
        self._alarm = Alarm(self._ring)
        self.why = (
            f"the program's serve_forever() was not ready within {handed.values['boot_timeout']:g} s (boot_timeout)"
        )
        self.forgotten = False  # this is a process that the program has forked, and not the service
        self._handed, self._held = handed, held
        self._raised = False

    def begin(self, seconds: float) -> None:
        attempt("limit the time of the program's start", lambda: self._alarm.set(seconds))

    def hurry(self) -> None:
        """Give the program END_WITHIN_S from now on: the service is told to end."""
        self.why = ABOUT_TO_END
        self.begin(END_WITHIN_S)

    def end(self) -> None:
        attempt("end the limit of the program's start", self._alarm.cancel)

    def forget(self) -> None:
        """Let a process that the program forks go on, and end, as one of its first start does."""
        self.forgotten = True
        self.end()
        if self._handed.early is not None:
            self._handed.early.forget()
        self._handed.forget()

    def _ring(self) -> None:
        """End the program by an exception; by going on here and now, if it has caught the first one."""
        if self._raised:
            leave(self.go_on(self.why))
        self._raised = True
        raise TookTooLong

    def go_on(self, why: str) -> int:
        """Go on without the program, with the generation that is there."""
        set_mask(EVERY)
        self.end()
        attempt("take again what the old workers have", self._held.take_again)
        return serve_degraded(self._handed, why)
