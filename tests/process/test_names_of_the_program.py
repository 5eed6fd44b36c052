"""A program's server object is the program's: we keep one attribute on it, of a name that nobody uses."""

import socket
from pathlib import Path
from typing import Any

import pytest

import prefork
from prefork import BaseRequestHandler, TCPServer, UDPServer, UnixDatagramServer, UnixStreamServer
from tests.process.programs.former_names import FORMER
from tests.process.test_composition import POOL, ROWS
from tests.support.clients.connections import ask
from tests.support.programs.service import Service, script
from tests.support.programs.serving import serving

OURS = "_prefork_"
STANDARD = {
    "_BaseServer__is_shut_down",
    "_BaseServer__shutdown_request",
    "_handle_request_noblock",
    "_threads",
}  # the standard library's own: used there, and read by its tests


@pytest.mark.parametrize("bases", ROWS)
def test_every_former_name_of_ours(bases: str, tmp_path: Path) -> None:
    """A class that uses each of them for something of its own serves, is counted and ends as any other, and has what it
    put there."""
    pool = ROWS[bases].settings is None
    definitions = f"from tests.process.programs.former_names import {'Hooks' if pool else 'Plain as Hooks'}"
    settings = ROWS[bases].settings or (POOL if pool else {})
    with Service(tmp_path, script(definitions, bases=bases, **settings)) as service:
        if pool:
            service.wait_ready(2)
        assert int(ask(service.address, b"pid\n"))
    names = service.wait("names")
    assert (names["lost"], names["ours"]) == ([], [OURS])


@pytest.mark.parametrize("cls", [TCPServer, UDPServer, UnixStreamServer, UnixDatagramServer])
def test_every_former_name_in_a_plain_server(cls: type[TCPServer], tmp_path: Path) -> None:
    """A server without a mix-in leaves all these names to the program as well."""
    names = dict.fromkeys(FORMER, "mine")
    where = str(tmp_path / "s") if cls.address_family == socket.AF_UNIX else ("127.0.0.1", 0)
    server = type("Server", (cls,), names)(where, BaseRequestHandler)
    vars(server).update(names)
    with serving(server):
        server.shutdown()
    assert {name: getattr(server, name) for name in FORMER} == names
    assert [name for name in vars(server) if name.startswith("_") and name not in FORMER] == [OURS]


VALUES = {"draining": "mine", "metrics_server_address": "mine", "rehearsing": "mine", "slot": "mine"}


@pytest.mark.parametrize("bases", [(prefork.ThreadingMixIn, TCPServer), (prefork.PreForkingMixIn, TCPServer)])
@pytest.mark.parametrize("in_class", [True, False])
def test_a_value_of_ours_may_be_the_programs(bases: tuple[type, ...], in_class: bool) -> None:
    """A program that has something of its own under such a name keeps it, in its class or on the object."""
    server_class: Any = type("Server", bases, VALUES if in_class else {})
    with server_class(("127.0.0.1", 0), BaseRequestHandler) as server:
        if not in_class:
            assert {getattr(server, name) for name in VALUES if hasattr(server, name)} <= {None, False}
            for name, value in VALUES.items():
                setattr(server, name, value)
        assert {name: getattr(server, name) for name in VALUES} == VALUES


@pytest.mark.parametrize("name", [name for name in prefork.__all__ if name.endswith(("Server", "MixIn"))])
def test_no_other_private_name(name: str) -> None:
    """No class of ours that a program derives from defines a private name but that one, and the standard library's."""
    for cls in getattr(prefork, name).__mro__:
        if cls.__module__.startswith("prefork."):
            private = {each for each in vars(cls) if each.startswith("_") and not each.startswith("__")}
            assert private <= {OURS, *STANDARD}, cls
