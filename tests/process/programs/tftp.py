"""A small TFTP server at one port (RFC 1350, reading only): a transfer is a conversation, kept in a worker's memory."""

import os
import struct
from pathlib import Path
from typing import Any

from prefork import BaseRequestHandler

READ, DATA, ACK, ERROR = 1, 3, 4, 5
BLOCK = 512

sending: dict[Any, bytes] = {}  # by client


class Handler(BaseRequestHandler):
    def handle(self) -> None:
        packet, sock = self.request
        operation, block = struct.unpack("!HH", packet[:4])
        client = self.client_address
        if packet == b"pid?":
            answer = b"%d" % os.getpid()
        elif operation == READ:
            sending[client] = Path(packet[2:].split(b"\0")[0].decode()).read_bytes()
            answer = self.part(1)
        elif operation != ACK or client not in sending:
            answer = struct.pack("!HH", ERROR, 5) + b"unknown transfer\0"
        elif block * BLOCK > len(sending[client]):
            del sending[client]
            return
        else:
            answer = self.part(block + 1)
        sock.sendto(answer, client)

    def part(self, block: int) -> bytes:
        whole = sending[self.client_address]
        return struct.pack("!HH", DATA, block) + whole[(block - 1) * BLOCK : block * BLOCK]
