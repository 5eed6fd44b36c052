"""The TLS handshake of a connection that the program has wrapped: where it takes place, and how its failure is told.

Runs in any process that serves. Must not import ssl: where the program has not, there is nothing to do.
"""

import sys
from collections.abc import Iterator
from typing import Any

from .definitions import evaluated, is_the_programs, put

# For the whole handshake of a connection whose listener the program has wrapped. Clients take three round trips.
HANDSHAKE_TIMEOUT_S = 10.0

# They get the connection before the handler does.
FIRST_HOOKS = ("get_request", "verify_request", "process_request", "process_request_thread")


def in_its_lane(server: Any) -> None:
    """Shake hands with a client in the thread that serves it, and within HANDSHAKE_TIMEOUT_S.

    For a server whose listener is an ssl.SSLSocket: that would wait in its accept() for as long as a client says
    nothing. So it does still where a hook of the program's may ask for the client's certificate, but not for so long.
    """
    ssl, listener = sys.modules.get("ssl"), getattr(server, "socket", None)
    if ssl is None or not isinstance(listener, ssl.SSLSocket) or not listener.do_handshake_on_connect:
        return
    listener.do_handshake_on_connect = False
    if any(is_the_programs(server, name) for name in FIRST_HOOKS):
        accept = listener.accept
        listener.accept = lambda: _accepted(*accept())
        return
    finish = evaluated(server, "finish_request")

    def finish_request(request: Any, *more: Any, **named: Any) -> Any:
        shake_hands(request)
        return finish(request, *more, **named)

    put(server, "finish_request", finish_request)


def _accepted(request: Any, address: Any) -> tuple[Any, Any]:
    try:
        shake_hands(request)
    except BaseException:
        request.close()
        raise
    return request, address


def shake_hands(request: Any, at_most: float | None = None) -> None:
    """Do the handshake of this connection, in so many seconds. Raises OSError as ssl does, TimeoutError among them."""
    timeout, at_most = request.gettimeout(), HANDSHAKE_TIMEOUT_S if at_most is None else at_most
    request.settimeout(at_most if timeout is None else min(at_most, timeout))
    request.do_handshake()
    request.settimeout(timeout)


def failure(exc: BaseException | None) -> str | None:
    """Return why a handshake failed, if that is what this exception tells of a client of ours; else None.

    One that is complete has had the client's last message, which both libraries tell, also of a broken connection.
    """
    ssl = sys.modules.get("ssl")
    if ssl is not None and isinstance(exc, (ssl.SSLError, TimeoutError, ConnectionError)):
        for found in _objects(exc):
            if isinstance(found, ssl.SSLSocket) and found.server_side and found.get_channel_binding() is None:
                return str(getattr(exc, "reason", None) or exc).lower().replace("_", " ")
    pyopenssl = sys.modules.get("OpenSSL.SSL")
    if pyopenssl is not None and isinstance(exc, (pyopenssl.Error, TimeoutError, ConnectionError)):
        for found in _objects(exc):
            if isinstance(found, pyopenssl.Connection) and found.get_peer_finished() is None:
                errors = exc.args[0] if exc.args and isinstance(exc.args[0], list) else None
                return str(errors[-1][-1] if errors else exc)
    return None


def _objects(exc: BaseException) -> Iterator[Any]:
    """Yield the objects whose methods the exception went through."""
    traceback = exc.__traceback__
    while traceback is not None:
        yield traceback.tb_frame.f_locals.get("self")
        traceback = traceback.tb_next
