"""A program that makes itself the leader of a session or of a process group, and finds that it is one already.

Runs in a new image, whose process the previous image has made the leader, and in a rehearsal, which leads a group of
its own so that whatever it starts ends with it. setsid(2) refuses a leader; at the start the same call worked.
"""

import contextlib
import functools
import os
from collections.abc import Callable, Iterator
from typing import Any

BECOMING = ("setsid", "setpgrp", "setpgid")


@contextlib.contextmanager
def may_lead_already() -> Iterator[None]:
    """Let the program, inside, become a leader although it is one."""
    own = {name: getattr(os, name) for name in BECOMING}
    ours = {name: _unless_leading(function) for name, function in own.items()}
    for name, function in ours.items():
        setattr(os, name, function)
    try:
        yield
    finally:
        for name, function in ours.items():
            if getattr(os, name) is function:  # the program may have put its own in the place
                setattr(os, name, own[name])


def _unless_leading(become: Callable[..., None]) -> Callable[..., None]:
    @functools.wraps(become)
    def unless_leading(*args: Any) -> None:
        try:
            become(*args)
        except PermissionError:
            if os.getpgrp() != os.getpid() or any(arg not in (0, os.getpid()) for arg in args):
                raise

    return unless_leading
