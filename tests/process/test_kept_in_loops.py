"""KeepAliveMixIn where connections cannot be kept: they stay with their thread, and their requests are counted, bounded
and drained. Over TLS, and in servers without a pool."""

import contextlib
import http.client
import signal
import time
from pathlib import Path
from typing import Any

import pytest

import prefork
from prefork.workers.idle_waits import LOOK_S
from tests.process.programs.looping import Lines
from tests.support.clients.connections import HUNG, Connection, connect, dial
from tests.support.programs.command import ROOT, running
from tests.support.programs.service import Service, script
from tests.support.programs.serving import serving
from tests.support.tools.certificates import CERTIFICATE, KEY, client_context, make_certificate
from tests.support.tools.proc import nothing_for

BASES = {"sync": "PreForkingTCPServer", "threads": "PreForkingMixIn, ThreadingTCPServer",
         "forked ahead": "PreForkingMixIn, ForkingTCPServer"}  # fmt: skip


def looping(bases: str, handler: str = "Lines", **settings: Any) -> str:
    program = f"from tests.process.programs.looping import {handler} as Handler\n"
    return script(program, bases=bases, tls_certificate=CERTIFICATE, tls_key=KEY, max_children=2, **settings)


def secured(service: Service) -> Connection:
    context = client_context(service.directory, certified=False)
    return Connection(context.wrap_socket(dial(service.address), server_hostname="localhost"))


@pytest.mark.parametrize("bases", BASES.values(), ids=BASES)
def test_requests_of_one_connection(bases: str, tmp_path: Path) -> None:
    """One after another, and in one piece; each is in the access log."""
    make_certificate(tmp_path)
    with Service(tmp_path, looping(bases, access_log=True)) as service:
        service.wait_ready(2)
        with secured(service) as client:
            for number in range(1, 4):
                assert client.ask(b"hello") == b"%d hello" % number
            client.sock.sendall(b"a\nb\n")
            assert (client.answer(), client.answer()) == (b"4 a", b"5 b")
        service.signal(signal.SIGTERM)
        assert service.wait_exit() == 0
    assert service.log.count("outcome=ok") == 5


@pytest.mark.parametrize("bases", BASES.values(), ids=BASES)
def test_http(bases: str, tmp_path: Path) -> None:
    """http.server's handler keeps a client of HTTP/1.1, over TLS as well."""
    make_certificate(tmp_path)
    with Service(tmp_path, looping(bases, "Site")) as service:
        service.wait_ready(2)
        context = client_context(tmp_path, certified=False)
        client = http.client.HTTPSConnection("localhost", service.address[1], timeout=HUNG, context=context)
        with contextlib.closing(client):
            client.connect()
            sock = client.sock
            for path, status in [("/", 200), ("/program.py", 200), ("/nothing", 404), ("/", 200)]:
                client.request("GET", path)
                with client.getresponse() as answer:
                    assert (answer.status, len(answer.read()) > 0) == (status, True)
                assert client.sock is (sock if status == 200 else None)
                if status != 200:
                    client.connect()
                    sock = client.sock


@pytest.mark.parametrize("bases", list(BASES.values())[:2], ids=list(BASES)[:2])
def test_an_idle_client_is_no_long_request(bases: str, tmp_path: Path) -> None:
    """Its worker is not killed for it; it is closed after `keepalive_timeout`."""
    make_certificate(tmp_path)
    with Service(tmp_path, looping(bases, request_timeout=1.0, keepalive_timeout=1.5)) as service:
        service.wait_ready(2)
        with secured(service) as client:
            begun = time.monotonic()
            assert client.ask(b"hello") == b"1 hello"
            client.wait_end()
            assert time.monotonic() - begun > 1.4


@pytest.mark.parametrize("bases", list(BASES.values())[:2], ids=list(BASES)[:2])
def test_a_drain_does_not_wait_for_idle_clients(bases: str, tmp_path: Path) -> None:
    """A reload and an end take no longer than without them."""
    make_certificate(tmp_path)
    with Service(tmp_path, looping(bases, graceful_timeout=HUNG)) as service:
        service.wait_ready(2)
        with secured(service) as client:
            assert client.ask(b"hello") == b"1 hello"
            begun = time.monotonic()
            service.signal(signal.SIGTERM)
            client.wait_end()
            assert service.wait_exit() == 0
            assert time.monotonic() - begun < HUNG / 2


@pytest.mark.parametrize("bases", BASES.values(), ids=BASES)
def test_a_handler_that_a_function_makes(bases: str, tmp_path: Path) -> None:
    """Nobody knows beforehand that it would keep its connections: they stay in a loop, which is said once, and a drain
    does not wait for those that are silent."""
    program = "from tests.process.programs.looping import Lines\ndef Handler(*args): return Lines(*args)\n"
    source = script(program, bases=bases, max_children=1, graceful_timeout=HUNG)
    with Service(tmp_path, source) as service:
        service.wait_ready(1)
        for _ in range(2):
            with Connection(dial(service.address)) as client:
                assert (client.ask(b"hello"), client.ask(b"again")) == (b"1 hello", b"2 again")
        with Connection(dial(service.address)) as client:
            client.ask(b"hello")
            begun = time.monotonic()
            service.signal(signal.SIGTERM)
            client.wait_end()
            assert service.wait_exit() == 0
            assert time.monotonic() - begun < HUNG / 2
    said = [line for line in service.log.splitlines() if "KeepAliveMixIn of Lines has no effect: a pool keeps" in line]
    assert len(said) == (0 if ", Forking" in bases else 1)


@pytest.mark.parametrize("measured", [{}, {"metrics_address": ("127.0.0.1", 0)}], ids=["", "measured"])
@pytest.mark.parametrize("kind", [prefork.ThreadingTCPServer, prefork.ForkingTCPServer])
def test_a_silent_client_without_a_pool(kind: Any, measured: dict[str, Any]) -> None:
    """Is kept, for as long as the server is there, whose end does not wait for it."""
    server = type("Server", (kind,), measured)(("127.0.0.1", 0), Lines)
    with contextlib.ExitStack() as stack:
        with serving(server):
            client = stack.enter_context(connect(server.server_address))
            assert client.ask(b"hello") == b"1 hello"
            nothing_for(3 * LOOK_S, client.sock)
            assert client.ask(b"hello") == b"2 hello"
        client.wait_end()
    assert server.statistics().completed == 2


@pytest.mark.parametrize("kind", [prefork.ThreadingTCPServer, prefork.ForkingTCPServer])
def test_an_idle_client_of_a_server_without_a_pool(kind: Any) -> None:
    """It does not hold a thread, or a child, for longer than it is allowed."""
    server = kind(("127.0.0.1", 0), Lines)
    server.keepalive_timeout = 0.5
    with connect(server.server_address) as idle:
        idle.send(b"hello")  # at hand when it is accepted, however long that takes
        with serving(server):
            assert idle.answer() == b"1 hello"
            idle.wait_end()
    assert server.statistics().completed == 1


def test_single() -> None:
    """In one process, one connection after another: the idle one ends, so that the next is served, and TERM ends it."""
    argv = ["run", "tests.process.programs.looping:Server", "--bind", "127.0.0.1:0", "--single"]
    with running(argv, cwd=ROOT) as run:
        address = "127.0.0.1", run.port
        with connect(address) as client, connect(address) as other:
            client.send(b"hello")
            other.send(b"hello")
            assert client.answer() == b"1 hello"
            client.wait_end()
            assert other.answer() == b"1 hello"
            run.process.terminate()
            other.wait_end()
            assert run.ended() == 0
