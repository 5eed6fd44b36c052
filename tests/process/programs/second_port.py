"""A second server, in a thread of the master: it answers with the release that has started it."""

import os
import socketserver
import threading

RELEASE, PORT = os.environ["SECOND"].split()


class Second(socketserver.StreamRequestHandler):
    def handle(self) -> None:
        self.wfile.write(RELEASE.encode())


class Server(socketserver.ThreadingTCPServer):
    allow_reuse_address = True
    daemon_threads = True


threading.Thread(target=Server(("127.0.0.1", int(PORT)), Second).serve_forever, daemon=True).start()
