"""The edge of the network: a crowd that connects over TLS and says nothing, or what nobody understands."""

import contextlib
import socket
from pathlib import Path

import pytest

from tests.support.clients.connections import HUNG, Connection, dial
from tests.support.programs.service import Service, script
from tests.support.tools.certificates import CERTIFICATE, KEY, client_context, make_certificate
from tests.support.tools.figures import figure

CROWD = 200


@pytest.mark.parametrize("bases", ["PreForkingTCPServer", "PreForkingMixIn, ThreadingTCPServer"])
def test_crowd_that_says_nothing_and_one_that_is_not_understood(bases: str, tmp_path: Path) -> None:
    """Each costs one lane for no longer than the handshake may take; good clients among them are answered."""
    make_certificate(tmp_path)
    source = script(
        bases=bases, max_children=4, tls_certificate=CERTIFICATE, tls_key=KEY, tls_handshake_timeout=0.1,
    )  # fmt: skip
    with Service(tmp_path, source) as service:
        service.wait_ready(4)
        context, answered = client_context(tmp_path, certified=False), 0
        with contextlib.ExitStack() as crowd:
            for number in range(CROWD):
                stranger = crowd.enter_context(dial(service.address))
                if number % 2:
                    stranger.sendall(b"SSH-2.0-nobody\r\n")
                if number % 20 == 0:
                    good = context.wrap_socket(dial(service.address), server_hostname="localhost")
                    with Connection(good) as client:
                        answered += client.ask(b"pid").isdigit()
            late: socket.socket = context.wrap_socket(dial(service.address, HUNG), server_hostname="localhost")
            with Connection(late) as client:
                assert client.ask(b"pid").isdigit()
        found = service.settled()
        figure("strangers closed, good clients answered", f"{found['rejected']}, {answered}", f"{CROWD}, 10")
        assert (found["rejected"], found["failed"], answered) == (CROWD, 0, CROWD // 20)
