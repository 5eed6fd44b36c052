"""A memory cgroup of our own, below the one that the test runs in: what is moved there the kernel kills at its limit.

Runs in the test's process. Owns the folder in /sys/fs/cgroup for the length of a block. Version 1 only: with version 2
a cgroup that holds processes may not have limited ones below it.
"""

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

ROOT_OF_V1 = Path("/sys/fs/cgroup/memory")


def _ours() -> Path | None:
    """The folder of this process in the hierarchy of version 1; cgroups(7)."""
    for line in Path("/proc/self/cgroup").read_text().splitlines():
        _, controllers, path = line.split(":", 2)
        if controllers == "memory" and os.access(folder := ROOT_OF_V1 / path.lstrip("/"), os.W_OK):
            return folder
    return None


MEMORY_CGROUP = _ours()


class MemoryCgroup:
    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def take(self, pid: int) -> None:
        """From now on what this process asks for counts here."""
        (self._folder / "cgroup.procs").write_text(str(pid))


@contextlib.contextmanager
def memory_cgroup(limit: int) -> Iterator[MemoryCgroup]:
    """One with so many bytes, in which nobody must be left at the end of the block."""
    assert MEMORY_CGROUP is not None
    folder = MEMORY_CGROUP / f"prefork-test-{os.getpid()}"
    folder.mkdir()
    try:
        (folder / "memory.limit_in_bytes").write_text(str(limit))
        yield MemoryCgroup(folder)
    finally:
        folder.rmdir()
