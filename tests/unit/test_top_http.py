"""A GET from a metrics address: what may be given, and that it ends, whatever answers."""

import socket
from pathlib import Path
from time import monotonic

import pytest

from prefork.errors import ConfigError
from prefork.top.http import get, parse_url
from tests.support.clients.answering import HUNG, answering, ended


@pytest.mark.parametrize(
    ("text", "host", "port", "path", "unix", "tls"),
    [
        ("http://h:9465", "h", 9465, "/metrics", None, False),
        ("http://h:9465/", "h", 9465, "/metrics", None, False),
        ("http://h/upper/metrics?a=b", "h", 80, "/upper/metrics?a=b", None, False),
        ("https://h/m", "h", 443, "/m", None, True),
        ("http://[::1]:9465", "::1", 9465, "/metrics", None, False),
        ("h:9465", "h", 9465, "/metrics", None, False),
        ("h:9465/metrics", "h", 9465, "/metrics", None, False),
        (":9465", "127.0.0.1", 9465, "/metrics", None, False),
        ("unix:/run/m", "localhost", 0, "/metrics", "/run/m", False),
        ("/run/m", "localhost", 0, "/metrics", "/run/m", False),
    ],
)
def test_forms(text: str, host: str, port: int, path: str, unix: str | None, tls: bool) -> None:
    """A URL, or an address as `prefork run --metrics` takes it."""
    found = parse_url(text)
    assert (found.host, found.port, found.path, found.unix, found.tls) == (host, port, path, unix, tls)


@pytest.mark.parametrize(
    "text",
    ["", "h", "systemd", "ftp://h/m", "http://", "http://h:99999", "http://[::1", "http://me@h/", "udp://h:1",
     "unixgram:/m", "unix:", "fd://3"],
)  # fmt: skip
def test_refused(text: str) -> None:
    """Anything else is wrong usage."""
    with pytest.raises(ConfigError):
        parse_url(text)


@pytest.mark.parametrize(
    ("text", "other"), [("h:1", "/-/ready"), ("http://h/a/metrics", "/a/-/ready"), ("http://h/a", None)]
)
def test_beside(text: str, other: str | None) -> None:
    """The exporter's other paths are known where its metrics are under their own name."""
    found = parse_url(text).beside("/-/ready")
    assert (found and found.path) == other


def test_the_answer() -> None:
    """Status, body and the exporter's clock."""

    def talk(sock: socket.socket) -> None:
        assert sock.recv(4096).startswith(b"GET /metrics HTTP/1.1\r\n")
        sock.sendall(b"HTTP/1.0 200 OK\r\nDate: Thu, 01 Jan 1970 00:01:40 GMT\r\n\r\nx 1\n")

    with answering(talk) as address:
        found = get(parse_url(address), monotonic() + HUNG)
    assert (found.status, found.text, found.date) == (200, "x 1\n", 100.0)


def test_nobody_answers() -> None:
    """A service that takes the connection and says nothing is given up at the deadline."""

    def listen(sock: socket.socket) -> None:
        sock.recv(1 << 16)
        sock.recv(1)

    with answering(listen) as address:
        assert "no answer within 0.2 s" in ended(address, 0.2)


def test_an_answer_that_never_ends() -> None:
    """The deadline is for the whole answer, not for each byte of it."""

    def talk(sock: socket.socket) -> None:
        sock.recv(4096)
        sock.sendall(b"HTTP/1.0 200 OK\r\n\r\n")
        while True:
            sock.sendall(b"x")

    with answering(talk) as address:
        assert "no answer within 0.2 s" in ended(address, 0.2)


def test_what_does_not_speak_http() -> None:
    """Another protocol is told as such, with a hint."""

    def talk(sock: socket.socket) -> None:
        sock.recv(4096)
        sock.sendall(b"GET /METRICS HTTP/1.1\r\n")

    with answering(talk) as address:
        assert "does not speak HTTP; is it the address of --metrics?" in ended(address, HUNG)


def test_nobody_listens(tmp_path: Path) -> None:
    """The kernel's reason stands in the sentence."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    assert ended(f"127.0.0.1:{port}", HUNG) == f"could not reach 127.0.0.1:{port}: connection refused"
    path = tmp_path / "m"
    assert ended(f"unix:{path}", HUNG) == f"could not reach unix:{path}: no such file or directory"
