"""One question to a control socket, as another user. `as_other.py PATH LINE UID` prints the line that answers, or the
errno of what went wrong. Without a line it only connects, and prints what it is told."""

import json
import os
import socket
import sys

path, line, uid = sys.argv[1], sys.argv[2], int(sys.argv[3])
os.setgroups([])
os.setgid(uid)
os.setuid(uid)
with socket.socket(socket.AF_UNIX) as sock, sock.makefile() as answers:
    try:
        sock.connect(path)
        if line:
            sock.sendall(line.encode() + b"\n")
        print(next(answer for answer in answers if "progress" not in answer).strip())
    except OSError as exc:
        print(json.dumps({"errno": exc.errno}))
