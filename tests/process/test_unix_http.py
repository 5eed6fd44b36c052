"""HTTP over a Unix path: its clients have no name, where http.server asks for their host."""

from pathlib import Path

import pytest

from tests.support.clients.connections import ask
from tests.support.programs.service import Service, script

HTTP = """
import http.server
from prefork.examples import Http as Handler

class Hooks(Told):
    address_family = socket.AF_UNIX
"""


@pytest.mark.parametrize("bases", ["PreForkingUnixStreamServer", "PreForkingMixIn, http.server.ThreadingHTTPServer"])
def test_a_page(bases: str, tmp_path: Path) -> None:
    """It is served by our classes and by the standard library's, which log each request with the client's host."""
    with Service(tmp_path, script(HTTP, bases=bases, address=str(tmp_path / "s"), max_children=1)) as service:
        assert ask(service.address, b"GET / HTTP/1.0\r\n\r\n").startswith(b"HTTP/1.0 200 OK\r\n")
    assert '"GET / HTTP/1.0" 200 -' in service.log
