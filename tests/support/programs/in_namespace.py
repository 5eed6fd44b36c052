"""Make this process, which is root, root of a user namespace that has these users and groups; then become a command.

    in_namespace.py "0 0 1000" "0 0 1000" COMMAND...

Needs nothing of ours, so it is run by its path with `-I -S`.
"""

import ctypes
import os
import sys

CLONE_NEWUSER = 0x10000000


def enter(maps: dict[str, str]) -> None:
    """Enter it. The child stays outside of it: root there may map whom it likes, user_namespaces(7)."""
    heard, told = os.pipe()
    child = os.fork()
    if not child:
        os.read(heard, 1)
        for name, line in maps.items():
            with open(f"/proc/{os.getppid()}/{name}", "w") as file:
                file.write(line)
        os._exit(0)
    if ctypes.CDLL(None).unshare(CLONE_NEWUSER):
        sys.exit("could not make a user namespace")
    os.write(told, b".")
    if os.waitpid(child, 0)[1]:
        sys.exit("could not map users and groups")


if __name__ == "__main__":
    uids, gids, *command = sys.argv[1:]
    enter({"uid_map": uids, "gid_map": gids})
    os.execvp(command[0], command)
