"""The entry point of every new image of the master, and of every rehearsal: read the record, then run the program.

    python FLAGS …/prefork/takeover.py FD PROGRAM ARGUMENTS

Run by its path, as `__main__`, before any user code, so that descriptors are no longer inheritable and signals are
noted whatever the import of the program does. If the program then raises, exits, returns or hangs before it serves, the
new image goes on with the old generation. Owns nothing. Must not be imported.
"""

import os
import sys
import time

TRIES, AGAIN_S = 20, 0.05  # nobody supervises before prefork is imported, and the kernel may be short only for a moment


def _import_prefork() -> None:
    """Import this very package, whatever `sys.path` says, and leave the path as if the program itself had been
    started."""
    here = os.path.dirname(os.path.abspath(__file__))
    if sys.path and os.path.realpath(sys.path[0]) == os.path.realpath(here):
        del sys.path[0]
    sys.path.insert(0, os.path.dirname(here))
    for left in reversed(range(TRIES)):
        try:
            import prefork.reload.new_image  # noqa: F401

            break
        except (ImportError, OSError, MemoryError) as exc:
            if not left:
                raise
            _forget_prefork(exc, said=left < TRIES - 1)
            time.sleep(AGAIN_S)
    del sys.path[0]


def _forget_prefork(exc: Exception, *, said: bool) -> None:
    """Undo the part of an import that was done, and what the import system remembers of folders it could not read."""
    if not said and sys.stderr is not None:
        try:
            sys.stderr.write(f"prefork: could not import prefork: {exc}; trying again\n")
        except OSError:
            pass
    sys.path_importer_cache.clear()
    for name in [name for name in sys.modules if name.partition(".")[0] == "prefork"]:
        del sys.modules[name]


if __name__ == "__main__":
    fd, program = int(sys.argv[1]), sys.argv[2:]
    _import_prefork()
    from prefork.reload.new_image import take_over

    sys.exit(take_over(fd, program))
