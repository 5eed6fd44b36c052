"""A pool on which three threads call the methods that the arguments name, one after the other, at SIGUSR1."""

import signal
import sys
import threading

from prefork import PreForkingTCPServer
from tests.support.programs.served import Told, Who, log_everything, tell


class Server(Told, PreForkingTCPServer):
    max_children = 2


if __name__ == "__main__":
    log_everything()
    server = Server(("127.0.0.1", 0), Who)
    now = threading.Event()

    def end() -> None:
        now.wait()
        for word in sys.argv[1:]:
            getattr(server, word)()
        tell("asked", fileno=server.fileno())

    def tell_all() -> None:
        signal.sigwait({signal.SIGUSR1})
        now.set()

    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR1})
    threads = [threading.Thread(target=what) for what in (end, end, end, tell_all)]
    for thread in threads:
        thread.start()
    server.serve_forever()
    for thread in threads:
        thread.join()
    server.server_close()
