"""The `get_request()` of a worker by the shortest way, where neither the server's nor the socket's is the program's.

Runs in a worker. What it leaves out are the calls between the server's method and the one of the socket that accepts or
receives, which cost as much as a handler. What it returns is the same. One that the program puts in its place while it
serves, on the object or in a class of a server, is called from the next request on.
"""

import socket
from typing import Any

from prefork.workers.accepting import GetRequest
from prefork.workers.definitions import is_the_programs
from prefork.workers.plain_accept import STANDARD_ACCEPT
from prefork.workers.socket_files import AcceptedSocket
from prefork.workers.stay import KeptSocket
from prefork.workers.unnamed_peer import UNNAMED

from .accepted import FileListener, KeptListener
from .listener import Beneath, family_of, type_of
from .shared import SharedDatagrams, fitting
from .wildcard import ROOM, WildcardListener, peer_of

_DONTWAIT = int(getattr(socket, "MSG_DONTWAIT", 0))
_TRUNC = int(getattr(socket, "MSG_TRUNC", 0))


def shortest(server: Any) -> GetRequest | None:
    """Return what does the same as `server.get_request()`; None where there is nothing shorter."""
    sock = server.socket
    if is_the_programs(server, "get_request") or not isinstance(sock, Beneath):
        return None
    accept, recvfrom = _whose(sock, "accept"), _whose(sock, "recvfrom")
    connections = {Beneath: socket.socket, FileListener: AcceptedSocket, KeptListener: KeptSocket}
    if sock.type == socket.SOCK_STREAM and accept in connections and socket.socket.accept is STANDARD_ACCEPT:
        return _accepting(server, sock, connections[accept])
    if recvfrom is SharedDatagrams and "recvfrom" not in vars(socket.socket):
        return _receiving(server, sock)
    if recvfrom is WildcardListener:
        return _receiving_everywhere(server, sock)
    return None


def _whose(sock: Any, name: str) -> type:
    return next(cls for cls in type(sock).__mro__ if name in vars(cls))


def _accepting(server: Any, sock: Any, connection: type[socket.socket]) -> GetRequest:
    accept, family, kind, proto = sock._accept, family_of(sock), type_of(sock), sock.proto
    own, standard = vars(server), type(server).get_request

    def get_request() -> tuple[Any, Any]:
        if type(server).get_request is not standard or "get_request" in own:
            return server.get_request()  # type: ignore[no-any-return]
        fd, address = accept()
        return connection(family, kind, proto, fd), address or UNNAMED

    return get_request


def _receiving(server: Any, sock: Any) -> GetRequest:
    recvfrom = socket.SocketType.recvfrom.__get__(sock)
    own, standard = vars(server), type(server).get_request

    def get_request() -> tuple[Any, Any]:
        if type(server).get_request is not standard or "get_request" in own:
            return server.get_request()  # type: ignore[no-any-return]
        most = server.max_packet_size
        data, address = recvfrom(most + 1, _DONTWAIT)
        return (data if len(data) <= most else fitting(data, most, address), sock), address

    return get_request


def _receiving_everywhere(server: Any, sock: Any) -> GetRequest:
    recvmsg = socket.SocketType.recvmsg.__get__(sock)
    own, standard = vars(server), type(server).get_request

    def get_request() -> tuple[Any, Any]:
        if type(server).get_request is not standard or "get_request" in own:
            return server.get_request()  # type: ignore[no-any-return]
        data, ancillary, came, address = recvmsg(server.max_packet_size, ROOM, _DONTWAIT)
        if came & _TRUNC:
            SharedDatagrams.note_cut(server.max_packet_size, address)
        return (data, sock), peer_of(sock, address, ancillary)

    return get_request
