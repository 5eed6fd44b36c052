"""Clients of a service that keeps connections: what they do wrong, and what handlers do, costs nobody else anything."""

import contextlib
import itertools
import random
import signal
import socket
import struct
from pathlib import Path
from time import monotonic

import pytest

from tests.support.clients.keeping import KINDS, Staying, counted, holder, keeping, quiet, stay, staying, wait_counted
from tests.support.tools.figures import figure, ms
from tests.support.tools.proc import cpu_seconds, nothing_for

RESET = struct.pack("ii", 1, 0)  # SO_LINGER: close() sends a reset
SOON = 1.0
CUTS = 30


@pytest.mark.parametrize("handler", ["Handler", "Whole", "Buffered"])
@pytest.mark.parametrize("kind", ["sync", "threads", "unix"])
def test_pipelines_cut_anywhere(kind: str, handler: str, tmp_path: Path, rng: random.Random) -> None:
    """What a client says comes in pieces of any size, with pauses in which its connection is held, or without: every
    message is answered, in order, once."""
    with keeping(tmp_path, handler, **KINDS[kind]) as service:
        for _ in range(CUTS):
            lines = [b"say " + b"x" * rng.choice((0, 1, 10, 1000)) for _ in range(rng.randrange(1, 40))]
            said = b"".join(line + b"\n" for line in lines)
            cuts = sorted({0, len(said), *(rng.randrange(len(said)) for _ in range(rng.randrange(6)))})
            with stay(service.address) as client:
                answered = 0
                for begin, end in itertools.pairwise(cuts):
                    client.sock.sendall(said[begin:end])
                    if rng.random() < 0.5:  # it has the answer to all that is whole
                        whole = said[:end].count(b"\n")
                        while answered < whole:
                            answered += 1
                            assert client.heard(answered) == lines[answered - 1][4:]
                        if rng.random() < 0.2 and (handler == "Whole" or said[end - 1 : end] == b"\n"):
                            wait_counted(service, active=0, lingering=0)
                for number in range(answered + 1, len(lines) + 1):
                    assert client.heard(number) == lines[number - 1][4:]
        found = wait_counted(service, active=0, lingering=0, queued=0, held=0)
        assert service.settled()["failed"] == 0
    assert found["client"] == CUTS


@pytest.mark.parametrize("kind", ["sync", "unix"])
def test_slow_clients_cost_no_worker(kind: str, tmp_path: Path) -> None:
    """One worker; clients that say nothing, that say one byte and stop, that drip, that half-close, that hang up: the
    one that asks is answered at once, throughout."""
    slowest = 0.0
    with keeping(tmp_path, "Whole", **{**KINDS[kind], "max_children": 1}) as service:
        with contextlib.ExitStack() as stack:
            clients = [stack.enter_context(stay(service.address)) for _ in range(60)]
            asking = stack.enter_context(stay(service.address))
            for number, client in enumerate(clients):
                began = monotonic()
                asking.say()
                slowest = max(slowest, monotonic() - began)
                slow(client, number % 5)
            for byte in b"ay drips\n":
                for client in clients[2::5]:
                    client.sock.sendall(bytes((byte,)))
                began = monotonic()
                asking.say()
                slowest = max(slowest, monotonic() - began)
            for client in clients[2::5]:
                assert client.heard(1) == b"drips"
            for client in clients[3::5]:
                client.wait_end()
            wait_counted(service, held=37, active=0, lingering=0)
            assert quiet(*clients[0::5], *clients[1::5])
            assert asking.say(b"say x") == b"x"
        wait_counted(service, held=0, client=61)
        assert service.settled()["completed"] == asking.sent + 36  # half a line that is all is one, too
    figure(f"{kind}: slowest answer beside slow clients", ms(slowest), ms(SOON))
    assert slowest < SOON


def slow(client: Staying, how: int) -> None:
    """Nothing, a byte, a drip, half-closed with half a line, gone."""
    if how in (1, 2):
        client.sock.sendall(b"s")
    if how == 3:
        client.sock.sendall(b"sa")
        client.sock.shutdown(socket.SHUT_WR)
    if how == 4:
        client.close()


def test_clients_hang_up_anywhere(tmp_path: Path) -> None:
    """By a close or a reset, while the connection is held, lingers, is in hand, or waits to be taken: it is closed and
    counted, and no worker ends or complains."""
    with keeping(tmp_path) as service, contextlib.ExitStack() as stack:
        service.wait_ready(2)
        clients = [stack.enter_context(stay(service.address)) for _ in range(40)]
        for client in clients[::2]:
            client.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
        for client in clients[:8]:
            client.say()
        wait_counted(service, held=40)
        for client in clients[:8]:
            client.close()
        wait_counted(service, held=32, client=8)
        for client in clients[8:16]:  # lingers
            client.say()
            client.close()
        for client in clients[16:24]:  # in hand, or waiting for that
            client.sock.sendall(b"sleep 0.05\nsay x\n" * 2)
            client.close()
        for client in clients[24:32]:  # with an answer that it does not read
            client.sock.sendall(b"big 1000000\n" * 2)
        for client in clients[24:32]:
            client.close()
        wait_counted(service, held=8, active=0, lingering=0, queued=0)
        for client in clients[32:]:
            client.say()
        found = counted(service)
        statistics = service.settled()
    assert found["client"] + found.get("handler", 0) == 32
    assert "lost" not in found
    assert statistics["exits"] == {}


def test_states_that_cannot_be_kept(tmp_path: Path) -> None:
    """A state that is not of plain values, or is too large, is the handler's error and ends this connection; one that
    just fits goes along, and so does what was read ahead beside it."""
    with keeping(tmp_path) as service, staying(service.address, 4) as (objects, large, fits, other):
        service.expect("state of a connection must be of plain values", "state of a connection takes")
        other.say()
        for client, what in ((objects, b"object"), (large, b"large")):
            client.send(b"remember " + what)
            client.heard()
            client.wait_end()
        fits.say(b"keep 65000")
        wait_counted(service, held=2)
        fits.sock.sendall(b"sized\n" * 30)
        assert [fits.answer() for _ in range(30)] == [b"0 65000"] * 30
        wait_counted(service, held=2, handler=2)
        other.say()
        assert service.settled()["failed"] == 2


def test_more_read_ahead_than_goes_along(tmp_path: Path) -> None:
    """A handler with a large buffer has read ahead more than a message can take: every request is answered all the
    same, in order, and the others meanwhile."""
    large = "class Handler(Handler):\n    rbufsize = 1 << 20\n"
    count = 20000
    with keeping(tmp_path, more=large, max_children=1) as service:
        with staying(service.address, 2) as (client, other):
            client.sock.settimeout(60)
            client.sock.sendall(b"".join(b"say %d\n" % number for number in range(count // 2)))
            other.say()
            for number in range(count // 2):
                assert client.heard(number + 1) == b"%d" % number
            client.sock.sendall(b"say x%s\n" % (b"y" * 300_000))
            assert len(client.heard(count // 2 + 1)) == 300_001
            other.say()
        assert service.settled()["failed"] == 0


@pytest.mark.parametrize("kind", ["sync", "threads", "unix"])
def test_a_request_for_which_the_kernel_has_no_room(kind: str, tmp_path: Path) -> None:
    """`complete()` has not seen all of it, the client cannot send the rest before something is read, and nobody may
    wait for it: it is answered all the same, and nobody turns in circles meanwhile."""
    size, parts = (1000, 1) if kind == "unix" else (40_000, 40_000)  # small parts take most room over a Unix socket
    settings = {**KINDS[kind], "receive_buffer": None if kind == "unix" else 4096}
    with keeping(tmp_path, "Whole", **settings) as service, stay(service.address) as client:
        client.say()
        for number in (2, 3):
            line = b"say %s\n" % (b"x" * size)
            for at in range(0, len(line), parts):
                client.sock.sendall(line[at : at + parts])
            assert client.heard(number) == b"x" * size
        moves = wait_counted(service, held=1, active=0)["moves"]
        assert service.settled()["completed"] == 3
    figure(f"{kind}: moves of a connection whose request is larger than its buffer", moves, 100)
    assert moves < 100


def test_a_fork_in_a_handler(tmp_path: Path) -> None:
    """A process that a handler forks has a copy of the connection for as long as it lives: the connection is kept and
    served all the same, no worker turns in circles meanwhile, and at the end it does end for the client."""
    with keeping(tmp_path) as service, staying(service.address, 3) as (forking, *others):
        service.wait_ready(2)
        for client in (forking, *others):
            client.say()
        forking.say(b"fork")
        for _ in range(5):
            for client in (forking, *others):
                client.say()
        wait_counted(service, held=3, active=0, lingering=0)
        forking.sock.sendall(b"say x\n" * 20)
        for number in range(8, 28):
            assert forking.heard(number) == b"x"
        wait_counted(service, held=3, active=0, lingering=0)
        pids = [*service.workers(), holder(service)]
        before = [cpu_seconds(pid) for pid in pids]
        nothing_for(0.4, forking.sock)
        used = sum(map(cpu_seconds, pids)) - sum(before)
        forking.sock.sendall(b"close\n")
        forking.heard(28)
        forking.wait_end()
        (tmp_path / "go on").touch()
        for client in others:
            client.say()
        service.signal(signal.SIGTERM)
        assert service.wait_exit() == 0
        service.wait_gone()  # the copy's process, whom nobody waits for
    figure("CPU of workers and holder in 0.4 s beside a forked copy", ms(used))
    assert used < 0.1
