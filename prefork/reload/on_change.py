"""`reload_on_change`: ask for a reload, as SIGHUP does, when a file of the program has changed.

Runs in the master, in its turns, twice a second. Owns what was last seen of each file. Must not start a thread or read
a file. It checks the files of every loaded module, the other modules beside those of the program (those that a handler
imports later, and those that were new in a release that could not be loaded), and the files that the program names.
What was last seen is handed to the next image, so that a change during a reload causes another one.
"""

import logging
import os
import site
import sys
import sysconfig
from collections.abc import Callable, Iterable, Iterator, Mapping

from prefork.metrics.log_events import LogEvent, event

log = logging.getLogger("prefork.supervisor")

LOOK_EVERY_S = 0.5
SETTLE_S = 0.1  # an editor may write in steps

FileStates = dict[str, tuple[int, int, int]]  # mtime, size and inode of a file, by its path


class Changes:
    """Check the files, and call `reload` once when some have changed and no more changes follow."""

    def __init__(
        self, reload: Callable[[], None], named: Iterable[str] = (), before: Mapping[str, list[int]] | None = None
    ) -> None:
        """`named`: files beside those of modules; `before`: what the previous image saw last, from its `pack()`."""
        self._reload = reload
        self._named = frozenset(map(os.path.abspath, named))
        self._next_look = 0.0
        self._settling: FileStates | None = None
        self._seen: FileStates = {path: (values[0], values[1], values[2]) for path, values in (before or {}).items()}
        self._seen = self._look() | self._seen

    def pack(self) -> dict[str, list[int]]:
        return {path: list(seen) for path, seen in self._seen.items()}

    def turn(self, now: float) -> float:
        """Check the files if it is time; return when to check again."""
        if now < self._next_look:
            return self._next_look
        look = self._look()
        if look == self._settling:
            changed = sorted(path for path in {*look, *self._seen} if look.get(path) != self._seen.get(path))
            log.info("changed: %s", ", ".join(map(_shown, changed)), extra=event(LogEvent.FILES_CHANGED, files=changed))
            self._seen, self._settling = look, None
            self._reload()
            self._next_look = now + LOOK_EVERY_S
            return now
        if look != self._seen:
            self._settling = look
            self._next_look = now + SETTLE_S
            return self._next_look
        self._settling = None
        self._next_look = now + LOOK_EVERY_S
        return self._next_look

    def _look(self) -> FileStates:
        found: FileStates = {}
        for path in {*self._named, *self._seen, *_loaded()}:
            try:
                status = os.stat(path)
            except OSError:
                continue  # a file that is gone has changed
            found[path] = (status.st_mtime_ns, status.st_size, status.st_ino)
        return found


def _loaded() -> Iterator[str]:
    """Yield the files of the loaded modules, and of the modules beside the program's own."""
    folders = set()
    for module in list(sys.modules.values()):
        path = getattr(module, "__file__", None)
        if isinstance(path, str):
            path = os.path.abspath(path)
            yield path
            if not path.startswith(_INSTALLED):
                folders.add(os.path.dirname(path))
    for folder in folders:
        try:
            yield from (entry.path for entry in os.scandir(folder) if entry.name.endswith(".py"))
        except OSError:
            continue


_INSTALLED = tuple(
    folder + os.sep
    for folder in {sysconfig.get_path("stdlib"), *site.getsitepackages(), site.getusersitepackages()}
)  # fmt: skip


def _shown(path: str) -> str:
    relative = os.path.relpath(path)
    return path if relative.startswith(os.pardir) else relative
