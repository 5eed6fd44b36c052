"""A service whose handler writes to stdout and reads from its terminal. Copied to where a test runs it, as `app`."""

from prefork import PreForkingUnixStreamServer, StreamRequestHandler


class Handler(StreamRequestHandler):
    def handle(self) -> None:
        print("printed", flush=True)
        try:
            with open("/dev/tty") as terminal:
                terminal.readline()
        except OSError as exc:
            self.wfile.write(str(exc.strerror).encode())


class Server(PreForkingUnixStreamServer):
    RequestHandlerClass = Handler
    max_children = 2
