"""The service that is reloaded: it answers which release it is, and leaves its port in a file. The argument is how many
workers it has."""

import os
import sys
from pathlib import Path

import prefork

RELEASE = Path("release").read_bytes()


class Handler(prefork.StreamRequestHandler):
    def handle(self) -> None:
        self.rfile.readline()
        self.wfile.write(RELEASE)


if __name__ == "__main__":
    with prefork.PreForkingTCPServer(("127.0.0.1", 0), Handler) as server:
        server.max_children = int(sys.argv[1])
        if not prefork.rehearsing() and not os.path.exists("port"):
            Path("port.new").write_text(str(server.server_address[1]))
            os.rename("port.new", "port")
        server.serve_forever()
