"""A server that is made, and then serves where nothing can be imported any more, as after a chroot.

    python -m tests.process.programs.out_of_reach prefork|socketserver KIND [MIXIN]

Answers a request by `handle_request()`, and one by `serve_forever()` in a thread; prints the answers.
"""

import importlib
import socket
import sys
import threading
from typing import Any

import prefork

module, kind, *mixins = sys.argv[1:]
theirs: Any = importlib.import_module(module)


class Handler(theirs.DatagramRequestHandler if "UDP" in kind else theirs.StreamRequestHandler):  # type: ignore[misc]
    def handle(self) -> None:
        self.wfile.write(self.rfile.readline())


class Nothing:
    """A finder of no module (importlib.abc)."""

    def find_spec(self, name: str, path: object = None, target: object = None) -> None:
        raise ImportError(f"could not import {name}: nothing is left to import")


def ask(server: Any) -> bytes:
    with socket.socket(server.address_family, server.socket_type) as client:
        client.settimeout(30)
        client.connect(server.server_address)
        client.send(b"there\n")
        return client.recv(100)


Server = type("Server", (*(getattr(prefork, mixin) for mixin in mixins), getattr(theirs, kind)), {})
answers: list[bytes] = []
with Server(("127.0.0.1", 0), Handler) as server:
    sys.meta_path.insert(0, Nothing())
    asking = threading.Thread(target=lambda: answers.append(ask(server)))
    asking.start()
    server.handle_request()
    asking.join()
    serving = threading.Thread(target=server.serve_forever)
    serving.start()
    answers.append(ask(server))
    server.shutdown()
    serving.join()
print(*answers)
