"""A forking server whose signal is blocked, and waited for by a thread that shuts it down; its port is on stdout.

python -m tests.process.programs.signals_awaited SIGNUM [measured]     "measured": with metrics
"""

import signal
import sys
import threading

from prefork import BaseRequestHandler, ForkingTCPServer


class Waits(BaseRequestHandler):
    def handle(self) -> None:
        self.request.sendall(b"begun")
        self.request.recv(1)
        self.request.sendall(b"done")


class Server(ForkingTCPServer):
    metrics_address = ("127.0.0.1", 0) if "measured" in sys.argv else None


def wait_for(signum: int) -> None:
    print(int(signal.sigwait({signum})), flush=True)
    server.shutdown()


if __name__ == "__main__":
    asked = int(sys.argv[1])
    signal.pthread_sigmask(signal.SIG_BLOCK, {asked})
    with Server(("127.0.0.1", 0), Waits) as server:
        print(server.server_address[1], flush=True)
        threading.Thread(target=wait_for, args=(asked,)).start()
        server.serve_forever()
