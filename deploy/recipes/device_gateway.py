"""A gateway for thousands of devices that stay connected and seldom speak: a login, then a line for each reading.

    prefork run device_gateway:Gateway --bind 127.0.0.1:7070 --max-children 4

    $ nc 127.0.0.1 7070
    hello 9f86d081884c7d65                  the gateway speaks first
    login d17 CODE                          printf %s 9f86d081884c7d65 | openssl dgst -sha256 -hmac 'a secret'
    ok
    temperature 21.5
    ok 1
    bye

A device costs a descriptor and half a kilobyte while it is silent, whatever the number of workers. The challenge, who
has logged in and how many readings there were is in `self.state`, which any worker is given with the next line: devices
do not notice a reload, a recycled worker, or the death of one that is not just reading their line. A device that loses
its connection connects again and sends what has not been answered once more: a reading may be there twice, and never
not.

Of a line over a slow network half may arrive, and the rest much later, or never. `complete` lets no worker wait for it.

Readings, and that a device has gone, are appended to GATEWAY_FILE (default readings.jsonl) as lines of JSON, each by
one write(). Devices that vanish without a word (a cable, a NAT that forgot) are found by `tcp_keepalive`.
"""

import hmac
import json
import os
import secrets
import time

from prefork import KeepAliveMixIn, PreForkingTCPServer, StreamRequestHandler

FILE = os.environ.get("GATEWAY_FILE", "readings.jsonl")
SECRET = os.environ.get("GATEWAY_SECRET", "a secret").encode()  # yours: one for each device, from a database
LINE_SIZE_MAX = 1024


class Device(KeepAliveMixIn, StreamRequestHandler):
    """One line, one answer."""

    speaks_first = True

    @staticmethod
    def complete(data: bytes) -> bool:
        """Whether a line is there, or what can be none."""
        return b"\n" in data or len(data) >= LINE_SIZE_MAX

    def connection_opened(self) -> None:
        self.state = {"challenge": secrets.token_hex(8), "device": "", "readings": 0}
        self.wfile.write(f"hello {self.state['challenge']}\n".encode())

    def connection_closed(self) -> None:
        if self.state["device"]:
            self.keep(gone=True, readings=self.state["readings"])

    def handle_one_request(self) -> None:
        line = self.rfile.readline(LINE_SIZE_MAX)
        match line.decode("utf-8", "replace").split() if line.endswith(b"\n") else ["bye"]:
            case ["login", device, code] if not self.state["device"] and self.knows(code):
                self.state["device"] = device
                answer = "ok"
            case [name, value] if self.state["device"] and name != "login":
                self.keep(reading=name, value=value)
                self.state["readings"] += 1
                answer = f"ok {self.state['readings']}"
            case words:  # the end, or nothing that we understand
                answer = "bye" if words == ["bye"] else "no"
                self.close_connection = True
        self.wfile.write(f"{answer}\n".encode())

    def knows(self, code: str) -> bool:
        expected = hmac.digest(SECRET, self.state["challenge"].encode(), "sha256").hex()
        return hmac.compare_digest(expected.encode(), code.encode())

    def keep(self, **fields: object) -> None:
        line = {"time": time.time(), "device": self.state["device"], **fields}
        os.write(self.server.file, json.dumps(line).encode() + b"\n")


class Gateway(PreForkingTCPServer):
    """A worker opens the file for itself, so that `kill -USR2` after a rotation lets go of the old one."""

    RequestHandlerClass = Device
    request_queue_size = 4096  # all of them connect again at once after a power cut
    keepalive_timeout = 900.0  # a device sends something every five minutes
    tcp_keepalive, tcp_keepalive_interval, tcp_keepalive_count = 120.0, 20.0, 3
    request_timeout = 30.0  # of one line

    def worker_started(self) -> None:
        self.file = os.open(FILE, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o640)
