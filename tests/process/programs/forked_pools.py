"""Two pools, each in a process that the program has started by multiprocessing: `forked_pools.py METHOD`.

What each master says of itself it says to the first process, which has the pipe to the test.
"""

import multiprocessing.connection
import multiprocessing.resource_tracker
import os
import sys
from typing import Any

from prefork import PreForkingTCPServer
from tests.support.programs.served import Who, log_everything, tell


class Pool(PreForkingTCPServer):
    max_children = 1
    pipe: Any = None
    told: tuple[int, int] = (0, 0)

    def service_actions(self) -> None:
        super().service_actions()
        now = self.statistics()
        about = now.workers.get("idle", 0), now.reloads["failed"]
        if about != self.told:
            self.told = about
            self.pipe.send((os.getpid(), *about))


def serve(pipe: Any) -> None:
    log_everything()
    Pool.pipe = pipe
    with Pool(("127.0.0.1", 0), Who) as server:
        server.serve_forever()


def relay(ends: list[Any]) -> None:
    """Tell what the masters say, until they are gone."""
    while ends:
        for ready in multiprocessing.connection.wait(ends):
            try:
                pid, idle, failed = ready.recv()  # type: ignore[union-attr, call-arg]
                tell("relayed", of=pid, idle=idle, failed=failed)
            except EOFError:
                ends.remove(ready)


if __name__ == "__main__":
    context: Any = multiprocessing.get_context(sys.argv[1])
    pipes = [context.Pipe() for _ in range(2)]
    masters = [context.Process(target=serve, args=(theirs,)) for _, theirs in pipes]
    for master in masters:
        master.start()
    for _, theirs in pipes:
        theirs.close()
    relay([ours for ours, _ in pipes])
    for master in masters:
        master.join()
    multiprocessing.resource_tracker._resource_tracker._stop()  # type: ignore[attr-defined]
    tell("codes", codes=[master.exitcode for master in masters])
