"""Stands for `prefork/reload/new_image.py` where that cannot be imported at first: it fails until it was tried so many
TIMES, with the ERROR of that name."""

import os
from pathlib import Path

ERRORS = {"OSError": OSError(24, "Too many open files"), "ImportError": ImportError("cannot read file data")}

tries = Path("tries")
tries.write_text(tries.read_text() + "x")
if len(tries.read_text()) < int(os.environ["TIMES"]):
    raise ERRORS[os.environ["ERROR"]]


def take_over(fd: int, program: list[str]) -> int:
    print(fd, program)
    return 7
