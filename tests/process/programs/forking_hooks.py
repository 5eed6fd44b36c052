"""A server whose `get_request()` forks a process that ends by sys.exit(), through all of the program.

Prints its port; its argument is a class of prefork's. Metrics are at the path `m` in the current directory.
"""

import os
import signal
import sys
from typing import Any

import prefork


class Held(prefork.BaseRequestHandler):
    def handle(self) -> None:
        self.request.sendall(b"begun\n")
        self.request.sendall(b"ends\n" if self.request.recv(1) else b"")


class Hooks:
    metrics_address = "m"

    def get_request(self) -> tuple[Any, Any]:
        if (pid := os.fork()) == 0:
            sys.exit(7)
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 7
        return super().get_request()  # type: ignore[misc,no-any-return]  # of the server class


if __name__ == "__main__":
    bases = [getattr(prefork, sys.argv[1])]
    if not issubclass(bases[0], prefork.SupervisedMixIn):
        bases.insert(0, prefork.SupervisedMixIn)
    with type("Server", (Hooks, *bases), {})(("127.0.0.1", 0), Held) as server:
        signal.signal(signal.SIGTERM, lambda *_: server.shutdown())
        print(server.server_address[1], flush=True)
        server.serve_forever()
