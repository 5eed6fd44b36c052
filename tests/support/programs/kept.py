"""Handlers of connections that are kept. They obey a command per line; `state` counts the lines of a connection, by
which its client knows whether one was lost or came twice.

Imported by the programs that `Service` starts.
"""

import os
import signal
import threading
import time

from prefork import KeepAliveMixIn, StreamRequestHandler
from tests.support.programs.served import tell


class Handler(KeepAliveMixIn, StreamRequestHandler):
    """Answers `NUMBER PID` to `pid`, `NUMBER WORDS` to `say WORDS`. What is no whole line ends its connection."""

    def handle_one_request(self) -> None:
        line = self.rfile.readline()
        if not line.endswith(b"\n"):
            self.close_connection = True
            return
        word, *rest = line.decode().split(" ")
        number = 0
        if not isinstance(self.state, bytes):
            number = self.state = (self.state or 0) + 1
        said = getattr(self, f"do_{word.strip()}")(*(each.strip() for each in rest))
        self.wfile.write(f"{number} {os.getpid() if said is None else said}\n".encode())

    def do_pid(self) -> None:
        """Only say who answers."""

    def do_say(self, *words: str) -> str:
        return " ".join(words)

    def do_big(self, size: str) -> str:
        return "x" * int(size)

    def do_close(self) -> None:
        self.close_connection = True

    def do_raise(self) -> None:
        raise RuntimeError("asked to raise")

    def do_sleep(self, seconds: str) -> None:
        tell("sleeping")
        time.sleep(float(seconds))

    def do_wait(self) -> None:
        """Until there is a file of the name "go on"."""
        tell("waiting")
        while not os.path.exists("go on"):
            time.sleep(0.005)

    def do_spin(self) -> None:
        tell("spinning")
        while True:
            pass

    def do_kill(self) -> None:
        """Die in the request."""
        os.kill(os.getpid(), signal.SIGKILL)

    def do_thread(self) -> str:
        return threading.current_thread().name

    def do_remember(self, what: str) -> None:
        """Leave a state that cannot be taken along."""
        self.state = {"object": object(), "large": b"x" * (64 * 1024 + 1)}[what]

    def do_keep(self, size: str) -> None:
        """Leave a state of so many bytes, which ends the count."""
        self.state = b"x" * int(size)

    def do_sized(self) -> str:
        return str(len(self.state))

    def do_client(self) -> str:
        return f"{self.client_address}"

    def do_proxied(self) -> str:
        return f"{self.client_address[0]} {self.proxy}"

    def do_fork(self) -> str:
        """A child of the program's own, with a copy of the connection for as long as there is no file "go on"."""
        if not (pid := os.fork()):
            while not os.path.exists("go on"):
                time.sleep(0.005)
            os._exit(0)
        threading.Thread(target=os.waitpid, args=(pid, 0), daemon=True).start()
        return str(pid)


class Whole(Handler):
    """Given whole lines only."""

    @staticmethod
    def complete(data: bytes) -> bool:
        return b"\n" in data


class Told(Handler):
    """Tells the test of each connection's beginning and end, and of each stay."""

    def setup(self) -> None:
        super().setup()
        tell("stay", state=self.state)

    def connection_opened(self) -> None:
        super().connection_opened()
        tell("opened", client=self.client_address)

    def connection_closed(self) -> None:
        super().connection_closed()
        tell("closed", state=self.state, client=self.client_address)


class Greeting(Told):
    """Speaks first."""

    speaks_first = True

    def connection_opened(self) -> None:
        super().connection_opened()
        self.wfile.write(b"hello\n")


class Buffered(Handler):
    """Writes by a buffer that the mix-in has to flush."""

    wbufsize = -1
