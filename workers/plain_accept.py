"""An accept as `socket.accept()` makes it, without what that does beside.

Pure. Runs in any process that serves by `get_request()`.
"""

import socket
from typing import Any

from .socket_files import standard

STANDARD_ACCEPT = standard("accept")
_family, _type = socket.SocketType.family.__get__, socket.SocketType.type.__get__  # without an enum member


def accepted_by(listener: Any) -> tuple[Any, Any]:
    """Accept as `listener.accept()` does; where that is socket's own, without its two enum members, 2 µs each time."""
    accept = listener.accept
    if getattr(accept, "__func__", accept) is not STANDARD_ACCEPT or accept.__self__ is not listener:
        return accept()  # type: ignore[no-any-return]
    fd, address = listener._accept()
    request = socket.socket(_family(listener), _type(listener), listener.proto, fd)
    if listener.gettimeout() and socket.getdefaulttimeout() is None:
        request.setblocking(True)
    return request, address
