"""A handler that answers which release it is, and its pid. Copied to where a test runs it, as `app`."""

import os
from pathlib import Path

from prefork import StreamRequestHandler

RELEASE = Path("release").read_text()


class Who(StreamRequestHandler):
    def handle(self) -> None:
        for _ in self.rfile:
            self.wfile.write(f"{RELEASE} {os.getpid()}\n".encode())
