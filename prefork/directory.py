"""The directory that a service runs in, where `working_directory` says so: gone to by its name, so that a release
symlink that has moved is followed by every new image.

Runs in the process that becomes the master, and in a rehearsal. Who goes there: `prefork run` before it reads its file
and imports anything, `serve_forever()` where only the class knew, and whoever execs a new image.
"""

import contextlib
import os
from collections.abc import Iterator

from .errors import ConfigError

__all__ = ["enter", "go", "inside"]

_entered: str | None = None


def go(path: str, origin: str = "") -> None:
    """Change to it. `origin`: who says so, in words. Raises ConfigError."""
    global _entered
    try:
        os.chdir(path)
    except OSError as exc:
        said_by = f" (from {origin})" if origin else ""
        reason = os.strerror(exc.errno or 0).lower()
        raise ConfigError(f"could not change to the directory {path}{said_by}: {reason}") from None
    _entered = path


def enter(path: str | None, origin: str = "working_directory") -> None:
    """Change to it, unless that was done: a symlink that moves later is a reload's to follow. Raises ConfigError."""
    if path is not None and path != _entered:
        go(path, origin)


@contextlib.contextmanager
def inside(path: str | None) -> Iterator[None]:
    """In it while a service runs; then where we were. Raises ConfigError."""
    global _entered
    before, here = _entered, None
    if path not in (None, before):
        with contextlib.suppress(OSError):  # it may be gone
            here = os.open(".", os.O_PATH | os.O_DIRECTORY)
    try:
        enter(path)
        yield
    finally:
        _entered = before
        if here is not None:
            os.fchdir(here)
            os.close(here)
