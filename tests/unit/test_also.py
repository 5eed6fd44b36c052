"""The tables of a file that say what a pool serves beside its first target, and what of them is no such thing."""

import socket
from collections.abc import Iterator
from typing import Any

import pytest

from prefork import (
    ConfigError,
    DatagramRequestHandler,
    ForkingMixIn,
    PreforkError,
    PreForkingMixIn,
    PreForkingTCPServer,
    PreForkingUDPServer,
    StreamRequestHandler,
    TCPServer,
    ThreadingMixIn,
)
from prefork.cli.launch import fields
from prefork.master.accept_queue import AcceptQueues
from prefork.metrics.scoreboard import ACCEPTED, BUSY, IDLE, STATE, Slot
from prefork.pool import pool_of
from prefork.settings.also import also
from prefork.sockets.listener import Listener
from prefork.workers.lanes import Lanes
from prefork.workers.lanes_beside import LanesBeside
from prefork.workers.open_lanes import OpenLanes

FIELDS = fields()


def refusal(tables: object) -> str:
    with pytest.raises(ConfigError) as caught:
        also(FIELDS, tables, "s.toml")
    return str(caught.value)


def test_what_a_table_says() -> None:
    """A target, addresses, and settings of their listeners, each with its source; nothing is a default."""
    one, other = also(FIELDS, [{"target": "a:B", "bind": [":1", "unix:s"]}, {"bind": ":2", "tls_alpn": "h2"}], "s.toml")
    assert one.value("target") == "a:B"
    assert [each.text for each in one.value("bind")] == [":1", "unix:s"]
    assert one.found["bind"].origin == "s.toml: also 1: bind"
    assert (other.value("target"), other.value("tls_alpn")) == (None, "h2")
    assert also(FIELDS, [], "s.toml") == ()


@pytest.mark.parametrize(("tables", "said"), [
    ({"bind": ":1"}, "could not use s.toml: also must be tables, each under [[prefork.also]]"),
    ([":1"], "could not use s.toml: also must be tables, each under [[prefork.also]]"),
    ([{}], "could not use s.toml: also 1: it says neither target nor bind"),
    ([{"bind": ":1"}, {"bind": ":2", "max_requests": 3}],
     "could not use s.toml: also 2: max_requests is a setting of the pool, which stands in [prefork]"),
    ([{"bnd": ":1"}], "could not use s.toml: also 1: there is no setting bnd; did you mean bind?"),
    ([{"bind": ":1", "socket_mode": "rw"}],
     "could not set socket_mode to 'rw' (from s.toml: also 1: socket_mode): it must be an octal mode (as in 0660)"),
])  # fmt: skip
def test_what_is_refused(tables: object, said: str) -> None:
    """One sentence, with the number of the table."""
    assert refusal(tables).startswith(said.removesuffix(" (as in 0660)"))


class Threaded(PreForkingMixIn, ThreadingMixIn, TCPServer):
    """Has threads."""


class Ahead(PreForkingMixIn, ForkingMixIn, TCPServer):
    """Is forked ahead."""


class Accompanied(PreForkingTCPServer):
    companions = {"indexer": lambda server: None}


def made(cls: Any, **more: Any) -> Any:
    return cls(("127.0.0.1", 0), StreamRequestHandler, **more)


@pytest.fixture
def first() -> Iterator[PreForkingTCPServer]:
    with made(PreForkingTCPServer) as server:
        yield server


@pytest.mark.parametrize(("cls", "said"), [
    (TCPServer, "could not serve TCPServer as well: it has no PreForkingMixIn among its bases"),
    (Threaded, "could not serve Threaded as well: one of the two has a ThreadingMixIn, and the other has none"),
    (Ahead, "could not serve Ahead as well: one of the two has a ForkingMixIn, and the other has none"),
    (Accompanied, "the companions of a pool are its first server's, and this one has indexer"),
])  # fmt: skip
def test_who_is_not_served_as_well(cls: Any, said: str, first: PreForkingTCPServer) -> None:
    """A server without our mix-in, of another model, or with companions of its own; and then nothing has changed."""
    with made(cls) as other:
        with pytest.raises(ConfigError, match=said):
            first.serve_also(other)
        assert pool_of(first).others == ()


def test_the_companions_of_one_class() -> None:
    """Served at two addresses it has its companions once: the first one's."""
    with made(Accompanied) as server, made(Accompanied) as other:
        server.serve_also(other)
        assert [each.name for each in pool_of(server).companions()] == ["indexer"]


def test_a_setting_that_is_for_some_of_them(first: PreForkingTCPServer) -> None:
    """It is no setting without effect, although the first listener has no use for it; another one is, and so is one of
    the pool's."""
    said = [("dual_stack", "the address is no IPv6 address"), ("max_threads", "why"), ("other", "why")]
    first.dual_stack = True
    with PreForkingTCPServer(("::1", 0), StreamRequestHandler) as six, made(PreForkingTCPServer) as four:
        four.dual_stack = True
        first.serve_also(four)
        assert list(pool_of(first).in_vain(said)) == said
        first.serve_also(six)
        assert list(pool_of(first).in_vain(said)) == said[1:]


def test_a_server_belongs_to_one_pool(first: PreForkingTCPServer) -> None:
    """It is served once, by who is served by nobody else, while it is open; and serves no pool of its own then."""
    with made(PreForkingTCPServer) as other, made(PreForkingTCPServer) as third, made(PreForkingTCPServer) as closed:
        first.serve_also(other)
        for server, more in ((first, first), (first, other), (third, other), (other, third), (third, first)):
            with pytest.raises(ConfigError, match="a server belongs to one pool"):
                server.serve_also(more)
        with pytest.raises(
            PreforkError, match="PreForkingTCPServer from a pool of its own: the pool of PreForkingTCPS"
        ):
            other.serve_forever()
        closed.server_close()
        with pytest.raises(ConfigError, match="it is closed, or not bound"):
            first.serve_also(closed)
        assert [each.server for each in pool_of(first).each] == [first, other]
        assert other.statistics() == first.statistics()


def test_the_others_are_closed_with_the_first() -> None:
    """And may be closed by themselves as well."""
    first = made(PreForkingTCPServer)
    other = PreForkingUDPServer(("127.0.0.1", 0), DatagramRequestHandler)
    first.serve_also(other)
    first.server_close()
    assert (first.fileno(), other.fileno()) == (-1, -1)
    other.server_close()


def test_none_has_a_socket_for_each_worker(first: PreForkingTCPServer) -> None:
    """Whichever of a pool's servers asks for it."""
    with PreForkingUDPServer(("127.0.0.1", 0), DatagramRequestHandler) as other:
        first.serve_also(other)
        other.peer_affinity = True
        with pytest.raises(ConfigError, match="could not set peer_affinity: the service has several listeners"):
            pool_of(first).check()


def test_one_that_was_closed_by_itself_is_named(first: PreForkingTCPServer) -> None:
    """The pool does not serve without it, and says which it is."""
    with made(PreForkingTCPServer) as other:
        first.serve_also(other)
    with pytest.raises(
        PreforkError, match="could not serve: PreForkingTCPServer, which the pool is to serve as well, is"
    ):
        first.serve_forever()


class Hurried(PreForkingTCPServer):
    max_requests = 7


def test_a_setting_of_the_pools_on_another_server(first: PreForkingTCPServer) -> None:
    """It is said to have no effect; one of a listener's has."""
    with made(Hurried) as other:
        other.allowed_clients, first.max_lifetime = "::1", 9.0
        first.serve_also(other)
        assert list(pool_of(first).without_effect()) == [
            ("max_requests of Hurried", "the settings of the pool are those of PreForkingTCPServer")
        ]


def test_a_setting_of_its_own_listener_for_nothing(first: PreForkingTCPServer) -> None:
    """It is said of that server; what is said for all of them is the first's to say."""
    with made(PreForkingTCPServer) as other:
        first.serve_also(other)
        other.dual_stack = True
        assert list(pool_of(first).without_effect()) == [
            ("dual_stack of PreForkingTCPServer", "the address is no IPv6 address")
        ]
        first.dual_stack = True
        assert list(pool_of(first).without_effect()) == []


def test_the_queues_of_several_are_seen_as_one() -> None:
    """Somebody waits if he does at any of them; the lengths are added up; narrowed are all."""
    socks = [Listener.adopt(socket.create_server(("127.0.0.1", 0))) for _ in range(2)]
    queues = AcceptQueues(socks)
    assert (queues.look(1.0), queues.queued_at, queues.queue_length()) == (False, 0.0, 0)
    with socket.create_connection(socks[1].getsockname()), socket.create_connection(socks[0].getsockname()):
        assert (queues.look(2.0), queues.queued_at, queues.queue_length()) == (True, 2.0, 2)
        socks[0].accept()[0].close()
        assert (queues.look(3.0), queues.queued_at, queues.queue_length()) == (True, 3.0, 1)
        socks[1].accept()[0].close()
    assert (queues.look(4.0), queues.queued_at) == (False, 3.0)
    assert queues.origins == tuple(socks)
    assert queues.datagrams_dropped() is None
    queues.narrow(5.0)
    assert queues.queued_at == 5.0
    for sock in socks:
        sock.close()
    assert AcceptQueues(()).queued_at == 0.0


def test_a_lane_of_two_servers() -> None:
    """It is one lane: taken from the first's, with words of each; given back by either, it is free."""
    slot = Slot(3, listeners=0b101, opened=1)
    opened = [OpenLanes(slot, number) for number in (0, 2)]
    first = Lanes(opened[0].first(), elsewhere=True, on_free=lambda: None, more=opened[0].more)
    other = LanesBeside(first, opened[1].first(), elsewhere=True, on_free=lambda: None, more=opened[1].more)
    taken = [first.take() for _ in range(3)]
    likes = [other.like(lane) for lane in taken if lane is not None]
    for index, like in enumerate(likes):
        like[ACCEPTED] = index + 1
    assert [slot.of_listener(2).lane(index)[ACCEPTED] for index in range(3)] == [1, 2, 3]
    assert [slot.of_listener(0).lane(index)[ACCEPTED] for index in range(3)] == [0, 0, 0]
    assert (first.take(), first.all_free(), other.all_free()) == (None, False, True)
    likes[1][STATE] = BUSY
    other.give_back(likes[1])
    assert likes[1][STATE] == IDLE
    assert first.take() is taken[1]
    for lane in taken:
        assert lane is not None
        first.give_back(lane)
    assert first.all_free()
    slot.close()
