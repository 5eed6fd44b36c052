"""The PROXY protocol over datagrams in a pool, however it serves: for whom, to whom, and what is dropped."""

import os
import socket
from pathlib import Path

import pytest

from prefork.workers.proxy_protocol import SIGNATURE
from tests.support.clients.connections import HUNG
from tests.support.programs.service import Service, script

pytestmark = pytest.mark.once  # nothing of it is the interpreter's

PROGRAM = "from tests.process.programs.addressed import {hooks} as Hooks\n"
PROGRAM += "from tests.process.programs.proxied import {handler} as Handler\n"
CASES = {
    "ours": ("Ours", "PreForkingUDPServer", "Verifies"),
    "by the socket": ("Plain", "PreForkingUDPServer", "NoHooks"),
    "threads": ("Ours", "PreForkingMixIn, ThreadingUDPServer", "NoHooks"),
    "threads by the socket": ("Plain", "PreForkingMixIn, ThreadingUDPServer", "NoHooks"),
    "threads and a hook": ("Ours", "PreForkingMixIn, ThreadingUDPServer", "Verifies"),
    "the standard threads": ("Standard", "PreForkingMixIn, socketserver.ThreadingUDPServer", "NoHooks"),
    "forked ahead": ("Plain", "PreForkingMixIn, ForkingUDPServer", "Verifies"),
    "standard": ("Standard", "PreForkingMixIn, socketserver.UDPServer", "Verifies"),
}
V1 = b"PROXY TCP4 192.0.2.7 198.51.100.1 4242 443\r\n"
V4 = SIGNATURE + bytes.fromhex("21 12 000c c0000207 c6336401 1092 0035")
V6 = SIGNATURE + bytes.fromhex("21 22 002b") + bytes.fromhex(
    "20010db8000000000000000000000001 20010db8000000000000000000000002 1092 0035"
) + bytes.fromhex("02 0004 61626364")  # fmt: skip
LOCAL = SIGNATURE + b"\x20\0\0\0"


def proxy(service: Service, asked: str = "127.0.0.1", source: str = "127.0.0.1") -> socket.socket:
    sock = socket.socket(type=socket.SOCK_DGRAM)
    sock.settimeout(HUNG)
    sock.bind((source, 0))
    sock.connect((asked, service.address[1]))
    return sock


def ask(sock: socket.socket, datagram: bytes) -> bytes:
    sock.send(datagram)
    return sock.recv(1000)


@pytest.mark.parametrize("host", ["127.0.0.1", "0.0.0.0"])
@pytest.mark.parametrize("case", CASES)
def test_who_is_served_for_whom(case: str, host: str, tmp_path: Path) -> None:
    """The client that the proxy names, and the rest; the answer is the proxy's; all else is dropped, and counted."""
    handler, bases, hooks = CASES[case]
    source = script(
        PROGRAM.format(handler=handler, hooks=hooks), bases=bases, address=(host, 0), max_children=2,
        proxy_trusted="127.0.0.0/30", access_log=True, denied_clients="192.0.2.99",
    )  # fmt: skip
    with Service(tmp_path, source) as service, proxy(service, "127.0.0.1" if host[0] == "1" else "127.0.0.3") as sock:
        service.wait_ready(2)
        peer = [*sock.getsockname()]
        bad = [b"question", V1 + b"question", V4[:-1], b"", V4[:12] + b"\x11" + V4[13:], V6[:-1]]
        bad.append(V4.replace(bytes.fromhex("c0000207"), bytes.fromhex("c0000263")) + b"denied")
        if hooks == "Verifies":
            bad.append(V4.replace(bytes.fromhex("c0000207"), bytes.fromhex("cb007142")) + b"not verified")
        for datagram in bad:
            sock.send(datagram)
        with proxy(service, source="127.0.0.4") if host[0] == "0" else proxy(service, source="127.0.0.5") as stranger:
            stranger.send(V4 + b"question")
        assert ask(sock, V4 + b"one") == f"[['192.0.2.7', 4242], {peer}, 2, []] one".encode()
        assert ask(sock, V6 + b"") == f"[['2001:db8::1', 4242, 0, 0], {peer}, 2, ['61626364']] ".encode()
        assert ask(sock, LOCAL + V4) == f"[{peer}, {peer}, 2, []] ".encode() + V4
        while (found := service.settled())["accepted"] < len(bad) + 4:
            pass
        assert (found["completed"], found["rejected"], found["failed"]) == (3, len(bad) + 1, 0)
        assert service.log.count("outcome=rejected") == len(bad) + 1
        assert "peer=192.0.2.7:4242 slot=" in service.log
        assert "datagram from 192.0.2.99:4242 dropped: it is in denied_clients" in service.log
        sock.setblocking(False)
        with pytest.raises(BlockingIOError):
            sock.recv(1000)


def test_over_unix_datagrams(tmp_path: Path) -> None:
    """From a proxy at a path, which `unix` stands for; it is answered there."""
    source = script(PROGRAM.format(handler="Ours", hooks="NoHooks"), bases="PreForkingUnixDatagramServer", address="d",
                    max_children=1, proxy_trusted="unix")  # fmt: skip
    with Service(tmp_path, source) as service, socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        service.wait_ready(1)
        sock.settimeout(HUNG)
        sock.bind(str(tmp_path / "proxy"))
        sock.sendto(V4 + b"one", os.path.relpath(tmp_path / "d"))
        assert sock.recv(1000).startswith(b"[['192.0.2.7', 4242], ")


def test_single(tmp_path: Path) -> None:
    """`prefork run --single` does so too."""
    (tmp_path / "app.py").write_text("from tests.process.programs.proxied import Plain")
    argv = ["-m", "prefork", "run", "app:Plain", "--single", "--bind", "unixgram:here", "--proxy-trusted", "unix"]
    with Service(tmp_path, argv=argv, accounts=False), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.settimeout(HUNG)
        sock.bind(str(tmp_path / "proxy"))
        while sock.connect_ex(str(tmp_path / "here")) != 0:
            pass
        sock.send(V4 + b"one")
        assert sock.recv(1000).endswith(b" one")
