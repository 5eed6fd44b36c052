"""The stacks of a worker as people read them: what the program does, without the frames of prefork under it. Pure.

Used in the master, on what the faulthandler of a worker has written. Of each run of our own frames the innermost stays,
and their number; what is below the fork is the master's, and is left out. So are threads that wait for a request.
"""

import os
import re
from collections.abc import Iterator

_FRAME = r'  File "(.*)", line \S+ in \S'
_OURS = os.path.dirname(os.path.dirname(__file__)) + os.sep
_EXAMPLES = f"{_OURS}examples.py"  # handlers as a program has them
_FORK = f"{_OURS}master/processes.py"
_WRITING = re.compile(rf'  File "{re.escape(_OURS)}workers/signals\.py", line \S+ in _write_stacks')
_WAITING = r'(Current thread|Thread) .*\n  File "' + re.escape(_OURS) + 'workers/thread_pool.py", line '
MANY = 3  # of our own frames in a row, from which on they are counted


def shortened(text: str) -> str:
    text = "\n".join(line for line in text.split("\n") if not _WRITING.match(line))
    threads = text.split("\n\n")
    busy = [each for each in threads if not re.match(_WAITING, each)]
    if len(busy) < len(threads):
        busy.append(f"threads that wait for a request: {len(threads) - len(busy)}\n")
    return "\n".join(_lines("\n\n".join(busy).split("\n")))


def _lines(lines: list[str]) -> Iterator[str]:
    ours: list[str] = []
    below_fork = False
    for line in lines:
        found = re.match(_FRAME, line)
        file = found[1] if found is not None else ""
        below_fork = found is not None and (below_fork or file == _FORK)
        if below_fork:
            continue
        if file.startswith(_OURS) and file != _EXAMPLES:
            ours.append(line)
        else:
            yield from _counted(ours)
            ours = []
            yield line
    yield from _counted(ours)


def _counted(ours: list[str]) -> Iterator[str]:
    if len(ours) < MANY:
        yield from ours
    else:
        yield ours[0]
        yield f"  … and {len(ours) - 1} frames of prefork"
