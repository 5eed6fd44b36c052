"""How many connections are kept, in all and of one client: each counts from its accept to its end, wherever it is."""

import contextlib
import signal
from pathlib import Path
from typing import Any

import pytest

from tests.support.clients.connections import HUNG, Connection, dial
from tests.support.clients.keeping import KINDS, Staying, answered, holder, keeping, releasing, stay, wait_counted
from tests.support.programs.releases import numbered
from tests.support.programs.service import Service

pytestmark = pytest.mark.once  # nothing of it is the interpreter's

TCP = sorted(kind for kind in KINDS if kind != "unix")


def turned_away(service: Service) -> None:
    with Connection(dial(service.address, HUNG)) as client:
        with contextlib.suppress(ConnectionResetError, BrokenPipeError):
            client.sock.sendall(b"pid\n")
            client.wait_end()


def said(client: Staying) -> Staying:
    client.say()
    return client


@pytest.mark.parametrize("kind", TCP)
def test_of_one_client(kind: str, tmp_path: Path) -> None:
    """The third of two is closed, whether the others are in hand, linger or are held; a place that is free is had at
    once, and again and again."""
    with keeping(tmp_path, max_connections_per_client=2, **KINDS[kind]) as service:
        with said(stay(service.address)), said(stay(service.address)) as second:
            turned_away(service)
            wait_counted(service, held=2)
            turned_away(service)
            second.send(b"wait")
            service.wait("waiting")
            turned_away(service)
            (tmp_path / "go on").touch()
            second.heard()
            second.say(b"close")
            second.wait_end()
            for number in range(10):
                with said(stay(service.address)) as client:
                    turned_away(service)
                    if number % 2:
                        wait_counted(service, held=2)
                    client.say(b"close")
                    client.wait_end()
        wait_counted(service, held=0, lingering=0, active=0, queued=0)


def test_of_the_pool(tmp_path: Path) -> None:
    """The same for the limit of all."""
    with keeping(tmp_path, max_connections=3) as service:
        with said(stay(service.address)), said(stay(service.address)) as second, said(stay(service.address)):
            wait_counted(service, held=3)
            turned_away(service)
            second.say(b"close")
            second.wait_end()
            with said(stay(service.address)):
                turned_away(service)


def test_who_dies_takes_its_count_along(tmp_path: Path) -> None:
    """With a worker that is killed goes what it had in hand, with the holder what that had: there is room again, and
    not more than before."""
    with keeping(tmp_path, max_connections_per_client=2) as service:
        with said(stay(service.address)), said(stay(service.address)) as second:
            wait_counted(service, held=2)
            second.send(b"wait")
            pid = service.wait("waiting")["pid"]
            service.signal(signal.SIGKILL, pid)
            second.wait_end()
            wait_counted(service, lost=1)  # the master has reaped it
            with said(stay(service.address)):
                turned_away(service)
                wait_counted(service, held=2)
                service.signal(signal.SIGKILL, holder(service))
                wait_counted(service, held=0, lost=3)
        with said(stay(service.address)), said(stay(service.address)):
            turned_away(service)


def test_over_a_reload(tmp_path: Path) -> None:
    """The next image counts what the one before has kept."""
    with releasing(tmp_path, max_connections_per_client=2) as service:
        with said(stay(service.address)) as first, said(stay(service.address)) as second:
            service.release(numbered(2))
            service.signal(signal.SIGHUP)
            service.wait_reloads(ok=1)
            turned_away(service)
            first.say()
            turned_away(service)
            second.say(b"close")
            second.wait_end()
            with said(stay(service.address)):
                turned_away(service)


@pytest.mark.parametrize("settings", [{"keepalive_timeout": 0.3}, {"max_idle_connections": 1}])
@pytest.mark.parametrize("handler", ["Handler", "Told"])
def test_who_is_ended_by_the_holder(handler: str, settings: dict[str, Any], tmp_path: Path) -> None:
    """There is room again, whether the holder closes it itself, or a worker whose handler wants to hear of it."""
    with keeping(tmp_path, handler, max_connections_per_client=2, **settings) as service:
        for _ in range(3):
            with answered(service.address) as first:
                if "max_idle_connections" in settings:
                    wait_counted(service, held=1)  # so that it is the longest idle one
                with answered(service.address) as second:
                    first.wait_end()
                    second.say(b"close") if "max_idle_connections" in settings else second.wait_end()
            wait_counted(service, held=0, lingering=0, active=0, queued=0)
        assert service.settled()["rejected"] == 0
