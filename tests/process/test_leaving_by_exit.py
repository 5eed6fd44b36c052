"""Handlers that end their process by `os._exit()`, as those of a forking server may."""

import re
from pathlib import Path

import pytest

from tests.support.clients.connections import ask
from tests.support.programs.service import Service, script

HANDLER = """


class Handler(socketserver.StreamRequestHandler):
    def handle(self):
        status = int(self.rfile.readline())
        self.wfile.write(b"answered")
        os._exit(status)
"""
FORKING = ["PreForkingMixIn, ForkingTCPServer", "PreForkingMixIn, socketserver.ForkingTCPServer", "ForkingTCPServer"]


@pytest.mark.parametrize("bases", FORKING)
def test_a_process_of_one_request(bases: str, tmp_path: Path) -> None:
    """With status 0 its request is completed, and nothing is said; with another it is lost."""
    pool = "PreFork" in bases
    definitions = HANDLER if pool else "from tests.support.programs.served import EndedByTerm as Hooks\n" + HANDLER
    settings = {"max_children": 2} if pool else {}
    with Service(tmp_path, script(definitions, bases=bases, **settings)) as service:
        service.expect("exit status 3") if pool else None
        for _ in range(3):
            assert ask(service.address, b"0\n") == b"answered"
        before = service.settled()
        assert (before["completed"], before["lost"]) == (3, 0)
        assert not re.search("ERROR|requests that ended", service.log)
        assert ask(service.address, b"3\n") == b"answered"
        after = service.settled()
        assert (after["completed"], after["lost"]) == (3, 1)


def test_a_worker_of_many(tmp_path: Path) -> None:
    """One that is to serve more is replaced, and the log says in one line what has ended it."""
    with Service(tmp_path, script(HANDLER, max_children=1)) as service:
        service.expect(r"exited \(exit status 0\) by the program, as os._exit\(\) in a handler does")
        service.wait_ready(1)
        assert ask(service.address, b"0\n") == b"answered"
        service.wait_ready(1, exited=1)
        assert service.settled()["lost"] == 1
