"""The service whose connections are kept over reloads: it answers each line with how many there have been on this
connection, and leaves its port in a file. The argument is how many workers it has."""

import os
import sys
from pathlib import Path

import prefork


class Handler(prefork.KeepAliveMixIn, prefork.StreamRequestHandler):
    def handle_one_request(self) -> None:
        if not self.rfile.readline():
            self.close_connection = True
            return
        self.state = (self.state or 0) + 1
        self.wfile.write(b"%d\n" % self.state)


class Server(prefork.PreForkingTCPServer):
    request_queue_size = 1024


if __name__ == "__main__":
    with Server(("127.0.0.1", 0), Handler) as server:
        server.max_children = int(sys.argv[1])
        if not prefork.rehearsing() and not os.path.exists("port"):
            Path("port.new").write_text(str(server.server_address[1]))
            os.rename("port.new", "port")
        server.serve_forever()
