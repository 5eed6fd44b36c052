"""A worker of the connection table that enters and leaves as fast as it can, for a test: `entering FD ROW MOST PIPE`.

Whoever is let in takes a token out of a pipe that has as many as may be in, and puts it back before it leaves. Prints
how often it was let in, how often turned away, and how often no token was left: then too many were in.
"""

import os
import sys
from threading import Thread
from typing import Any

from prefork.sockets.networks import client_of
from prefork.workers.connection_table import ConnectionLimits, ConnectionTable

ROUNDS, THREADS = 1500, 3
CLIENT = ("192.0.2.1", 1)


def main(limit: str, fd: int, row: int, most: int, take: int, put: int) -> None:
    terms: dict[str, Any] = {limit: most}
    limits = ConnectionLimits(ConnectionTable(fd), row, client_of, **terms)
    counts = [0, 0, 0]

    def enter() -> None:
        lane = memoryview(bytearray(8))
        for _ in range(ROUNDS):
            admitted = limits.admits(lane) and limits.admits_client(lane, CLIENT)
            counts[not admitted] += 1
            if admitted:
                try:
                    os.read(take, 1)
                except BlockingIOError:
                    counts[2] += 1
                else:
                    os.write(put, b"x")
            limits.leave(lane)

    threads = [Thread(target=enter) for _ in range(THREADS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    print(*counts)


if __name__ == "__main__":
    main(sys.argv[6], *map(int, sys.argv[1:6]))
