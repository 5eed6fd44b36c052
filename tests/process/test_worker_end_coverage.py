"""What coverage.py measures in workers is saved when they end, though it began in the master and knows of no pool."""

import signal
from pathlib import Path

import pytest

from tests.support.programs.served import RELOADS
from tests.support.programs.service import Service, script

PROGRAM = "from tests.process.programs.ending_badly import Measured as Handler"
MEASURED = Path(__file__).parent / "programs" / "ending_badly.py"
RUN = ["-m", "coverage", "run", f"--include={MEASURED}"]


def lines_of(tmp_path: Path, pid: int) -> set[str]:
    """Return the lines of the handler that this process saved, by their text."""
    from coverage import CoverageData  # the first Python has it, which alone runs this

    (path,) = tmp_path.glob(f".coverage.*.pid{pid}.*")
    data = CoverageData(str(path))
    data.read()
    text = MEASURED.read_text().splitlines()
    return {text[number - 1].strip() for number in data.lines(str(MEASURED)) or ()}


@pytest.mark.once
@pytest.mark.parametrize("parallel", [["--parallel-mode"], []], ids=["parallel", "plain"])
def test_coverage_of_every_worker(parallel: list[str], tmp_path: Path) -> None:
    """One file for each worker, with what it alone has run: replaced for max_requests, at a reload, at the drain."""
    (tmp_path / "program.py").write_text(script(PROGRAM, max_children=1, max_requests=2))
    argv = [*RUN, *parallel, "program.py"]
    with Service(tmp_path, argv=argv, env={RELOADS: "1"}) as service:
        service.wait_ready(1)
        served: dict[int, bytes] = {}

        def ask(command: bytes) -> None:
            with service.hold() as held:
                held.ask(command)
                served[held.pid] = command

        ask(b"left")
        ask(b"left")
        service.wait_ready(1, max_requests=1)
        ask(b"right")
        service.signal(signal.SIGHUP)
        service.wait_ready(1, replaced=1)
        ask(b"left")
        service.signal(signal.SIGTERM)
        assert service.wait_exit() == 0
    assert len(served) == 3
    for pid, command in served.items():
        lines = lines_of(tmp_path, pid)
        assert ('return "left"' in lines, 'return "right"' in lines) == (command == b"left", command == b"right")
