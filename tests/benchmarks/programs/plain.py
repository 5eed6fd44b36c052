"""A server without a pool, for `tests.benchmarks.plain`: answers in upper case, one request a connection.

    python -m tests.benchmarks.programs.plain MODULE CLASS ADDRESS READY_FD CGROUP_PROCS

MODULE is `prefork` or `socketserver`; nothing else of size is imported, for a fork costs what its process has in
memory. It writes its address, as one line of JSON, to READY_FD.
"""

import importlib
import json
import os
import sys
from typing import Any


def main(module: str, name: str, address: str, ready_fd: str, procs: str) -> None:
    if procs:
        with open(procs, "w") as group:
            group.write("0")  # this process, and so all that it forks
    theirs: Any = importlib.import_module(module)

    class Stream(theirs.BaseRequestHandler):  # type: ignore[misc]
        def handle(self) -> None:
            self.request.sendall(self.request.recv(1024).upper())

    class Datagram(theirs.BaseRequestHandler):  # type: ignore[misc]
        def handle(self) -> None:
            data, sock = self.request
            sock.sendto(data.upper(), self.client_address)

    server_class = type("Server", (getattr(theirs, name),), {"request_queue_size": 1024})
    handler = Datagram if "UDP" in name or "Datagram" in name else Stream
    with server_class(address if "Unix" in name else ("127.0.0.1", 0), handler) as server:
        os.write(int(ready_fd), json.dumps(server.server_address).encode() + b"\n")
        server.serve_forever()


if __name__ == "__main__":
    main(*sys.argv[1:])
