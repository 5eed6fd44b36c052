"""Bare loops: what one writes by hand. A listener, as many forks as the pool has workers, a blocking accept in each."""

import os
import socket
import socketserver
from collections.abc import Callable
from typing import Any

from ..traffic import DATAGRAMS, Address, Ready
from .answers import handler


def forked(listener: socket.socket, workers: int, ready: Ready, loop: Callable[[], None]) -> None:
    for _ in range(workers):
        if os.fork() == 0:
            ready(listener.getsockname())
            loop()
    os.wait()


def listening(traffic: str, address: Address) -> socket.socket:
    family = socket.AF_UNIX if isinstance(address, str) else socket.AF_INET
    if traffic in DATAGRAMS:
        sock = socket.socket(family, socket.SOCK_DGRAM)
        sock.bind(address)
        return sock
    return socket.create_server(address, family=family, backlog=1024)


def handled(traffic: str, address: Address, workers: int, ready: Ready) -> None:
    """Each connection, or datagram, to the standard library's handler class."""
    made, listener = handler(socketserver, traffic), listening(traffic, address)
    loop = of_datagrams if traffic in DATAGRAMS else of_connections
    forked(listener, workers, ready, lambda: loop(listener, made))


def of_connections(listener: socket.socket, handler: Callable[[Any, Any, Any], Any]) -> None:
    while True:
        connection, address = listener.accept()
        handler(connection, address, None)
        connection.close()


def of_datagrams(sock: socket.socket, handler: Callable[[Any, Any, Any], Any]) -> None:
    while True:
        data, address = sock.recvfrom(8192)
        handler((data, sock), address, None)


def unhandled(traffic: str, address: Address, workers: int, ready: Ready) -> None:
    """Without any handler class: the floor of Python."""
    listener = listening(traffic, address)

    def loop() -> None:
        while True:
            connection, _ = listener.accept()
            connection.sendall(connection.recv(1024).upper())
            connection.close()

    forked(listener, workers, ready, loop)
