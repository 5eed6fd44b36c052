"""Programs that remove the path of their Unix socket themselves: what they remove stays while they are only tried or
take over, and may be gone already at the end.

Many do so before they bind it, and once more at their end. In a check, in a rehearsal and in a new image it is the path
of the service that runs, and no client would find that; at the end we have removed it before them. Runs in these
processes, and in the master. Must not keep anything else: a stale path is removed, and so is what the program removes
while it serves.
"""

import atexit
import contextlib
import errno
import functools
import os
import socket
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from .unix_paths import is_stale

REMOVING = ("unlink", "remove", "rename", "replace")  # of os; pathlib and others look them up at each call


def listened_on(path: str) -> bool:
    """Return whether the path leads to a socket that is alive. Its server does not notice that it was asked."""
    try:
        is_stale(path, socket.SOCK_DGRAM)  # never a connection: of another type it is refused, by one of two errors
    except OSError as exc:
        return exc.errno == errno.EADDRINUSE
    return False


def is_one_of(path: str, paths: Iterable[str]) -> bool:
    """Return whether the path is one of these, by whatever name of its folder."""
    return _real(path) in map(_real, paths)


def _real(path: str) -> str:
    folder, name = os.path.split(os.path.abspath(path))
    return os.path.join(os.path.realpath(folder), name)


IsKept = Callable[[str], bool]
_in_force: list[tuple[IsKept, frozenset[str]]] = []
_removed: set[str] = set()
_passed: set[str] = set()


def may_be_gone(path: str) -> None:
    """Let the program remove, from now on, a path that we have removed before it, as if it had been there."""
    if not _removed:  # for good: the program may have its own end after ours
        _begin((_is_gone, frozenset(("unlink", "remove"))))
    _removed.add(_real(path))


def keep_path_of(passed: socket.socket) -> None:
    """Keep for good the path of a Unix socket that a parent or a manager has passed on: it is theirs to remove."""
    if passed.family == socket.AF_UNIX and isinstance(path := passed.getsockname(), str) and path:
        if not _passed:
            _begin((lambda path: _real(path) in _passed and listened_on(path), frozenset(REMOVING)))
        _passed.add(_real(path))


def _is_gone(path: str) -> bool:
    return _real(path) in _removed and not os.path.lexists(path)


def unlink_ours(path: str) -> None:
    """Remove a path as os.unlink() does, although the program must keep it."""
    unlink = os.unlink
    (unlink.__wrapped__ if isinstance(unlink, _Keeping) else unlink)(path)


@contextlib.contextmanager
def paths_kept(kept: IsKept, names: Iterable[str] = REMOVING, *, exits: bool = False) -> Iterator[None]:
    """Have the program, inside, remove and rename no path that is `kept`: it is told that it did.

    A function that the program has imported by its name inside goes on to work afterwards. What is removed relative to
    a descriptor, as shutil.rmtree() does it, is not looked at. `exits`: the process ends after the block, and what the
    program has registered with atexit inside must keep it as well.
    """
    _begin(one := (kept, frozenset(names)))
    registered = atexit._ncallbacks()
    try:
        yield
    finally:
        if not exits or atexit._ncallbacks() == registered:
            _end(one)


def _begin(one: tuple[IsKept, frozenset[str]]) -> None:
    _in_force.append(one)
    for name in REMOVING if len(_in_force) == 1 else ():
        keeping = _Keeping(getattr(os, name))
        setattr(os, name, keeping)
        os.supports_dir_fd.add(keeping)


def _end(one: tuple[IsKept, frozenset[str]]) -> None:
    _in_force.remove(one)
    if _in_force:
        return
    for name in REMOVING:
        if isinstance(keeping := getattr(os, name), _Keeping):  # the program may have put its own in the place
            setattr(os, name, keeping.__wrapped__)
    for keeping in [each for each in os.supports_dir_fd if isinstance(each, _Keeping)]:
        os.supports_dir_fd.discard(keeping)


class _Keeping:
    """A function of os that leaves what is kept. An object, as no method is made of one that stands in a class."""

    __wrapped__: Any
    __name__: str

    def __init__(self, function: Any) -> None:
        functools.update_wrapper(self, function)

    def __call__(self, *args: Any, **named: Any) -> None:
        relative = any(value is not None for name, value in named.items() if name.endswith("dir_fd"))
        paths = [*args, *(value for name, value in named.items() if not name.endswith("dir_fd"))]
        if relative or not any(map(self._is_kept, paths)):
            self.__wrapped__(*args, **named)

    def _is_kept(self, path: Any) -> bool:
        try:
            where = os.path.abspath(os.fsdecode(path))
            return any(kept(where) for kept, names in _in_force if self.__name__ in names)
        except (OSError, TypeError, ValueError):  # no path: the function itself says so
            return False
