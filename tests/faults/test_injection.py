"""System calls of the master that fail, one at a time: a seeded sample of what `python -m tests.faults.injection`
tries whole."""

import random
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.tools.figures import figure

from .injection.injector import ALL, Fault, Injector
from .injection.sweep import faults_of, sweep

FAULTS_EACH = 12  # of one stimulus; a fault takes a third of a second where nothing is reloaded
STIMULI = (
    "requests",
    "a worker is killed",
    "control is asked",
    "the exporter is killed",
    "workers are replaced",
)
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
    faults = list(faults_of(stimulus, ALL, None, most=40, step=1))
    chosen = rng.sample(faults, min(FAULTS_EACH, len(faults)))
    found = list(sweep(stimulus, chosen))
    figure(f"faults met while {stimulus}: nothing held of", sum(each.kind != "ok" for each in found), 0)
    assert len(found) >= FAULTS_EACH // 2, "the faults that were chosen are not met any more"
    for each in found:
        assert each.kind == "ok", f"{each.fault}: {each.violations}\n{each.log}"
