"""A plain server that forks, with as many descriptors free as the second argument says; the first is its class.

Prints its port, reads a line when it has served, prints `few`, then each client that it gives up. Ends with stdin.
"""

import os
import resource
import sys
import threading
from typing import Any

from prefork import DatagramRequestHandler, ForkingTCPServer, ForkingUDPServer
from tests.support.programs.serving import Upper, descriptors

FORKS_FOR = os.getpid()


class GivesUp:
    def shutdown_request(self, request: Any) -> None:
        if os.getpid() == FORKS_FOR:
            print("given up", flush=True)
        super().shutdown_request(request)  # type: ignore[misc]  # of the server class


class Server(GivesUp, ForkingTCPServer):
    pass


class UpperDatagram(DatagramRequestHandler):
    def handle(self) -> None:
        self.wfile.write(self.rfile.read().upper())


class Datagrams(GivesUp, ForkingUDPServer):
    pass


class MeasuredDatagrams(Datagrams):
    metrics_address = ("127.0.0.1", 0)


class Measured(Server):
    """Each child has a slot of its own."""

    metrics_address = ("127.0.0.1", 0)


class LongWay(Server):
    """The same, by all hooks."""

    def verify_request(self, request: Any, client_address: Any) -> bool:
        return True


if __name__ == "__main__":
    server = globals()[sys.argv[1]](("127.0.0.1", 0), UpperDatagram if "Datagrams" in sys.argv[1] else Upper)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    print(server.server_address[1], flush=True)
    sys.stdin.readline()
    while server.active_children or server._prefork_.counting.lane is None:  # until it has all for the next request
        os.sched_yield()
    while (last := os.dup(0)) < max(descriptors()):
        pass  # what is open must be below the limit, to be free again when it is closed
    free = [last, *(os.dup(0) for _ in range(int(sys.argv[2]) - 1))]
    lowest = os.dup(0)
    resource.setrlimit(resource.RLIMIT_NOFILE, (lowest, lowest))
    for fd in [lowest, *free]:
        os.close(fd)
    print("few", flush=True)
    sys.stdin.read()
    server.shutdown()
    server.server_close()
