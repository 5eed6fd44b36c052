"""The PROXY protocol in a pool, however it serves: whose address the program is given, and who is closed."""

import socket
import ssl
from pathlib import Path
from time import monotonic, sleep

import pytest

from prefork.workers.proxy_protocol import SIGNATURE
from tests.support.clients.connections import HUNG, Connection
from tests.support.programs.service import Service, script
from tests.support.tools.certificates import client_context, make_certificate

pytestmark = pytest.mark.once  # nothing of it is the interpreter's

PROGRAM = "from tests.process.programs.addressed import {hooks} as Hooks, {handler} as Handler\n"
PLAIN = "PreForkingTCPServer"
CASES = {
    "ours": ("Ours", PLAIN, "Verifies"),
    "threads": ("Ours", "PreForkingMixIn, ThreadingTCPServer", "NoHooks"),
    "threads and a hook": ("Ours", "PreForkingMixIn, ThreadingTCPServer", "Verifies"),
    "the standard threads": ("Standard", "PreForkingMixIn, socketserver.ThreadingTCPServer", "NoHooks"),
    "forked ahead": ("Ours", "PreForkingMixIn, ForkingTCPServer", "Verifies"),
    "standard": ("Standard", "PreForkingMixIn, socketserver.TCPServer", "Verifies"),
}
V1 = b"PROXY TCP4 192.0.2.7 198.51.100.1 4242 443\r\n"
V2 = SIGNATURE + bytes.fromhex("21 21 002b") + bytes.fromhex(
    "20010db8000000000000000000000001 20010db8000000000000000000000002 1092 01bb"
) + bytes.fromhex("02 0004 61626364")  # fmt: skip
LOCAL = SIGNATURE + b"\x20\0\0\0"


def dialled(service: Service, source: str = "127.0.0.1") -> Connection:
    return Connection(socket.create_connection(service.address, HUNG, (source, 0)))


def ended(client: Connection) -> None:
    """Closed without a byte of an answer."""
    try:
        client.wait_end()
    except ConnectionResetError:
        pass  # what it had sent was not read


@pytest.mark.parametrize("case", CASES)
def test_who_is_served_for_whom(case: str, tmp_path: Path) -> None:
    """The address that the proxy names, the bytes behind it, whole or one by one; all else is closed and counted."""
    handler, bases, hooks = CASES[case]
    source = script(
        PROGRAM.format(handler=handler, hooks=hooks), bases=bases, max_children=2, proxy_trusted="127.0.0.0/31, ::1",
        access_log=True, denied_clients="192.0.2.99",
    )  # fmt: skip
    with Service(tmp_path, source) as service:
        service.wait_ready(2)
        with dialled(service) as client:
            peer = client.sock.getsockname()
            assert client.ask(V1 + b"one") == f"[['192.0.2.7', 4242], {[*peer]}, 1, []] one".encode()
        with dialled(service) as client:
            for byte in V2[:-1]:
                client.sock.send(bytes((byte,)))
            said = f"[['2001:db8::1', 4242, 0, 0], {[*client.sock.getsockname()]}, 2, ['61626364']] two"
            assert client.ask(V2[-1:] + b"two") == said.encode()
        with dialled(service) as client:
            peer = client.sock.getsockname()
            assert client.ask(LOCAL + b"it") == f"[{[*peer]}, {[*peer]}, 2, []] it".encode()
        for bad in (b"GET / HTTP/1.1\r\n\r\n", V1.replace(b"TCP4", b"TCP6"), V2[:12] + b"\x11" + V2[13:]):
            with dialled(service) as client:
                client.sock.send(bad)
                ended(client)
        with dialled(service, "127.0.0.2") as stranger:
            stranger.sock.send(V1 + b"one\n")
            ended(stranger)
        with dialled(service) as client:
            client.sock.send(V1.replace(b"192.0.2.7", b"192.0.2.99") + b"one\n")
            ended(client)
        refused = 5
        if hooks == "Verifies":
            with dialled(service) as client:
                client.sock.send(V1.replace(b"192.0.2.7", b"203.0.113.66") + b"one\n")
                ended(client)
            refused += 1
        found = service.settled()
        assert (found["completed"], found["rejected"], found["failed"]) == (3, refused, 0)
        assert "peer=192.0.2.7:4242 slot=" in service.log
        assert "connection from 192.0.2.99:4242 closed: it is in denied_clients" in service.log
        assert "peer=192.0.2.99:4242 slot=" in service.log
        assert service.log.count("outcome=rejected") == refused
        assert "it is not from an address of proxy_trusted" in service.log


@pytest.mark.parametrize("case", CASES)
def test_who_says_nothing_of_a_proxy_in_time(case: str, tmp_path: Path) -> None:
    """A client that is silent, and one whose header lacks its last byte, are closed at the deadline, and counted."""
    handler, bases, hooks = CASES[case]
    source = script(
        PROGRAM.format(handler=handler, hooks=hooks), bases=bases, max_children=2, proxy_trusted="127.0.0.1",
        proxy_header_timeout=0.5, access_log=True,
    )  # fmt: skip
    with Service(tmp_path, source) as service:
        service.wait_ready(2)
        with dialled(service) as silent, dialled(service) as slow:
            slow.sock.send(V2[:-1])
            ended(silent)
            ended(slow)
        assert service.settled()["rejected"] == 2
        assert "its PROXY header did not come in time" in service.log
        assert service.log.count("outcome=rejected") == 2


def test_single(tmp_path: Path) -> None:
    """`prefork run --single` takes the header too."""
    (tmp_path / "app.py").write_text("from tests.process.programs.addressed import Ours")
    argv = ["-m", "prefork", "run", "app:Ours", "--single", "--bind", "unix:here", "--proxy-trusted", "unix"]
    with Service(tmp_path, argv=argv, accounts=False) as service:
        deadline, path = monotonic() + HUNG, str(tmp_path / "here")
        with Connection(socket.socket(socket.AF_UNIX)) as client:
            client.sock.settimeout(HUNG)
            while client.sock.connect_ex(path) != 0:
                assert service.process.poll() is None, service.log
                assert monotonic() < deadline, "hung: it does not listen"
                sleep(0.01)
            assert client.ask(V1 + b"one") == b"[['192.0.2.7', 4242], [], 1, []] one"


@pytest.mark.parametrize(("way", "handler"), [("InHandler", "WrapsInHandler"), ("BeforeBind", "Lines")])
@pytest.mark.parametrize("bases", ["PreForkingTCPServer", "PreForkingMixIn, ThreadingTCPServer"])
def test_tls_begins_behind_the_header(bases: str, way: str, handler: str, tmp_path: Path) -> None:
    """Whoever shakes hands finds the first byte of the client's hello."""
    make_certificate(tmp_path)
    definitions = (
        f"from tests.process.programs.secured import {way} as Way, {handler} as Handler\nclass Hooks(Way, Told): pass\n"
    )
    with Service(tmp_path, script(definitions, bases=bases, max_children=1, proxy_trusted="127.0.0.1")) as service:
        sock = socket.create_connection(service.address, HUNG)
        sock.sendall(V1)
        context = client_context(service.directory, certified=True)
        assert isinstance(context, ssl.SSLContext)
        with Connection(context.wrap_socket(sock, server_hostname="localhost")) as client:
            assert client.ask(b"cert") == b"localhost"
