"""A plain server, of the class that the argument names, that has no descriptor left for a second.

Talks with the test by lines: its port; after the first request `short`, and reads a line when a connection waits; what
that second took; and reads a line when it was served.
"""

import logging
import os
import resource
import sys
import threading
import time
from typing import Any

import prefork
from tests.support.programs.serving import Upper

if __name__ == "__main__":
    base: Any = getattr(prefork, sys.argv[1])

    class Server(base):  # type: ignore[misc]
        tries = 0
        first_done = threading.Event()

        def get_request(self) -> Any:
            self.tries += 1
            return super().get_request()

        def close_request(self, request: Any) -> None:
            super().close_request(request)
            self.first_done.set()

    logging.basicConfig(stream=sys.stdout, format="%(levelname)s %(message)s")
    server = Server(("127.0.0.1", 0), Upper)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    print(server.server_address[1], flush=True)
    server.first_done.wait()
    enough = resource.getrlimit(resource.RLIMIT_NOFILE)
    lowest_free = os.dup(0)
    os.close(lowest_free)
    resource.setrlimit(resource.RLIMIT_NOFILE, (lowest_free, enough[1]))
    print("short", flush=True)
    sys.stdin.readline()  # a connection is waiting
    tries, cpu = server.tries, time.process_time()
    threading.Event().wait(1.0)
    print(server.tries - tries, time.process_time() - cpu, flush=True)
    resource.setrlimit(resource.RLIMIT_NOFILE, enough)
    sys.stdin.readline()  # it was served
    server.shutdown()
    server.server_close()
