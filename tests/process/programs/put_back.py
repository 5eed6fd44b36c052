"""A pool of one worker that tells what `serve_forever()` changes in the process, before it and after it.

`python -m tests.process.programs.put_back freeze|thaw`
"""

import gc
import os
import signal
import sys
from typing import Any

import setproctitle

from prefork import PreForkingTCPServer
from tests.support.programs.served import Told, Who, log_everything, tell

SIGNALS = ("SIGTERM", "SIGINT", "SIGQUIT", "SIGHUP", "SIGUSR1", "SIGUSR2", "SIGTTIN", "SIGTTOU", "SIGCHLD")


class S(Told, PreForkingTCPServer):
    max_children = 1
    gc_freeze = sys.argv[1] == "freeze"

    def worker_started(self) -> None:
        super().worker_started()
        tell("in_worker", frozen=gc.get_freeze_count())


def state(server: S) -> dict[str, Any]:
    handlers = {name: repr(signal.getsignal(getattr(signal, name))) for name in SIGNALS}
    return dict(
        handlers, title=setproctitle.getproctitle(), wakeup=signal.set_wakeup_fd(-1),
        mask=sorted(signal.pthread_sigmask(signal.SIG_BLOCK, [])), blocking=os.get_blocking(server.fileno()),
    )  # fmt: skip


if __name__ == "__main__":
    log_everything()
    signal.signal(signal.SIGUSR1, signal.SIG_IGN)
    with S(("127.0.0.1", 0), Who) as server:
        tell("before", **state(server))
        tell("frozen", count=gc.get_freeze_count())  # 3.12 begins with some
        server.serve_forever()
        tell("after", **state(server))
        tell("frozen", count=gc.get_freeze_count())
