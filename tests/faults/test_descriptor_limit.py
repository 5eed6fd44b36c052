"""A master that runs out of descriptors: its soft limit raised one by one, under kills and reloads."""

import os
import resource
import signal
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from itertools import count, islice
from pathlib import Path

import pytest

from tests.support.tools.figures import figure

from .injection.injector import Injector
from .injection.scene import Scene

MOST = 18  # a new image needs sixteen


@contextmanager
def _only(free: int, pid: int) -> Iterator[None]:
    """Let a process have so many more descriptors: the kernel gives numbers below the soft limit, the lowest first."""
    before = resource.prlimit(pid, resource.RLIMIT_NOFILE)
    taken = {int(name) for name in os.listdir(f"/proc/{pid}/fd")}
    limit = next(islice((number for number in count() if number not in taken), free, None))
    resource.prlimit(pid, resource.RLIMIT_NOFILE, (limit, before[1]))
    try:
        yield
    finally:
        with suppress(ProcessLookupError):  # what ended it is told by the caller
            resource.prlimit(pid, resource.RLIMIT_NOFILE, before)


@pytest.mark.once
def test_one_more_each_time() -> None:
    """With none free, with one, two and so on, a worker is killed and a reload asked for: whether it ended well is
    told, and when there are enough again the pool is whole and nothing is left over."""
    with (
        tempfile.TemporaryDirectory(prefix="pf.") as folder,
        Injector(["execve"]) as injector,
        Scene(Path(folder), injector) as scene,
    ):
        well = [_kill_and_reload(scene, free) for free in range(MOST)]
        scene.end()
        assert scene.process.wait() == 0
    figure("descriptors that a reload needs free", well.index(True), MOST)
    assert well == sorted(well)


def _kill_and_reload(scene: Scene, free: int) -> bool:
    """Whether the reload ended well."""
    victim = scene.workers()[0]
    with _only(free, scene.process.pid):
        os.kill(victim, signal.SIGKILL)
        well = scene.ask_reload(scene.next_release())
    scene.mend()
    scene.settle(lambda status: victim not in scene.workers())
    assert scene.wait_violations() == [], f"with {free} free:\n{scene.log}"
    return well
