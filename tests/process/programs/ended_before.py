"""A pool on which the methods that the arguments name are called before `serve_forever()`."""

import os
import sys

from prefork import PreForkingUnixStreamServer
from tests.support.programs.served import Told, Who, log_everything, tell


class Server(Told, PreForkingUnixStreamServer):
    max_children = 2


if __name__ == "__main__":
    log_everything()
    with Server("here", Who) as server:
        for word in sys.argv[1:]:
            getattr(server, word)()
        raised = ""
        try:
            server.serve_forever()
        except ValueError as exc:
            raised = str(exc)
        tell("returned", there=os.path.exists("here"), raised=raised)
