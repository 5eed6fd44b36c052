"""A handler that answers with its pid after a shell of its has left a child behind, whose parent is PID 1 from then on.
Copied to where a test runs it, as `app`."""

import os
import subprocess

from prefork import StreamRequestHandler


class Handler(StreamRequestHandler):
    def handle(self) -> None:
        for _ in self.rfile:
            subprocess.run(["sh", "-c", "sleep 0.1 & exit 0"], check=True)
            self.wfile.write(b"%d\n" % os.getpid())
