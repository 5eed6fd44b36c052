"""Forks so many milliseconds after a thread has begun to make the first server; its child makes one, too.

python -m tests.process.programs.forks_beside CLASS MILLISECONDS
"""

import logging  # noqa: F401  # while a thread imports that, nobody can have forks wait
import os
import signal
import sys
import threading
import time

import prefork


def make() -> None:
    getattr(prefork, sys.argv[1])(("127.0.0.1", 0), prefork.BaseRequestHandler).server_close()


if __name__ == "__main__":
    thread = threading.Thread(target=make)
    thread.start()
    time.sleep(int(sys.argv[2]) / 1000)
    if pid := os.fork():
        thread.join()
        sys.exit(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
    signal.alarm(20)  # else it would hang beyond the test
    make()
