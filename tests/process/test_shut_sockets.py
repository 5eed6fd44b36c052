"""The sockets that a handler finds in its process, and might shut down, shutdown(2), for each process that shares them.

Each kind is one that can be mended: a listener, and the queues of kept connections. See tests/faults for who spins.
"""

import signal
from pathlib import Path

import pytest

from tests.process.test_shut_listeners import FROM, STREAMS
from tests.support.clients.connections import ask
from tests.support.programs.service import ENDED_BY_TERM, Service, script

pytestmark = pytest.mark.once  # nothing of it is the interpreter's

PLAIN = {
    "plain forking": ("ForkingMixIn", FROM.format("Shutting") + ENDED_BY_TERM),
    "plain threads": ("ThreadingMixIn", FROM.format("Shutting") + ENDED_BY_TERM),
}
QUEUES = 2 * ["AF_UNIX SOCK_SEQPACKET"]  # of kept connections: an end of each
FOUND = {"plain forking": [], "kept": [*QUEUES, "listener"], "kept in threads": [*QUEUES, "listener"]}


@pytest.mark.parametrize("model", [*STREAMS, *PLAIN])
def test_sockets_in_a_worker(model: str, tmp_path: Path) -> None:
    """By every way to serve, with an exporter; in the first workers, and in those that came when others were there."""
    bases, definitions = {**STREAMS, **PLAIN}[model]
    expected = ", ".join(FOUND.get(model, ["listener"])).encode() + b"\n"
    settings = {} if model in PLAIN else {"max_children": 2, "metrics_address": str(tmp_path / "m")}
    with Service(tmp_path, script(definitions, bases=f"{bases}, TCPServer", **settings)) as service:
        assert ask(service.address, b"kinds\n") == expected
        if model not in PLAIN:
            service.wait_ready(2)
            service.signal(signal.SIGUSR2)
            service.wait_ready(2, replaced=2)
            assert ask(service.address, b"kinds\n") == expected
