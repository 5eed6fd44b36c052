"""Services for `prefork check`: one that boots and says so, one that fails, one that hangs. Copied to where a test runs
it, as `app`."""

import time

import prefork


class Handler(prefork.StreamRequestHandler):
    def handle(self) -> None:
        self.wfile.write(b"served" + self.rfile.read())


class Server(prefork.PreForkingTCPServer):
    RequestHandlerClass = Handler

    def worker_started(self) -> None:
        print("booting", prefork.rehearsing(), flush=True)


class Broken(Server):
    def worker_started(self) -> None:
        raise RuntimeError("no database")


class Hanging(Server):
    boot_timeout = 0.5

    def worker_started(self) -> None:
        time.sleep(600)
