"""Connections that are kept: each request by whichever worker is free, and nobody while they say nothing."""

import contextlib
import http.client
import os
import select
import signal
import socket
import time
import xmlrpc.client
from pathlib import Path

import psutil
import pytest

from tests.support.clients.connections import dial
from tests.support.clients.keeping import (
    KINDS,
    Staying,
    answered,
    counted,
    definitions,
    holder,
    keeping,
    quiet,
    releasing,
    stay,
    staying,
    wait_counted,
)
from tests.support.clients.scraping import get, total
from tests.support.hosts.users import dropped, seen
from tests.support.programs.releases import numbered
from tests.support.programs.service import HUNG, Service, script
from tests.support.tools.certificates import CERTIFICATE, KEY, client_context, make_certificate

IDLE = 20
LINGERS_S = 0.05
TIMEOUT_S = 0.5
BESIDE = "from tests.process.programs.kept_sites import Beside as Hooks\n"
SITE = "from tests.process.programs.kept_sites import Site as Handler\n"
SITES = "from tests.process.programs.kept_sites import {} as Handler, {} as Hooks\n"
V1 = b"PROXY TCP4 192.0.2.7 198.51.100.1 4242 443\r\n"


def end(client: Staying) -> None:
    client.sock.shutdown(socket.SHUT_WR)
    client.wait_end()


@pytest.mark.once
@pytest.mark.parametrize("kind", KINDS)
def test_who_says_nothing_costs_nobody(kind: str, tmp_path: Path) -> None:
    """Many connections, each between two messages, and a pool with few places: all are answered, again and again, in
    their own order, with the state that the one before has left; what they cost are places in the holder."""
    with keeping(tmp_path, **KINDS[kind]) as service:
        with staying(service.address, IDLE) as clients:
            for _ in range(3):
                for client in clients:
                    client.send(b"say x")
                for client in clients:
                    assert client.heard() == b"x"
            assert wait_counted(service, held=IDLE, lingering=0, active=0)["moves"] >= IDLE
        wait_counted(service, held=0, client=IDLE)
        statistics = service.settled()
    assert (statistics["accepted"], statistics["completed"]) == (3 * IDLE, 3 * IDLE)
    assert statistics["exits"] == ({} if kind != "forked ahead" else statistics["exits"])


RAISING = """
class Hooks(Told):
    def finish_request(self, *args):
        if os.path.exists("before"):
            raise RuntimeError("before")
        super().finish_request(*args)
        if os.path.exists("after"):
            raise RuntimeError("after")
"""
INCOMPLETE = """
class Handler(Handler):
    @staticmethod
    def complete(data):
        if os.path.exists("complete"):
            raise RuntimeError("complete")
        return True
"""


@pytest.mark.once
@pytest.mark.parametrize("where", ["before", "after", "complete"])
@pytest.mark.parametrize("kind", [kind for kind in KINDS if "more" not in KINDS[kind]])
def test_it_is_told_of_an_end_that_is_not_its_own(kind: str, where: str, tmp_path: Path) -> None:
    """Where the program's own finish_request(), before or after the handler, or complete() raises, connection_closed()
    is called once, with the state."""
    more = INCOMPLETE if where == "complete" else RAISING
    with keeping(tmp_path, "Told", more=more, **KINDS[kind]) as service, stay(service.address) as client:
        service.expect(f"could not finish the request.*RuntimeError\\('{where}'\\)")
        client.say()
        wait_counted(service, held=1)  # else what follows may belong to the same stay
        (tmp_path / where).touch()
        client.send(b"pid")
        if where == "after":
            client.heard()
        assert client.answer_or_end() is None
        service.wait("closed")
        (tmp_path / where).unlink()
        assert service.settled()["failed"] == 1
        assert [fact["state"] for fact in service.facts if fact["event"] == "closed"] == [1 + (where == "after")]


BLIND = """
class Handler(KeepAliveMixIn, StreamRequestHandler):
    def handle_one_request(self):
        pass
"""


@pytest.mark.parametrize("kind", KINDS)
def test_a_handler_that_reads_nothing(kind: str, tmp_path: Path) -> None:
    """It is not called for the same bytes for ever: the connection waits for more of them, as long as for the rest of a
    request, and is called again for these."""
    settings = KINDS[kind] | {"more": BLIND + KINDS[kind].get("more", ""), "incomplete_timeout": TIMEOUT_S}
    with keeping(tmp_path, **settings) as service, stay(service.address) as client:
        client.sock.sendall(b"never read")
        assert client.answer_or_end() is None
        few = service.settled()["completed"]
        wait_counted(service, idle_timeout=1)
    assert 9 <= few <= 18
    assert service.log.count("Handler reads nothing of what its client sends") in (1, 2)


def test_any_worker_may_have_the_next_request(tmp_path: Path) -> None:
    """While the worker that had a connection is busy with another one, and while its first one is stopped for good."""
    with keeping(tmp_path, max_children=3) as service, staying(service.address, 3) as (one, *others):
        for other in others:
            first = int(one.say())
            other.send(b"wait")
            service.wait("waiting", lambda fact: fact["pid"] in service.workers())
            one.say()
        assert int(one.say()) not in [fact["pid"] for fact in service.facts if fact["event"] == "waiting"]
        assert first
        (tmp_path / "go on").touch()
        for other in others:
            other.heard()


@pytest.mark.parametrize("kind", ["sync", "threads", "unix"])
def test_a_pipeline_is_answered_in_order(kind: str, tmp_path: Path) -> None:
    """Thirty requests at once, and more than a stay may have: each is answered, in order, and counted."""
    with keeping(tmp_path, **KINDS[kind]) as service, stay(service.address) as client:
        client.sock.sendall(b"".join(b"say %d\n" % number for number in range(1, 31)))
        for number in range(1, 31):
            assert client.heard(number) == b"%d" % number
        assert service.settled()["completed"] == 30


@pytest.mark.parametrize("kind", KINDS)
def test_a_pipeline_at_a_drain(kind: str, tmp_path: Path) -> None:
    """Requests that have come before the end of the service are answered, all of them, by the worker that has the
    connection: no other would take it."""
    with keeping(tmp_path, **KINDS[kind]) as service, stay(service.address) as client:
        client.sock.sendall(b"wait\n" + b"".join(b"say %d\n" % number for number in range(2, 41)))
        worker = service.wait("waiting")["pid"]
        service.signal(signal.SIGTERM)
        while f"pid={worker}: draining" not in service.log:
            service.statistics()
        (tmp_path / "go on").touch()
        client.heard(1)
        for number in range(2, 41):
            assert client.heard(number) == b"%d" % number
        client.wait_end()
        assert service.wait_exit() == 0


def test_it_begins_and_ends_once(tmp_path: Path) -> None:
    """connection_opened() before the first request, connection_closed() after the last, whoever ends the connection and
    whoever has it then; setup() and finish() once a stay."""
    with keeping(tmp_path, "Told") as service:
        with staying(service.address, 4) as (by_handler, in_hand, held, by_error):
            service.expect("asked to raise")
            for client in (by_handler, in_hand, held, by_error):
                client.say()
            by_handler.say(b"close")
            by_handler.wait_end()
            in_hand.send(b"wait")
            service.wait("waiting")
            in_hand.close()
            (tmp_path / "go on").touch()
            by_error.send(b"raise")
            by_error.wait_end()
            wait_counted(service, held=1)
            held.close()
        closed = service.wait_each("closed", 4)
        assert len([fact for fact in service.facts if fact["event"] == "opened"]) == 4
        reasons = wait_counted(service, held=0, active=0, lingering=0, queued=0)
    assert sorted(fact["state"] for fact in closed) == [1, 2, 2, 2]
    assert reasons["client"] + reasons["handler"] == 4
    assert reasons["handler"] >= 2
    assert len([fact for fact in service.facts if fact["event"] == "closed"]) == 4


def test_who_has_expired_has_ended_once(tmp_path: Path) -> None:
    """The same of who has been idle for too long: one that is so before its first message has never begun."""
    with keeping(tmp_path, "Told", keepalive_timeout=TIMEOUT_S) as service:
        with answered(service.address) as client:
            client.wait_end()
        assert wait_counted(service, held=0, active=0, lingering=0, queued=0)["idle_timeout"] >= 1
        service.wait("closed")
        assert service.settled()["completed"] == 1
    facts = [fact for fact in service.facts if fact["event"] in ("opened", "closed")]
    assert [(fact["event"], fact.get("state")) for fact in facts] == [("opened", None), ("closed", 1)]


@pytest.mark.parametrize("kind", ["sync", "threads"])
def test_who_speaks_first(kind: str, tmp_path: Path) -> None:
    """A service that greets does so before its client has said anything; a client that says nothing then is idle, and
    no request."""
    with keeping(tmp_path, "Greeting", **KINDS[kind]) as service:
        with staying(service.address, IDLE) as clients:
            for client in clients:
                assert client.answer() == b"hello"
            wait_counted(service, held=IDLE)
            assert service.settled()["accepted"] == 0
            for client in clients:
                assert client.say(b"say x") == b"x"
        wait_counted(service, held=0, client=IDLE)
        assert service.settled()["completed"] == IDLE
        service.wait_each("closed", IDLE)
    assert len([fact for fact in service.facts if fact["event"] == "opened"]) == IDLE


@pytest.mark.parametrize("kind", ["sync", "unix"])
def test_complete_requests_only(kind: str, tmp_path: Path) -> None:
    """A class that says what is whole is given nothing else: more clients than workers that stop within a line cost
    nobody, and are answered when the rest comes, byte by byte."""
    with keeping(tmp_path, "Whole", incomplete_timeout=HUNG, **KINDS[kind]) as service:
        with staying(service.address, 5) as (busy, *clients):
            for client in clients:
                client.sock.sendall(b"s")
            for client in clients:
                for byte in b"ay x y":
                    client.sock.sendall(bytes((byte,)))
                    assert busy.say(b"say z") == b"z"
            for client in clients:
                client.sock.sendall(b"\nsay t")
                client.sent += 1
                assert client.heard() == b"x y"
                client.sock.sendall(b"\n")
                client.sent += 1
                assert client.heard() == b"t"
        wait_counted(service, held=0, client=5)
        statistics = service.settled()
    assert statistics["completed"] == busy.sent + sum(client.sent for client in clients)
    assert statistics["accepted"] == statistics["completed"]


@pytest.mark.parametrize("kind", ["sync", "unix"])
def test_what_stays_short_is_closed_in_its_time(kind: str, tmp_path: Path) -> None:
    """By the holder, after incomplete_timeout; it is no request, and whoever says a whole one is answered meanwhile."""
    with keeping(tmp_path, "Whole", incomplete_timeout=TIMEOUT_S, **KINDS[kind]) as service:
        with staying(service.address, 2) as (busy, short):
            began = time.monotonic()
            short.sock.sendall(b"s")
            assert busy.say(b"say z") == b"z"
            with contextlib.suppress(ConnectionResetError):  # its byte was never read
                short.wait_end()
            assert time.monotonic() - began >= TIMEOUT_S
            wait_counted(service, idle_timeout=1)
        wait_counted(service, held=0, idle_timeout=1, client=1)
        statistics = service.settled()
    assert (statistics["accepted"], statistics["completed"]) == (1, 1)


def test_the_idle_are_closed_in_their_time(tmp_path: Path) -> None:
    """keepalive_timeout closes who has said nothing for so long, counted from his last message."""
    with keeping(tmp_path, "Told", keepalive_timeout=2.0) as service, staying(service.address, 3) as clients:
        for client in clients:
            client.say()
        began = time.monotonic()
        clients[0].say()
        for client in (*clients[1:], clients[0]):
            client.wait_end()
        assert time.monotonic() - began > 1.5
        wait_counted(service, held=0, idle_timeout=3)
        service.wait_each("closed", 3)


def test_the_longest_idle_is_evicted(tmp_path: Path) -> None:
    """max_idle_connections closes who has said nothing for longest."""
    with keeping(tmp_path, "Told", max_idle_connections=3) as service:
        with contextlib.ExitStack() as stack:
            clients = []
            for number in range(5):
                clients.append(stack.enter_context(stay(service.address)))
                clients[-1].say()
                wait_counted(service, held=min(number + 1, 3), lingering=0)
            for client in clients[:2]:
                client.wait_end()
            assert quiet(*clients[2:])
            wait_counted(service, evicted=2)
            clients[2].say()
            wait_counted(service, held=3, lingering=0)
            stack.enter_context(stay(service.address)).say()
            clients[3].wait_end()
            assert quiet(clients[2], clients[4])
        assert len(service.wait_each("closed", 6)) == 6


@pytest.mark.once
@pytest.mark.parametrize("handler", ["Told", "Greeting"])
def test_who_says_nothing_at_all(handler: str, tmp_path: Path) -> None:
    """first_byte_timeout is waited for by the holder, over a reload as well: nobody waits meanwhile. Who has said
    something may be silent for longer."""
    began = time.monotonic()
    with releasing(tmp_path, handler, first_byte_timeout=5.0) as service, staying(service.address, 10) as clients:
        service.wait_ready(2)
        with staying(service.address, 2) as speaking:
            if handler == "Greeting":
                assert [client.answer() for client in (*clients, *speaking)] == [b"hello"] * 12
            for client in speaking:
                client.say()
            wait_counted(service, held=12, lingering=0)
            service.signal(signal.SIGHUP)
            service.wait_reloads(ok=1)
            for client in clients:
                client.wait_end()
            assert time.monotonic() - began > 4
            wait_counted(service, held=2, idle_timeout=10)
            for client in speaking:
                client.say()
        statistics = service.settled()
        assert (statistics["accepted"], statistics["completed"], statistics["rejected"]) == (14, 4, 10)


def test_a_request_is_what_is_measured(tmp_path: Path) -> None:
    """A connection that lives longer than request_timeout is not ended by it, a request that does is, with its
    connection; max_requests counts requests, and the connections of a worker that is recycled go on."""
    with keeping(tmp_path, request_timeout=2.0, max_requests=5) as service:
        service.expect("a request has run for longer than request_timeout")
        with staying(service.address, 4) as (spinning, *clients):
            began = time.monotonic()
            while time.monotonic() < began + 2.5 or service.statistics()["exits"].get("max_requests", 0) < 3:
                assert time.monotonic() < began + HUNG, "hung: no worker is recycled"
                for client in clients:
                    client.say()
                select.select([], [], [], 0.1)  # between two messages; an input
            mark = service.mark()
            spinning.send(b"spin")
            service.wait("spinning", after=mark)
            spinning.wait_end()
            for client in clients:
                client.say()
            messages = sum(client.sent for client in clients)
            wait_counted(service, held=3)
        wait_counted(service, held=0, client=3, lost=1)
        statistics = service.settled()
    assert statistics["exits"]["timeout"] == 1
    assert statistics["exits"]["max_requests"] <= messages // 4
    assert (statistics["completed"], statistics["lost"] + statistics["timed_out"]) == (messages, 1)


@pytest.mark.once
@pytest.mark.parametrize("kind", ["sync", "threads", "unix"])
def test_a_reload_is_not_noticed(kind: str, tmp_path: Path) -> None:
    """Connections that are held, that are in hand, and that linger live through reloads, with their state; the new code
    has the next request."""
    more = {key: value for key, value in KINDS[kind].items() if key != "more"}
    with releasing(tmp_path, "Handler", **more) as service, staying(service.address, IDLE) as (waiting, *clients):
        service.wait_ready(2)
        before = service.workers()
        for number in range(2, 5):
            for client in clients:
                client.say()
            with contextlib.suppress(FileNotFoundError):
                (tmp_path / "go on").unlink()
            mark = service.mark()
            waiting.send(b"wait")
            service.wait("waiting", after=mark)
            service.release(numbered(number))
            service.signal(signal.SIGHUP)
            service.wait("worker_started", after=service.facts.index(service.wait("listening", after=mark)))
            (tmp_path / "go on").touch()
            waiting.heard()
            service.wait_reloads(ok=number - 1)
        assert not {int(client.say()) for client in clients} & set(before)
        found = wait_counted(service, held=IDLE)
        statistics = service.settled()
    assert "lost" not in found
    assert "client" not in found
    assert statistics["completed"] == sum(client.sent for client in (waiting, *clients))
    assert statistics["lost"] == 0


def test_the_end_of_the_service(tmp_path: Path) -> None:
    """TERM: who is idle is closed at once, and told to the handler's class; a request in hand is answered, and then its
    connection ends."""
    with keeping(tmp_path, "Told") as service, staying(service.address, IDLE) as (waiting, *clients):
        for client in clients:
            client.say()
        wait_counted(service, held=IDLE)
        waiting.send(b"wait")
        service.wait("waiting")
        service.signal(signal.SIGTERM)
        for client in clients:
            client.wait_end()
        assert quiet(waiting)
        (tmp_path / "go on").touch()
        waiting.heard()
        waiting.wait_end()
        assert service.wait_exit() == 0
        told = {tuple(fact["client"]) for fact in service.facts if fact["event"] == "closed"}
        assert told == {client.sock.getsockname() for client in (waiting, *clients)}
        assert service.statistics()["completed"] == IDLE


@pytest.mark.once
@pytest.mark.parametrize("how", ["expired", "evicted", "drained", "no more kept"])
def test_it_ends_beside_a_copy(how: str, tmp_path: Path) -> None:
    """A process of the program's, forked while the connection was in hand, has a copy of it for as long as it lives:
    the client is told of the end all the same, whoever ends the connection."""
    settings = {"keepalive_timeout": TIMEOUT_S} if how == "expired" else {}
    with (
        releasing(tmp_path, "Handler", max_idle_connections=1, **settings) as service,
        answered(service.address, b"fork") as client,
    ):
        if how != "expired":
            wait_counted(service, held=1)
        if how == "evicted":
            with stay(service.address) as other:
                other.say()
                client.wait_end()
        elif how == "drained":
            service.signal(signal.SIGTERM)
        elif how == "no more kept":
            program = tmp_path / "program.py"
            unkept = program.read_text().replace(definitions(), "from prefork import StreamRequestHandler as Handler\n")
            program.write_text(unkept)
            service.signal(signal.SIGHUP)
        client.wait_end()
        (tmp_path / "go on").touch()
        service.signal(signal.SIGTERM)
        assert service.wait_exit() == 0
        service.wait_gone()  # the copy's process, whom nobody waits for


EXECUTOR = "from tests.process.programs.kept_executor import InExecutor as Hooks\n"


@pytest.mark.parametrize("kind", [kind for kind in KINDS if "more" not in KINDS[kind] and kind != "forked ahead"])
def test_in_the_hands_of_an_executor(kind: str, tmp_path: Path) -> None:
    """A connection that the program serves in a thread of its own is told as active, until it is held again, or closed;
    and as lost with its worker."""
    with keeping(tmp_path, more=EXECUTOR, **KINDS[kind]) as service, staying(service.address, 3) as clients:
        for client in clients:
            client.send(b"wait")
        service.wait_each("waiting", 3)
        wait_counted(service, active=3, lingering=0, held=0, queued=0)
        (tmp_path / "go on").touch()
        for client in clients:
            client.heard()
        wait_counted(service, active=0, held=3, queued=0)
        clients[0].say(b"close")
        clients[0].wait_end()
        wait_counted(service, active=0, held=2, queued=0, handler=1)
        (tmp_path / "go on").unlink()
        mark = service.mark()
        clients[1].send(b"wait")
        service.signal(signal.SIGKILL, service.wait("waiting", after=mark)["pid"])
        assert clients[1].answer_or_end() is None
        wait_counted(service, active=0, held=1, queued=0, lost=1)


def test_half_closed(tmp_path: Path) -> None:
    """A client that says all it has and that this was it is answered to the end, however much of it there is; one that
    half-closes while it is held is closed, and no request."""
    with keeping(tmp_path) as service, staying(service.address, 3) as (pipeline, held, cut):
        held.say()
        wait_counted(service, held=3)
        pipeline.sock.sendall(b"say x\n" * 20)
        pipeline.sock.shutdown(socket.SHUT_WR)
        for number in range(1, 21):
            assert pipeline.heard(number) == b"x"
        pipeline.wait_end()
        end(held)
        cut.sock.sendall(b"sa")
        end(cut)
        wait_counted(service, held=0, active=0, lingering=0, queued=0)
        assert service.settled()["completed"] == 22


@pytest.mark.timed
def test_what_is_written_is_sent(tmp_path: Path) -> None:
    """What a handler has written into a buffer is with the client before the next request is waited for, at once."""
    with keeping(tmp_path, "Buffered") as service, stay(service.address) as client:
        began = time.monotonic()
        for number in range(50):
            assert client.say(b"say %d" % number) == b"%d" % number
            assert len(client.say(b"big 100000")) == 100000
        assert time.monotonic() - began < 50 * 0.04  # what a delayed acknowledgement takes


def test_plain_servers_loop(tmp_path: Path) -> None:
    """Without a pool the same class serves its connection to the end, requests one by one, and the service ends."""
    more = "from tests.support.programs.served import EndedByTerm as Hooks\n"
    source = script(definitions("Told", more), bases="ThreadingTCPServer", daemon_threads=True)
    with Service(tmp_path, source) as service, staying(service.address, 3) as clients:
        for _ in range(3):
            for client in clients:
                assert int(client.say()) == service.pid
        clients[0].sock.sendall(b"say x\n" * 20)
        for number in range(4, 24):
            assert clients[0].heard(number) == b"x"
        clients[1].say(b"close")
        clients[1].wait_end()
        end(clients[2])
        service.wait_each("closed", 2)


def test_over_tls(tmp_path: Path) -> None:
    """A connection whose bytes are wrapped serves its requests, and is counted as one that ended."""
    make_certificate(tmp_path)
    settings = {"tls_certificate": CERTIFICATE, "tls_key": KEY}
    with keeping(tmp_path, "Told", **settings) as service:
        context = client_context(tmp_path, certified=False)
        with Staying(context.wrap_socket(dial(service.address), server_hostname="localhost")) as client:
            for _ in range(20):
                client.say()
            assert counted(service).get("held", 0) == 0
            client.say(b"close")
            client.wait_end()
        service.wait("closed")
        wait_counted(service, handler=1)
        assert service.settled()["completed"] == 21


def test_behind_a_proxy(tmp_path: Path) -> None:
    """Whom the PROXY header named is the client of every request; the header is read once."""
    with keeping(tmp_path, proxy_trusted="127.0.0.1") as service, staying(service.address, 2) as clients:
        for client in clients:
            client.sock.sendall(V1)
        for _ in range(2):
            for client in clients:
                said = client.say(b"proxied").decode()
                assert said.startswith("192.0.2.7 ")
                assert "4242" in said
            wait_counted(service, held=2)
        with dial(service.address) as refused:
            refused.sendall(b"PROXY nonsense\r\n")
            with contextlib.suppress(ConnectionResetError):
                assert refused.recv(1) == b""
        assert service.settled()["completed"] == 4


def test_the_idle_count_for_the_limits(tmp_path: Path) -> None:
    """A client that has as many connections as one may is refused another one while they are held, and over a reload;
    one less, and it has another."""
    with releasing(tmp_path, max_connections_per_client=3) as service:
        with staying(service.address, 3) as clients:
            for number in (1, 2):
                for client in clients:
                    client.say()
                wait_counted(service, held=3)
                with stay(service.address) as refused, contextlib.suppress(ConnectionError):
                    refused.send(b"pid")
                    refused.wait_end()
                service.release(numbered(number))
                service.signal(signal.SIGHUP)
                service.wait_reloads(ok=number)
            clients[0].close()
            wait_counted(service, held=2)
            with stay(service.address) as another:
                another.say()
                wait_counted(service, held=3)
        wait_counted(service, held=0, active=0, lingering=0, queued=0)
        with staying(service.address, 3) as clients:
            for client in clients:
                client.say()


def test_several_listeners(tmp_path: Path) -> None:
    """Connections of two servers in one pool come back to their own, and are counted there."""
    with keeping(tmp_path, more=BESIDE) as service:
        beside = os.path.relpath(tmp_path / "beside")
        with staying(service.address, 3) as over_tcp, staying(beside, 4) as over_unix:
            for _ in range(2):
                for client in (*over_tcp, *over_unix):
                    client.say()
            assert all(client.say(b"client").startswith(b"(") for client in over_tcp)
            assert not any(client.say(b"client").startswith(b"(") for client in over_unix)
            deadline = time.monotonic() + HUNG
            while time.monotonic() < deadline:
                found = get(os.path.relpath(tmp_path / "m")).samples
                held = {name: value for name, value in found.items() if 'state="held"' in name}
                if sorted(held.values()) == [3, 4]:
                    break
            assert sorted(held.values()) == [3, 4]
            assert total(found, "prefork_connections") == 7


def test_http(tmp_path: Path) -> None:
    """SimpleHTTPRequestHandler keeps the connections of its clients: any number of requests on each, none of which
    costs a worker in between; `Connection: close` ends it."""
    (tmp_path / "page").write_text("x" * 1000)
    with keeping(tmp_path, more=SITE) as service, contextlib.ExitStack() as stack:
        clients = [http.client.HTTPConnection("127.0.0.1", service.address[1], timeout=HUNG) for _ in range(6)]
        for client in clients:
            stack.callback(client.close)
        for _ in range(3):
            for client in clients:
                client.request("GET", "/page")
                answer = client.getresponse()
                assert (answer.status, len(answer.read())) == (200, 1000)
        wait_counted(service, held=6)
        clients[0].request("GET", "/page", headers={"Connection": "close"})
        assert len(clients[0].getresponse().read()) == 1000
        assert wait_counted(service, held=5, handler=1)
        assert service.settled()["completed"] == 19


def test_xmlrpc(tmp_path: Path) -> None:
    """SimpleXMLRPCRequestHandler, over a pool of its own server class."""
    more = SITES.format("Calls", "Powers")
    bases = "PreForkingMixIn, xmlrpc.server.SimpleXMLRPCServer"
    with keeping(tmp_path, more="import xmlrpc.server\n" + more, bases=bases) as service:
        with xmlrpc.client.ServerProxy("http://{}:{}".format(*service.address)) as proxy:
            assert [proxy.pow(2, number) for number in range(8)] == [2**number for number in range(8)]
            wait_counted(service, held=1)
        wait_counted(service, held=0, client=1)


def test_wsgi(tmp_path: Path) -> None:
    """WSGIRequestHandler, whose `handle()` is one request: what it answers over HTTP/1.0 ends, and is counted so."""
    more = SITES.format("Gateway", "Wsgi")
    bases = "PreForkingMixIn, wsgiref.simple_server.WSGIServer"
    with keeping(tmp_path, more="import wsgiref.simple_server\n" + more, bases=bases) as service:
        for _ in range(3):
            client = http.client.HTTPConnection("127.0.0.1", service.address[1], timeout=HUNG)
            with contextlib.closing(client):
                client.request("GET", "/")
                assert client.getresponse().read() == b"x"
        wait_counted(service, held=0, active=0, lingering=0, queued=0)
        assert service.settled()["completed"] == 3


@pytest.mark.once
@pytest.mark.skipif(os.getuid() != 0, reason="only root can change the user of a worker")
def test_the_holder_gives_up_what_workers_do(tmp_path: Path) -> None:
    """Where workers serve as another user the holder is that user, too, with no right left."""
    with keeping(tmp_path, user="54321", group="54322", no_new_privs=True, metrics_address=("127.0.0.1", 0)) as service:
        with stay(service.address) as client:
            client.say()
            nobody = dropped(54321, 54322, no_new=1)
            deadline = time.monotonic() + HUNG
            while {seen(child.pid) for child in psutil.Process(service.pid).children()} != {nobody}:
                assert time.monotonic() < deadline, "hung: a child has not dropped its rights"
            assert seen(holder(service)) == nobody


OWN_THREADS = "from tests.process.programs.own_threads import Hooks\n"


def test_threads_of_the_programs_own(tmp_path: Path) -> None:
    """A program that gives each request to a thread of its own: a connection is kept from one to the next, with its
    state, and ends once, by whoever ends it. Each request is handed over."""
    with keeping(tmp_path, "Told", more=OWN_THREADS) as service:
        service.expect("asked to raise")
        with staying(service.address, 5) as (by_client, by_handler, by_error, *idle):
            for number in range(1, 4):
                for client in (by_client, by_handler, by_error, *idle):
                    client.say()
                found = wait_counted(service, held=5, active=0, lingering=0, queued=0)
                found.pop("moves", None)  # none at first: each may have lingered
                assert found == {"held": 5}, number
            by_handler.say(b"close")
            by_handler.wait_end()
            by_error.send(b"raise")
            by_error.wait_end()
            by_client.close()
            idle[0].sock.sendall(b"pid\n" * 3)  # one stay, or several
            for number in (4, 5, 6):
                idle[0].heard(number)
            wait_counted(service, held=2, client=1, handler=2)
            statistics = service.settled()
            service.signal(signal.SIGTERM)
            assert all(client.answer_or_end() is None for client in idle)
        states = sorted(fact["state"] for fact in service.wait_each("closed", 5))
    assert states == [3, 3, 4, 4, 6]
    assert statistics["accepted"] == statistics["handed_over"] == 15 + 2 + 3


def test_an_unkept_service_has_no_holder(tmp_path: Path) -> None:
    """A pool of a class without the mix-in costs no process more."""
    with Service(tmp_path, script(max_children=1)) as service:
        service.wait_ready(1)
        assert len(psutil.Process(service.pid).children()) == 1
