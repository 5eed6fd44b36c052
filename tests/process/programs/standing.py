"""A log handler in which the master stands still, as on a host that takes the processors away."""

import logging
import os
import signal


class Stands(logging.Handler):
    """Writes what it gets to `there.log`. Where there is a file `stand`, it first stops the process, once."""

    def emit(self, record: logging.LogRecord) -> None:
        if os.path.exists("stand"):
            os.unlink("stand")
            os.kill(os.getpid(), signal.SIGSTOP)
        with open("there.log", "a") as file:
            file.write(record.getMessage() + "\n")


logging.getLogger().addHandler(Stands())
