"""Run a command with descriptors passed on as systemd does, sd_listen_fds(3): `activate.py FDS NAMES COMMAND...`."""

import fcntl
import os
import sys

fds, names, *command = sys.argv[1:]
sources = [fcntl.fcntl(int(fd), fcntl.F_DUPFD_CLOEXEC, 100) for fd in fds.split(",")]
for target, source in enumerate(sources, 3):
    os.dup2(source, target)
os.environ.update(LISTEN_PID=str(os.getpid()), LISTEN_FDS=str(len(sources)), LISTEN_FDNAMES=names)
os.execvp(command[0], command)
