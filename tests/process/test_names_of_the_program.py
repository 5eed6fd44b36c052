"""A program's server object is the program's: we keep one attribute on it, of a name that nobody uses."""

import re
import socket
from pathlib import Path

import pytest

import prefork
from prefork import BaseRequestHandler, TCPServer, UDPServer, UnixDatagramServer, UnixStreamServer
from tests.process.test_composition import POOL, ROWS
from tests.support.clients.connections import ask
from tests.support.programs.service import ENDED_BY_TERM, Service, script
from tests.support.programs.serving import serving

OURS = "_prefork_"
STANDARD = {"_handle_request_noblock", "_threads"}  # the standard library's own: used there, and read by its tests
# What we called attributes and methods of a server object once.
FORMER = re.findall(
    r"\w+",
    """
_accept_again_at _adopt_application _adopted _application_bytes _ask_to_drain _bind_control _bind_metrics _birth
_board _closing _control_listener _control_terms _counting _counts_queue_waits _done _end_counting _end_lanes
_end_own_requests _enter _export _extra_fds _family_chosen _final _first _first_slot _first_socket _fold_own
_forget_master _forget_master_signals _forget_supervisor _forked_by_user _generations _given _given_control _has_room
_in_place _is_closed _lane _lane_is_free _lanes _launch _leave_metrics_listener _leave_own_memory _listener _mailbox
_may_accept _may_fork_exporter _metrics_listener _more_lanes _next_turn _no_reload _open_control _own _pack _patience
_pause_accepting _pool _pool_on_trial _rehearsal _run _scoreboard _serve _serve_in_child _serves _service_name
_serving _serving_thread _shortage_logged_at _shutdown_requested _signals_taken _single _spare _supervise _supervisor
_tell_loop_to_end _threaded _threads _turn _turns_seen _wait_for_requests _wait_for_room _wake _wakeup _wants_polling
_watched _work _worker
""",
)

USES_THEM = f"""
import socketserver
STANDARD = {{name for cls in map(socketserver.__dict__.get, socketserver.__all__) for name in vars(cls)}}
FORMER = {FORMER!r}
NAMES = [name for name in FORMER if name not in STANDARD]
THEIRS = ("_BaseServer__", *vars(Told), *FORMER)
class Hooks(Hooks):
    def __init__(self, *args, **kwargs):
        for name in NAMES[::2]:
            setattr(self, name, "mine")
        super().__init__(*args, **kwargs)
    def server_close(self):
        super().server_close()
        tell("names", lost=[name for name in NAMES if getattr(self, name) != "mine"],
             ours=[name for name in vars(self) if name[0] == "_" and not name.startswith(THEIRS)])
for name in NAMES[1::2]:
    setattr(Hooks, name, "mine")
"""


@pytest.mark.parametrize("bases", ROWS)
def test_every_former_name_of_ours(bases: str, tmp_path: Path) -> None:
    """A class that uses each of them for something of its own serves, is counted and ends as any other, and has what it
    put there."""
    pool = ROWS[bases].settings is None
    definitions = USES_THEM if pool else ENDED_BY_TERM + USES_THEM
    settings = ROWS[bases].settings or (POOL if pool else {})
    with Service(tmp_path, script(definitions, bases=bases, **settings)) as service:
        if pool:
            service.wait_ready(2)
        assert int(ask(service.address, b"pid\n"))
    names = service.wait("names")
    assert (names["lost"], names["ours"]) == ([], [OURS])


@pytest.mark.parametrize("cls", [TCPServer, UDPServer, UnixStreamServer, UnixDatagramServer])
def test_every_former_name_in_a_plain_server(cls: type[TCPServer], tmp_path: Path) -> None:
    """So does a server without a mix-in."""
    names = dict.fromkeys(FORMER, "mine")
    where = str(tmp_path / "s") if cls.address_family == socket.AF_UNIX else ("127.0.0.1", 0)
    server = type("Server", (cls,), names)(where, BaseRequestHandler)
    vars(server).update(names)
    with serving(server):
        server.shutdown()
    assert {name: getattr(server, name) for name in FORMER} == names
    assert [name for name in vars(server) if name.startswith("_") and name not in FORMER] == [OURS]


@pytest.mark.parametrize("name", [name for name in prefork.__all__ if name.endswith(("Server", "MixIn"))])
def test_no_other_private_name(name: str) -> None:
    """No class of ours that a program derives from defines a private name but that one, and the standard library's."""
    for cls in getattr(prefork, name).__mro__:
        if cls.__module__.startswith("prefork."):
            private = {each for each in vars(cls) if each.startswith("_") and not each.startswith("__")}
            assert private <= {OURS, *STANDARD}, cls
