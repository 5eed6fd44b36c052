"""A program under a socket unit that serves on one of the sockets that it is passed, and itself uses another one."""

import os
import socket

from prefork import systemd
from tests.support.programs.served import tell

ADMIN = socket.socket(fileno=os.dup(systemd.descriptor("admin")))
tell("admin", port=ADMIN.getsockname()[1], closed=systemd.find("closed"))
if not os.path.exists("again"):
    open("again", "w").close()
    os.close(systemd.descriptor("closed"))
