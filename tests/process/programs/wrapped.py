"""A server whose listener is wrapped in TLS by its constructor: it is then an object of the ssl module's."""

import ssl
from typing import Any

from prefork import PreForkingTCPServer, PreForkingUnixStreamServer


class Wrapped(PreForkingTCPServer):
    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.socket = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).wrap_socket(self.socket, server_side=True)


class WrappedUnix(PreForkingUnixStreamServer):
    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.socket = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).wrap_socket(self.socket, server_side=True)
