"""System calls of the master that fail, one at a time: a seeded sample of what `python -m tests.faults.injection`
tries whole."""

import random
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from tests.support.tools.figures import figure

from .injection.injector import ALL, OTHERS, Fault, Injector
from .injection.scene import ENDS
from .injection.sweep import faults_of, sweep

FAULTS_EACH = 12  # of one stimulus; a fault takes a third of a second where nothing is reloaded
STIMULI = (
    "requests",
    "a worker is killed",
    "control is asked",
    "the exporter is killed",
    "workers are replaced",
)
RELOADS = (("a reload", 8), ("a reload that fails", 6), ("a reload that fails late", 4))  # each with its faults
OF_OTHERS = (("worker", "requests"), ("worker", "workers are replaced"), ("exporter", "a worker is killed"))
PROGRAM = Path(__file__).parent / "programs" / "three_opens.py"


def test_the_fault_that_was_armed_and_no_other() -> None:
    """The second open(2) after arming fails with EMFILE; the first and the third do not."""
    with Injector() as injector:
        command = [*injector.before, sys.executable, str(PROGRAM)]
        pipe = subprocess.PIPE
        with subprocess.Popen(command, pass_fds=injector.fds, stdin=pipe, stdout=pipe, text=True) as process:
            injector.attach(process.pid)
            assert process.stdout is not None
            assert process.stdout.readline() == "up\n"
            injector.arm(Fault("openat", "EMFILE", 2), process.pid)
            assert process.communicate("\n")[0].split() == ["opened", "24", "opened"]
        assert injector.disarm()


@pytest.mark.once
@pytest.mark.parametrize("stimulus", STIMULI)
def test_a_call_of_the_masters_fails(stimulus: str, rng: random.Random) -> None:
    """Whatever the kernel refuses the master, once: it lives, the pool is whole again, no process is a stranger and no
    row a ghost, its descriptors are what they were, and no traceback is in the log."""
    _sample(stimulus, rng, ALL, FAULTS_EACH, ("ok",))


@pytest.mark.once
@pytest.mark.parametrize(("stimulus", "faults"), RELOADS)
def test_a_call_of_the_masters_fails_in_a_reload(stimulus: str, faults: int, rng: random.Random) -> None:
    """The same from the rehearsal to the first turn of the new image, whose program may fail by it: then the old
    generation serves, and the next reload mends it. Only in the interpreter's own start a fault may end the service."""
    _sample(stimulus, rng, OTHERS, faults, ("ok", "start"))


@pytest.mark.once
def test_a_call_of_the_masters_fails_at_the_end(rng: random.Random) -> None:
    """The same after TERM: it ends within its time, with status 0, and leaves no process."""
    _sample(ENDS, rng, ALL, FAULTS_EACH, ("ok",))


@pytest.mark.once
@pytest.mark.parametrize(("who", "stimulus"), OF_OTHERS)
def test_a_call_of_another_process_fails(who: str, stimulus: str, rng: random.Random) -> None:
    """Of a worker, or of the exporter: it serves on, or is started again, and nobody else is affected."""
    _sample(stimulus, rng, ALL, 6, ("ok",), who)


def _sample(
    stimulus: str, rng: random.Random, calls: Sequence[str], faults: int, good: Sequence[str], who: str = "master"
) -> None:
    every = list(faults_of(stimulus, calls, None, most=40, step=1, who=who))
    found = list(sweep(stimulus, rng.sample(every, min(faults, len(every))), who))
    figure(f"faults met while {stimulus}: nothing held of", sum(each.kind not in good for each in found), 0)
    assert len(found) >= faults // 2, "the faults that were chosen are not met any more"
    for each in found:
        assert each.kind in good, f"{each.fault}: {each.violations}\n{each.log}"
