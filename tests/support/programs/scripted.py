"""The names that the definitions of a `script()` may use, and `serve`, with which the script ends.

Imported by the program that `Service` starts, whose log is set up here.
"""

import logging  # noqa: F401
import os  # noqa: F401
import signal  # noqa: F401
import socket
import socketserver  # noqa: F401
import sys  # noqa: F401
import threading  # noqa: F401
import time  # noqa: F401
from typing import Any

from prefork import *  # noqa: F403
from tests.support.programs.served import Told, Who, log_everything, tell  # noqa: F401

log_everything()

Handler = Who


class Hooks(Told):
    """Mixed in before all others; for definitions that have none of their own."""


def serve(server_class: Any, address: Any, settings: dict[str, Any], name: str) -> None:
    """Serve there with these settings, if the module of this name is the program."""
    for setting, value in settings.items():
        setattr(server_class, setting, value)
    if name == "__main__":
        handler = server_class.RequestHandlerClass
        if handler is Who and server_class.socket_type == socket.SOCK_DGRAM:
            handler = DatagramRequestHandler  # noqa: F405  # a datagram has no lines to obey
        with server_class(address, handler) as server:
            server.serve_forever()
