"""Where every new image of the master begins, and every rehearsal: take what was handed over, then run the program.

    python FLAGS …/prefork/takeover.py FD PROGRAM ARGUMENTS

Run by its path, as `__main__`, before any user code: so descriptors are no longer inheritable, and signals are noted,
whatever the program's import does. Whatever the program does then (it raises, it exits, it returns, it hangs), this
process goes on with the generation that is there. Must not be imported by anything else.
"""

import os
import sys


def _import_prefork() -> None:
    """This very package, whatever the path says; and leave the path as if the program had been started itself."""
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
