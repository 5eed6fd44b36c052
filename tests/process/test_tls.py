"""TLS that programs do themselves, in every way there is: it stays, over a reload too, and what it costs is bounded."""

import signal
import socket
from pathlib import Path
from typing import Any

import pytest

from tests.support.clients.connections import Connection, ask, dial
from tests.support.programs.releases import Released
from tests.support.programs.service import Service, script
from tests.support.tools.certificates import client_context, make_certificate
from tests.support.tools.proc import nothing_for

PROGRAMS = (
    "from tests.process.programs.secured import {way} as Way, {handler} as Handler\nclass Hooks(Way, Told): pass\n"
)
PLAIN_PROGRAMS = """
from tests.support.programs.served import EndedByTerm
from tests.process.programs.secured import {way} as Way, {handler} as Handler
class Hooks(Way, EndedByTerm): pass
"""
WAYS = {
    "get_request": ("InGetRequest", "Lines"),
    "process_request": ("InProcessRequest", "Lines"),
    "handler": ("InHandler", "WrapsInHandler"),
    "before_bind": ("BeforeBind", "Lines"),
    "after": ("AfterTheConstructor", "Lines"),
    "another_socket": ("AnotherSocket", "Lines"),
    "openssl_before_bind": ("OpenSSLBeforeBind", "OpenSSLLines"),
    "openssl_after": ("OpenSSLAfter", "OpenSSLLines"),
}
PLAIN, FORKS = "PreForkingTCPServer", "PreForkingMixIn, ForkingTCPServer"
THREADS, STANDARD_THREADS = "PreForkingMixIn, ThreadingTCPServer", "PreForkingMixIn, socketserver.ThreadingTCPServer"
STANDARD, STANDARD_FORKS = "PreForkingMixIn, socketserver.TCPServer", "PreForkingMixIn, socketserver.ForkingTCPServer"
QUICK = [("handler", PLAIN), ("before_bind", STANDARD_THREADS)]
CASES = [
    *QUICK, *((way, PLAIN) for way in WAYS if way != "handler"), ("after", THREADS), ("process_request", THREADS),
    ("openssl_before_bind", THREADS),
    ("get_request", FORKS), ("before_bind", FORKS), ("before_bind", STANDARD), ("handler", STANDARD_THREADS),
    ("get_request", STANDARD_THREADS), ("after", STANDARD_FORKS), ("process_request", STANDARD_FORKS),
]  # fmt: skip


def program(way: str, **settings: Any) -> str:
    hooks, handler = WAYS[way]
    return script(PROGRAMS.format(way=hooks, handler=handler), **settings)


def secured(service: Service, *, certified: bool = True) -> Connection:
    context = client_context(service.directory, certified=certified)
    return Connection(context.wrap_socket(dial(service.address), server_hostname="localhost"))


def refused(service: Service) -> None:
    """A client without the certificate, and one that speaks no TLS, get no answer."""
    with secured(service, certified=False) as client, pytest.raises((OSError, AssertionError)):
        client.ask(b"pid")
    try:
        assert b"\n" not in ask(service.address, b"pid\n")
    except ConnectionResetError:
        pass


@pytest.mark.parametrize(
    ("way", "bases"),
    [pytest.param(*case, marks=() if case in QUICK else pytest.mark.once, id=" ".join(case)) for case in CASES],
)
def test_every_way(way: str, bases: str, tmp_path: Path) -> None:
    """However a program wraps its connections, clients are answered over TLS, and nobody without the certificate; a
    silent client costs one lane; a reload goes on with the listener; with eof a drain ends what idles."""
    if "openssl" in way:
        pytest.importorskip("OpenSSL")
    make_certificate(tmp_path)
    source = program(way, bases=bases, max_children=2, drain_connections="eof")
    with Released(tmp_path, source=source) as service:
        service.wait_ready(2)
        with socket.create_connection(service.address), secured(service) as client:
            assert client.ask(b"cert") == b"localhost"
        refused(service)
        service.signal(signal.SIGHUP)
        service.wait_reloads(ok=1)
        service.wait_ready(2, replaced=2)
        refused(service)
        with secured(service) as held:
            assert int(held.ask(b"pid")) in service.workers()
            nothing_for(0.3, held.sock)  # an input: it is no newcomer
            service.signal(signal.SIGTERM)
            held.wait_end()
        assert service.wait_exit() == 0
        assert "Traceback" not in service.log
        assert "TLS handshake with " in service.log


@pytest.mark.parametrize(
    "bases", ["ThreadingTCPServer", "ForkingTCPServer", "ThreadingMixIn, socketserver.TCPServer",
              "ForkingMixIn, socketserver.TCPServer"]
)  # fmt: skip
@pytest.mark.parametrize("way", ["before_bind", "after"])
def test_without_a_pool(way: str, bases: str, tmp_path: Path) -> None:
    """Where the listener is wrapped, a client that says nothing keeps its own thread or child waiting, and nobody else;
    the client is in another process than the server, whose children would have a copy of its socket."""
    make_certificate(tmp_path)
    hooks, handler = WAYS[way]
    source = script(PLAIN_PROGRAMS.format(way=hooks, handler=handler), bases=bases)
    with Service(tmp_path, source) as service:
        for _ in range(2):
            with socket.create_connection(service.address), secured(service) as client:
                assert client.ask(b"cert") == b"localhost"
        refused(service)
