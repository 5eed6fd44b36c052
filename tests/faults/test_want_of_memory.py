"""A worker that the kernel kills for want of memory. Here, where no other suite runs: such a kill is counted for all of
the machine, and a worker that somebody kills at the same moment anywhere would be suspected, too."""

import signal
from pathlib import Path

import pytest

from tests.support.hosts.cgroup import MEMORY_CGROUP, memory_cgroup
from tests.support.programs.service import Service, script

GREEDY = """
class Handler(Who):
    def do_hoard(self):
        tell("hoarding")
        self.server.hoard = bytearray(256 << 20)
"""


@pytest.mark.skipif(MEMORY_CGROUP is None, reason="no memory cgroup of version 1 can be made here")
def test_killed_for_want_of_memory(tmp_path: Path) -> None:
    """A worker that the kernel kills for want of memory is counted as oom_suspected, its request as lost; one that
    somebody kills afterwards is only killed."""
    with memory_cgroup(32 << 20) as group, Service(tmp_path, script(GREEDY, max_children=1)) as service:
        service.expect("oom_suspected")
        service.wait_ready(1)
        with service.hold() as held:
            group.take(held.pid)
            held.send(b"hoard")
            service.wait_ready(1, oom_suspected=1)
            held.wait_end()
        service.signal(signal.SIGKILL, service.workers()[0])
        service.wait_ready(1, oom_suspected=1, killed=1)
        statistics = service.statistics()
    assert statistics["exits"] == {"oom_suspected": 1, "killed": 1}
    assert statistics["lost"] == 1
