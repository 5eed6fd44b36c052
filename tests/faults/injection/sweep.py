"""Faults one after another, in one service for as long as it is whole.

Runs in the test's process. The faults of a call are its first occurrence, its second, and so on, until there is none
so late; how often a stimulus makes the process call it is counted once beforehand, so that nothing is tried in vain.
"""

import tempfile
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from .injector import ERRNOS, Fault, Injector
from .scene import ENDS, STIMULI, Scene, inject

IN_ONE = 4  # faults in one service: an exporter that dies again and again is started ever more slowly
ALWAYS = 16  # the first and the last occurrences are never left out: most between them are imports


@dataclass(frozen=True)
class Found:
    """A fault that was met, and what did not hold after it."""

    stimulus: str
    fault: Fault
    violations: Sequence[str]
    log: str

    @property
    def kind(self) -> str:
        """The worst of it in a word."""
        if not self.violations:
            return "ok"
        word = self.violations[0].partition(":")[0]
        return word if word in ("start", "lost", "hung", "stranger") else "other"


def counted(stimulus: str, who: str) -> dict[str, int]:
    """How often the process makes each call while this is done to the service."""
    with ExitStack() as stack:
        scene = _scene(stack)
        scene.injector.count(scene.pid_of(who))
        if stimulus == ENDS:
            scene.end()
            scene.process.wait()
        else:
            STIMULI[stimulus](scene)
        return scene.injector.counted()


def faults_of(
    stimulus: str, calls: Iterable[str], errnos: Sequence[str] | None, most: int, step: int, who: str = "master",
    one: bool = False,
) -> Iterator[Fault]:  # fmt: skip
    """What there is to try; an `epoll_wait` or the like may come a few times more or less in each run. `one`: not each
    errno at each occurrence, but one there, the next at the next."""
    numbers = counted(stimulus, who)
    for call in calls:
        chosen = [error for error in ERRNOS[call] if not errnos or error in errnos]
        last = min(most, numbers.get(call, 0))
        occurrences = [n for n in range(1, last + 1) if n <= ALWAYS or n > last - ALWAYS or n % step == 0]
        for index, occurrence in enumerate(occurrences if chosen else ()):
            for error in [chosen[index % len(chosen)]] if one else chosen:
                yield Fault(call, error, occurrence)


def sweep(stimulus: str, faults: Iterable[Fault], who: str = "master") -> Iterator[Found]:
    """Those of the faults that were met."""
    stack = ExitStack()
    scene: Scene | None = None
    tried = 0
    try:
        for fault in faults:
            scene = scene or _scene(stack)
            hit, violations = inject(scene, stimulus, fault, who)
            if hit:
                yield Found(stimulus, fault, violations, scene.log)
            tried += 1
            if violations or stimulus == ENDS or tried % IN_ONE == 0:
                stack.close()
                scene = None
    finally:
        stack.close()


def _scene(stack: ExitStack) -> Scene:
    folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="pf.")))
    return stack.enter_context(Scene(folder, stack.enter_context(Injector())))
