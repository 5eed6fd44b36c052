"""A forking server that prints before each fork and in each child, for two requests; its port is on stderr.

python -m tests.process.programs.printing [threads]     "threads": beside another thread, which waits
"""

import sys
import threading
from typing import Any

from prefork import BaseRequestHandler, ForkingTCPServer


class Prints(BaseRequestHandler):
    def handle(self) -> None:
        print("child")
        self.request.sendall(b"x")


class Server(ForkingTCPServer):
    def process_request(self, request: Any, client_address: Any) -> None:
        sys.stdout.write("parent ")
        super().process_request(request, client_address)


if __name__ == "__main__":
    if sys.argv[1:] == ["threads"]:
        threading.Thread(target=threading.Event().wait, daemon=True).start()
    with Server(("127.0.0.1", 0), Prints) as server:
        print(server.server_address[1], file=sys.stderr, flush=True)
        for _ in range(2):
            server.handle_request()
