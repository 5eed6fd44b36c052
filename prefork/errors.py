"""The errors that callers may catch, each with its exit status for `prefork run`.

Owns the classes only; must not print, and must not end a process. Raised in the process that called
`serve_forever()` or ran the command line, never in a worker.
"""

import importlib
import os
from collections.abc import Iterable
from types import TracebackType
from typing import ClassVar

__all__ = ["BindError", "BootError", "ConfigError", "PreforkError", "UserCodeError", "nearest", "reason_of"]

NEAR = 0.75  # of a known word: --max-childs is --max-children, --daemon is none
PREFIXES = ("--", "PREFORK_")  # which make any two words alike


class PreforkError(Exception):
    """Something prefork could not do, said in one sentence; hints are notes (`add_note`)."""

    exit_code: ClassVar[int] = 1


class ConfigError(PreforkError, ValueError):
    """A setting, an address or a target is wrong; nothing was bound and nothing was forked."""

    exit_code = 2


class UserCodeError(ConfigError):
    """The user's code raised while it was imported or called: `__cause__`, whose traceback is for the user to see."""

    def traceback(self) -> TracebackType | None:
        """Return the traceback of the cause, from the first frame that is neither ours nor the import system's."""
        tb = self.__cause__.__traceback__ if self.__cause__ else None
        while tb is not None and _is_plumbing(tb.tb_frame.f_code.co_filename):
            tb = tb.tb_next
        return tb


def _is_plumbing(filename: str) -> bool:
    loader = os.path.join(os.path.dirname(__file__), "cli", "targets.py")  # the file that calls the user's code
    return filename in (loader, importlib.__file__) or filename.startswith("<frozen importlib")


class BootError(PreforkError, RuntimeError):
    """No worker ever got ready, and the last of them said why."""

    exit_code = 3


class BindError(PreforkError, OSError):
    """A listener could not be made: `BindError(errno, sentence)` where the kernel refused, or `BindError(sentence)`."""

    exit_code = 4

    def __str__(self) -> str:
        return self.strerror or super().__str__()

    def named(self, origin: str) -> "BindError":
        """Return this error, with what asked for the address, in its sentence."""
        said, colon, reason = str(self).partition(": ")
        self.strerror = f"{said} (from {origin}){colon}{reason}"
        return self


def nearest(word: str, known: Iterable[str]) -> str:
    """Return `; did you mean …?`, or an empty string if no known word is close."""
    import difflib  # only needed after a mistake

    prefix = next((each for each in PREFIXES if word.startswith(each)), "")
    words, word = {each.removeprefix(prefix): each for each in known}, word.removeprefix(prefix)
    found = [each for each in words if _begins(each, word) or sorted(each) == sorted(word)]
    if len(found) != 1:
        found = difflib.get_close_matches(word, words, n=1, cutoff=NEAR)
    return f"; did you mean {words[found[0]]}?" if found else ""


def _begins(one: str, other: str) -> bool:
    """Return whether one of them is the other and some words more, as in graceful and graceful-timeout."""
    short, long = sorted((one, other), key=len)
    return long.startswith((f"{short}-", f"{short}_"))


def reason_of(exc: OSError) -> str:
    """Return the reason in the words of the kernel or of Python, as it stands in the middle of a sentence."""
    reason = exc.strerror or (os.strerror(exc.errno) if exc.errno else str(exc))
    if not reason or reason[1:2].isupper():  # AF_UNIX path too long
        return reason or type(exc).__name__
    return reason[:1].lower() + reason[1:]
