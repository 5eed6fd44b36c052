"""A program that uses, for things of its own, every name that we gave attributes and methods of a server object once:
each other one on the class, the rest on the object."""

import re
import socketserver
from typing import Any

from tests.support.programs.served import EndedByTerm, Told, tell

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

STANDARD = {name for cls in map(socketserver.__dict__.get, socketserver.__all__) for name in vars(cls)}
NAMES = [name for name in FORMER if name not in STANDARD]
THEIRS = ("_BaseServer__", *vars(Told), *FORMER)


class Hooks(Told):
    def __init__(self, *args: Any, **kwargs: Any) -> None:
        for name in NAMES[::2]:
            setattr(self, name, "mine")
        super().__init__(*args, **kwargs)

    def server_close(self) -> None:
        super().server_close()
        lost = [name for name in NAMES if getattr(self, name) != "mine"]
        tell("names", lost=lost, ours=[name for name in vars(self) if name[0] == "_" and not name.startswith(THEIRS)])


for name in NAMES[1::2]:
    setattr(Hooks, name, "mine")


class Plain(Hooks, EndedByTerm):
    pass
