"""The entry point of every new image of the master, and of every rehearsal: read the record, then run the program.

    python FLAGS …/prefork/takeover.py FD PROGRAM ARGUMENTS

Run by its path, as `__main__`, before any user code, so that descriptors are no longer inheritable and signals are
noted whatever the import of the program does. If the program then raises, exits, returns or hangs before it serves, the
new image goes on with the old generation. Owns nothing. Must not be imported.
"""

import os
import sys


def _import_prefork() -> None:
    """Import this very package, whatever `sys.path` says, and leave the path as if the program itself had been
    started."""
    here = os.path.dirname(os.path.abspath(__file__))
    if sys.path and os.path.realpath(sys.path[0]) == os.path.realpath(here):
        del sys.path[0]
    sys.path.insert(0, os.path.dirname(here))
    import prefork.reload.new_image  # noqa: F401

    del sys.path[0]


if __name__ == "__main__":
    fd, program = int(sys.argv[1]), sys.argv[2:]
    _import_prefork()
    from prefork.reload.new_image import take_over

    sys.exit(take_over(fd, program))
