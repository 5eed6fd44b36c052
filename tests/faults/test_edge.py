"""The edge of the network: crowds that say nothing, or what nobody understands, and limits while workers are killed."""

import contextlib
import random
import socket
from pathlib import Path
from typing import Any

import pytest

from tests.support.clients.connections import HUNG, Connection, Load, dial
from tests.support.programs.service import Service, script
from tests.support.programs.storm import Storm
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


def is_served(service: Service, source: str) -> Connection | None:
    client = Connection(dial(service.address, HUNG, source))
    try:
        client.send(b"pid")
        if client.answer_or_end() is not None:
            return client
    except BrokenPipeError:
        pass
    client.close()
    return None


def test_crowd_of_one_client(tmp_path: Path) -> None:
    """1,000 connections of one address that say nothing, where it may have 20: the others are closed at once, and
    another address is served as if they were not there."""
    settings: dict[str, Any] = {"max_children": 4, "max_threads": 16, "max_connections_per_client": 20}
    source = script(bases="PreForkingMixIn, ThreadingTCPServer", **settings)
    with Service(tmp_path, source) as service, contextlib.ExitStack() as crowd:
        service.wait_ready(4)
        answered = 0
        for number in range(1000):
            crowd.enter_context(dial(service.address, source="127.0.0.9"))
            if number % 50 == 0 and (client := is_served(service, "127.0.0.10")) is not None:
                answered += 1
                client.sock.shutdown(socket.SHUT_WR)
                client.wait_end()
                client.close()
        while (found := service.settled(in_flight=20))["rejected"] < 980:
            pass
        figure("closed, in service, others answered", f"{found['rejected']}, {found['in_flight']}, {answered}",
               "980, 20, 20")  # fmt: skip
        assert (found["rejected"], found["in_flight"], answered) == (980, 20, 20)


@pytest.mark.parametrize("bases", ["PreForkingTCPServer", "PreForkingMixIn, ThreadingTCPServer"])
def test_places_are_exact_over_a_storm(bases: str, tmp_path: Path, rng: random.Random) -> None:
    """Workers are killed at random while each of eight clients has the one connection that it may have: some may be
    turned away, until the dead one is reaped; after the storm each has its place again, and no second one."""
    source = script(bases=bases, max_children=16 if bases == "PreForkingTCPServer" else 4, max_connections_per_client=1)
    workers = 16 if bases == "PreForkingTCPServer" else 4
    with Service(tmp_path, source) as service, contextlib.ExitStack() as stack:
        service.wait_ready(workers)
        storm = Storm(service, rng)
        with Load(service.address, 8) as load:
            load.wait_answered()
            storm.rage(4)
            storm.wait_full(workers)
        found = service.settled()
        figure(f"{bases}: kills, answered, turned away", f"{storm.kills}, {load.tally.answered}, {found['rejected']}")
        assert storm.kills > 20
        assert found["lost"] + found["rejected"] >= load.tally.failures - storm.kills
        for number in range(1, 9):
            first = is_served(service, f"127.0.1.{number}")
            assert first is not None
            stack.enter_context(first)
            assert is_served(service, f"127.0.1.{number}") is None
