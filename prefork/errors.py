"""The errors a caller is told about, each with the exit status `prefork run` gives it.

Owns the four classes and nothing else; it prints nothing and ends nothing. Raised in the process that called
`serve_forever()` or ran the command line, never in a worker.
"""

from typing import ClassVar

__all__ = ["BindError", "BootError", "ConfigError", "PreforkError"]


class PreforkError(Exception):
    """Something prefork could not do, said in one sentence; hints are notes (`add_note`)."""

    exit_code: ClassVar[int] = 1


class ConfigError(PreforkError, ValueError):
    """A setting, an address or a target is wrong; nothing was bound and nothing was forked."""

    exit_code = 2


class BootError(PreforkError, RuntimeError):
    """No worker ever got ready, and the last of them said why."""

    exit_code = 3


class BindError(PreforkError, OSError):
    """A listener could not be made: `BindError(errno, sentence)` where the kernel refused, or `BindError(sentence)`."""

    exit_code = 4

    def __str__(self) -> str:
        return self.strerror or super().__str__()
