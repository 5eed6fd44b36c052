"""A program that reaps every child of its process, as programs with children of their own do."""

import signal
from pathlib import Path

from tests.support.programs.service import Service, script

REAPING = """
def reap(signum, frame):
    try:
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass
    except ChildProcessError:
        pass

signal.signal(signal.SIGCHLD, reap)
"""


def test_a_reaper_of_the_programs_own(tmp_path: Path) -> None:
    """It takes the status of workers that left as they were told; these have said so themselves, and that counts."""
    with Service(tmp_path, script(REAPING, max_children=2)) as service:
        service.wait_ready(2)
        service.signal(signal.SIGUSR2)
        service.wait_ready(2, replaced=2)
        service.signal(signal.SIGTERM)
        assert service.wait_exit() == 0
        assert service.statistics()["exits"] == {"replaced": 2, "drained": 2}
    assert "its status was taken by somebody else" in service.log
