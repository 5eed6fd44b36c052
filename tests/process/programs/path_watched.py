"""Binds a Unix path and prints what it is at every step of ours that could change it: an audit hook is called before.
The argument is who shall own it."""

import os
import sys
from typing import Any

from prefork import PreForkingUnixStreamServer, StreamRequestHandler


def look(event: str, args: Any) -> None:
    if event in ("os.chown", "os.chmod", "bound") and os.path.exists("s"):
        print(event, f"{os.lstat('s').st_mode & 0o777:o}")


if __name__ == "__main__":
    os.umask(0)
    PreForkingUnixStreamServer.socket_mode = 0o640
    PreForkingUnixStreamServer.socket_owner = sys.argv[1] or None
    sys.addaudithook(look)
    server = PreForkingUnixStreamServer("s", StreamRequestHandler)
    sys.audit("bound")
    server.server_close()
