"""The client's address behind a real HAProxy and a real nginx: the lines of the page, in both versions.

And over UDP behind a real dnsdist, with version 2.
"""

import contextlib
import re
import shutil
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.clients.connections import HUNG, Connection, connect, dial, free_port
from tests.support.hosts.namespaces import haproxy, listener
from tests.support.programs.service import Service, script

PAGE = Path(__file__).parents[2] / "deploy" / "README.md"
TOLD = """
class Handler(StreamRequestHandler):
    def handle(self):
        proxy = self.proxy
        said = f"{self.client_address[:2]} {proxy.peer[0]} v{proxy.version} {proxy.destination[1]}"
        self.wfile.write(said.encode() + b" " + self.rfile.readline())
"""
HAPROXY = """
defaults
    mode tcp
    timeout connect 5s
    timeout client 30s
    timeout server 30s
frontend service
    bind 127.0.0.1:{port}
    default_backend hosts
backend hosts
    {line}
"""
NGINX = """
load_module {module};
daemon off;
master_process off;
pid nginx.pid;
error_log nginx.log;
events {{}}
stream {{
{block}
}}
"""
ADDRESSED = """
class Handler(DatagramRequestHandler):
    def handle(self):
        host, = (self.client_address if self.proxy.source is None else self.proxy.source)[:1]
        question = self.packet[12:]
        rest = b"\\x84\\0" b"\\0\\1" b"\\0\\1" + bytes(4) + question + bytes.fromhex("c00c 0001 0001 00000000 0004")
        self.wfile.write(self.packet[:2] + rest + socket.inet_aton(host))
"""
QUESTION = bytes.fromhex("1267 0100 0001 0000 0000 0000") + b"\3www\7example\0" + bytes.fromhex("0001 0001")
DNSDIST = """
setLocal("127.0.0.1:{port}")
newServer({{address="127.0.0.1:{behind}", useProxyProtocol=true}})
"""
MODULE = Path("/usr/lib/nginx/modules/ngx_stream_module.so")


def on_the_page(pattern: str) -> str:
    found = re.search(pattern, PAGE.read_text(), re.M | re.S)
    assert found is not None, f"the page has no {pattern}"
    return found[0]


@contextlib.contextmanager
def dnsdist(config: str, folder: Path, port: int) -> Iterator[None]:
    (folder / "dnsdist.conf").write_text(config)
    argv = ["dnsdist", "--supervised", "--disable-syslog", "-C", str(folder / "dnsdist.conf")]
    with listener(argv, folder / "dnsdist.out", port):
        yield


@contextlib.contextmanager
def nginx(block: str, folder: Path, port: int) -> Iterator[None]:
    """One process in the foreground, with this in its `stream`."""
    (folder / "nginx.conf").write_text(NGINX.format(module=MODULE, block=block))
    argv = ["nginx", "-p", str(folder), "-c", "nginx.conf", "-e", "nginx.log"]
    with listener(argv, folder / "nginx.out", port):
        yield


def asked_through(port: int, behind: int, version: int) -> None:
    for source in ("127.0.0.1", "127.0.0.9"):
        with Connection(dial(("127.0.0.1", port), source=source)) as client:
            mine = client.sock.getsockname()
            assert client.ask(b"hello") == f"{mine} 127.0.0.1 v{version} {port} hello".encode()
    with connect(("127.0.0.1", behind)) as client, contextlib.suppress(ConnectionResetError):
        client.sock.send(b"hello\n")
        client.wait_end()


@pytest.mark.skipif(not shutil.which("haproxy"), reason="needs Debian's package haproxy")
@pytest.mark.parametrize(("word", "version"), [("send-proxy-v2", 2), ("send-proxy", 1)])
def test_haproxy(word: str, version: int, tmp_path: Path) -> None:
    """With the page's server line; the option that version 1 has is called otherwise, and nothing else changes."""
    line = on_the_page(r"server host1 192\.0\.2\.1:9999 [^\n]*send-proxy-v2[^\n]*").replace("send-proxy-v2", word)
    with Service(tmp_path, script(TOLD, max_children=2, proxy_trusted="127.0.0.1")) as behind:
        port, its = free_port(), behind.address[1]
        line = line.replace("192.0.2.1:9999", f"127.0.0.1:{its}").replace(" check", "")
        with haproxy(HAPROXY.format(port=port, line=line), tmp_path, port):
            asked_through(port, its, version)


@pytest.mark.skipif(not MODULE.exists(), reason="needs Debian's packages nginx-core and libnginx-mod-stream")
def test_nginx(tmp_path: Path) -> None:
    """With the page's server block."""
    block = on_the_page(r"^server \{$.*?^\}$")
    with Service(tmp_path, script(TOLD, max_children=2, proxy_trusted="127.0.0.1")) as behind:
        port, its = free_port(), behind.address[1]
        block = block.replace("listen 9999", f"listen 127.0.0.1:{port}").replace("192.0.2.1:9999", f"127.0.0.1:{its}")
        with nginx(block, tmp_path, port):
            asked_through(port, its, 1)


@pytest.mark.skipif(not MODULE.exists(), reason="needs Debian's packages nginx-core and libnginx-mod-stream")
def test_nginx_over_udp(tmp_path: Path) -> None:
    """It puts version 1 before the first datagram of a client and nothing before the others: all are dropped."""
    source = script(ADDRESSED, bases="PreForkingUDPServer", max_children=2, proxy_trusted="127.0.0.1")
    with Service(tmp_path, source) as behind, socket.socket(type=socket.SOCK_DGRAM) as client:
        port, its = free_port(), behind.address[1]
        udp = f"server {{ listen 127.0.0.1:{port} udp; proxy_pass 127.0.0.1:{its}; proxy_protocol on; }}\n"
        with nginx(udp + f"server {{ listen 127.0.0.1:{port}; return x; }}", tmp_path, port):
            client.connect(("127.0.0.1", port))
            for count in (1, 2):
                client.send(QUESTION)
                while behind.statistics()["rejected"] < count:
                    pass
        assert behind.settled()["accepted"] == 2


@pytest.mark.skipif(not shutil.which("dnsdist"), reason="needs Debian's package dnsdist")
def test_dnsdist(tmp_path: Path) -> None:
    """Each client hears its own address, and from whom it has asked; dnsdist's own questions have that of dnsdist."""
    source = script(ADDRESSED, bases="PreForkingUDPServer", max_children=2, proxy_trusted="127.0.0.1")
    with Service(tmp_path, source) as behind:
        port, its = free_port(), behind.address[1]
        with dnsdist(DNSDIST.format(port=port, behind=its), tmp_path, port):
            for host in ("127.0.0.1", "127.0.0.9"):
                with socket.socket(type=socket.SOCK_DGRAM) as client:
                    client.settimeout(HUNG)
                    client.bind((host, 0))
                    client.connect(("127.0.0.1", port))
                    client.send(QUESTION)
                    answer = client.recv(1000)
                    assert (answer[:2], answer[-4:]) == (QUESTION[:2], socket.inet_aton(host))
        assert behind.settled()["rejected"] == 0
