"""A handler shuts down every socket that it finds in its process, shutdown(2), and nobody spins on one of them."""

from pathlib import Path

import pytest

from tests.faults.test_shut_listeners import CPU, spent
from tests.process.test_shut_listeners import STREAMS, asked_until_answered
from tests.process.test_shut_sockets import PLAIN
from tests.support.clients.connections import ask
from tests.support.programs.service import Service, script
from tests.support.tools.figures import figure

# The plain server of these tests looks for signals every 20 ms, which takes almost as much as a process that spins.
PATIENT = """
class Hooks(Hooks):
    def serve_forever(self) -> None:
        super().serve_forever(3600)
"""


@pytest.mark.parametrize("model", ["sync", "threads", "hooked threads", "forked ahead", "plain forking"])
def test_nobody_spins(model: str, tmp_path: Path) -> None:
    """Who serves goes on to, and waits as before."""
    bases, definitions = {**STREAMS, **PLAIN}[model]
    settings = {} if model in PLAIN else {"max_children": 2}
    definitions += PATIENT if model in PLAIN else ""
    with Service(tmp_path, script(definitions, bases=f"{bases}, TCPServer", **settings)) as service:
        if settings:
            service.wait_ready(2)
        assert ask(service.address, b"all\n")
        while settings and "it listens again" not in service.log:
            asked_until_answered(service.address)
        assert asked_until_answered(service.address)
        if model == "forked ahead":  # who served a request has left by then
            service.wait_ready(2, max_requests=service.settled()["accepted"])
        share = spent(service)
        service.allow("was shut down by a process of the service: it listens again")
        assert asked_until_answered(service.address)
    figure(f"{model}, all sockets shut down: the busiest process", f"{share:.1%}", f"{CPU:.0%}")
    assert share < CPU
