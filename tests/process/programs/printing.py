"""A forking server that prints before each fork and in each child, for two requests; its port is on stderr.

python -m tests.process.programs.printing WORD...

"threads": beside another thread, which waits; "wrapped": stdout is an object of the program's, and no file;
"records": what is printed goes through a log handler that holds its records back;
"measured": with metrics, for which each child has memory of its own
"""

import logging
import sys
import threading
from logging.handlers import MemoryHandler
from typing import Any

from prefork import BaseRequestHandler, ForkingTCPServer


class Wrapper:
    """Writes into what stood in its place."""

    def __init__(self) -> None:
        self.write, self.flush = sys.stdout.write, sys.stdout.flush


def say(word: str) -> None:
    if "records" in sys.argv:
        logging.warning(word)
    else:
        print(word, end=" ")


class Prints(BaseRequestHandler):
    def handle(self) -> None:
        say("child")
        self.request.sendall(b"x")


class Server(ForkingTCPServer):
    metrics_address = ("127.0.0.1", 0) if "measured" in sys.argv else None

    def process_request(self, request: Any, client_address: Any) -> None:
        say("parent")
        super().process_request(request, client_address)


if __name__ == "__main__":
    if "wrapped" in sys.argv:
        sys.stdout = Wrapper()
    if "records" in sys.argv:
        printed = logging.StreamHandler(sys.stdout)
        logging.basicConfig(format="%(message)s", handlers=[MemoryHandler(100, target=printed)])
    if "threads" in sys.argv:
        threading.Thread(target=threading.Event().wait, daemon=True).start()
    with Server(("127.0.0.1", 0), Prints) as server:
        print(server.server_address[1], file=sys.stderr, flush=True)
        for _ in range(2):
            server.handle_request()
