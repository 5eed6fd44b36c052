"""A program that starts processes at its import, and leaves them alone: a manager, a helper, and one that has ended."""

import atexit
import multiprocessing
import subprocess

MANAGER = multiprocessing.get_context("fork").Manager()  # of itself: a server of forks is one process more
HELPER = subprocess.Popen(["sleep", "1000"])
ENDED = subprocess.Popen(["true"])
HELD = MANAGER.dict(release=0)


def end() -> None:
    HELPER.terminate()


atexit.register(end)
