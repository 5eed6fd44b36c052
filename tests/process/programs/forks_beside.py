"""Forks so many milliseconds after a thread has begun to make the first server; its child makes one, too.

python -m tests.process.programs.forks_beside CLASS MILLISECONDS [serving]

`serving`: it is a forking server that forks, which has others' locks by then, and it does so soon.
"""

import logging  # noqa: F401  # while a thread imports that, nobody can have forks wait
import os
import signal
import socket
import sys
import threading
import time

import prefork

SOON = 5.0  # seconds; half of what a fork waits for at most, and hundreds of what a load takes


def make() -> None:
    getattr(prefork, sys.argv[1])(("127.0.0.1", 0), prefork.BaseRequestHandler).server_close()


class Makes(prefork.BaseRequestHandler):
    def handle(self) -> None:
        signal.alarm(20)
        make()
        self.request.sendall(b"made")


def forked_by_a_server() -> int:
    with prefork.ForkingTCPServer(("127.0.0.1", 0), Makes) as server:
        threading.Thread(target=server.serve_forever).start()
        socket.create_connection(server.server_address).close()  # it has forked before
        thread = threading.Thread(target=make)
        thread.start()
        time.sleep(int(sys.argv[2]) / 1000)
        before = time.monotonic()
        with socket.create_connection(server.server_address) as client:
            made = client.recv(4) == b"made" and time.monotonic() - before < SOON
        thread.join()
        server.shutdown()
    return 0 if made else 1


if __name__ == "__main__":
    if "serving" in sys.argv:
        sys.exit(forked_by_a_server())
    thread = threading.Thread(target=make)
    thread.start()
    time.sleep(int(sys.argv[2]) / 1000)
    if pid := os.fork():
        thread.join()
        sys.exit(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
    signal.alarm(20)  # else it would hang beyond the test
    make()
