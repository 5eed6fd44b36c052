"""A syslog collector, over UDP (RFC 5426) and TCP (RFC 6587): one line of JSON for each message, in one file.

    prefork run syslog_collector:OverUdp --bind udp://127.0.0.1:5514
    prefork run syslog_collector:OverTcp --bind 127.0.0.1:5514 --max-threads 100

    logger -n 127.0.0.1 -P 5514 -d -p local0.warning -t demo "over UDP"
    logger -n 127.0.0.1 -P 5514 -T -p local0.warning -t demo "over TCP"

All workers append to SYSLOG_FILE (default syslog.jsonl). Each message is one write() on a descriptor opened with
O_APPEND, which the kernel puts at the end of the file as a whole: lines of several processes do not mix. The file is
opened for each worker in `worker_started`, so that `kill -USR2` after a rotation lets go of the old one.

UDP loses what comes while the receive buffer is full: prefork_datagram_receive_drops_total counts it.
"""

import json
import os
import re
import time
from collections.abc import Iterator

from prefork import (
    DatagramRequestHandler,
    PreForkingMixIn,
    PreForkingUDPServer,
    StreamRequestHandler,
    ThreadingTCPServer,
)

FILE = os.environ.get("SYSLOG_FILE", "syslog.jsonl")
SIZE_MAX = 64 * 1024
SEVERITIES = ("emerg", "alert", "crit", "err", "warning", "notice", "info", "debug")
PRIORITY = re.compile(r"<(\d{1,3})>(.*)", re.DOTALL)
# What the two formats of a header have after the priority, RFC 5424 and RFC 3164.
NEW = re.compile(r"1 (?P<time>\S+) (?P<host>\S+) (?P<app>\S+) \S+ \S+ (?:-|(?:\[.*?\])+) ?(?P<text>.*)", re.DOTALL)
OLD = re.compile(r"(?P<time>\w{3} [ \d]\d [\d:]{8}) (?P<host>\S+) (?P<app>[^:\[\s]+)[^:]*: ?(?P<text>.*)", re.DOTALL)


def parsed(message: bytes) -> dict[str, object]:
    """What a message says of itself; all of it is text where it is not syslog."""
    line = message.decode("utf-8", "replace").rstrip("\r\n\0")
    found = PRIORITY.fullmatch(line)
    facility, severity = divmod(int(found[1]), 8) if found else (1, 5)
    rest = found[2] if found else line
    header = NEW.fullmatch(rest) or OLD.fullmatch(rest)
    fields = header.groupdict() if header else {"text": rest}
    return {"facility": facility, "severity": SEVERITIES[severity], **fields}


class _Collecting:
    """What both servers have: a file for each worker."""

    def worker_started(self) -> None:
        super().worker_started()  # type: ignore[misc]
        self.file = os.open(FILE, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o640)

    def collect(self, message: bytes, client: str) -> None:
        if message.strip():
            line = {"received": time.time(), "client": client, **parsed(message)}
            os.write(self.file, json.dumps(line, ensure_ascii=False).encode() + b"\n")


class Datagram(DatagramRequestHandler):
    def handle(self) -> None:
        self.server.collect(self.rfile.read(), self.client_address[0])


class Stream(StreamRequestHandler):
    """Messages that end with a newline, or that have their length in front."""

    def handle(self) -> None:
        for message in self.messages():
            self.server.collect(message, self.client_address[0])

    def messages(self) -> Iterator[bytes]:
        while start := self.rfile.read(1):
            if not start.isdigit():
                yield start + self.rfile.readline(SIZE_MAX)
                continue
            while (digit := self.rfile.read(1)).isdigit():
                start += digit
            yield self.rfile.read(min(int(start), SIZE_MAX))


class OverUdp(_Collecting, PreForkingUDPServer):
    RequestHandlerClass = Datagram
    max_packet_size = SIZE_MAX


class OverTcp(_Collecting, PreForkingMixIn, ThreadingTCPServer):
    RequestHandlerClass = Stream
    drain_connections = "eof"  # senders keep their connection for ever; they connect again
