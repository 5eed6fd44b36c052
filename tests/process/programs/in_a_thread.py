"""A pool that serves in a thread until SIGUSR1. With the argument `booting` its workers boot until there is `go`."""

import os
import signal
import sys
import threading

from prefork import PreForkingTCPServer
from tests.support.programs.served import Told, Who, log_everything, tell


class Server(Told, PreForkingTCPServer):
    max_children = 2

    def worker_started(self) -> None:
        super().worker_started()
        if sys.argv[1:] == ["booting"]:
            tell("booting")
            while not os.path.exists("go"):  # Python code, which a signal interrupts or not, and no call that waits
                pass


if __name__ == "__main__":
    log_everything()
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR1})
    with Server(("127.0.0.1", 0), Who) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        signal.sigwait({signal.SIGUSR1})
        server.shutdown()
        tell("shut_down", alive=thread.is_alive(), drained=server.statistics().exits)
        thread.join()
