"""Answers with its pid; after `hold PATH` the handler is busy until the fifo at this path has a writer."""

import os
from typing import Any

from prefork import BaseRequestHandler


class Handler(BaseRequestHandler):
    request: Any

    def handle(self) -> None:
        data, sock = self.request
        sock.sendto(b"%d" % os.getpid(), self.client_address)
        if data.startswith(b"hold "):
            with open(data[5:]):
                pass
