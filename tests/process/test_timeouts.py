"""A program's own timeouts for its sockets (`socket.setdefaulttimeout()`, `settimeout()` of the listener): none of them
is a time that we wait, and each is what it was when the pool has ended."""

import signal
from pathlib import Path
from time import monotonic
from typing import Any

import pytest

from tests.process.programs.timeouts import LONG_S
from tests.support.clients.controlling import asked
from tests.support.clients.scraping import get
from tests.support.programs.served import RELOADS
from tests.support.programs.service import Service, script
from tests.support.tools.proc import nothing_for

GRACE_S = 12.0  # a wait of a worker for LONG_S in C would end in a kill
A_WHILE = 0.3

HERE = "from tests.process.programs.timeouts import"
DEFAULT = f"{HERE} Handler, Hooks\nsocket.setdefaulttimeout({LONG_S})"
LISTENER = f"{HERE} Handler, OfListener as Hooks"
IN_WORKER = f"{HERE} Handler, InWorker as Hooks"
# Which timeout, what a connection has then, and what the listener has at the end.
WHERE: dict[str, tuple[str, str, float | None]] = {
    "default": (DEFAULT, str(LONG_S), LONG_S),
    "listener": (LISTENER, "None", LONG_S),
    "in a worker": (IN_WORKER, "None", None),
}


@pytest.mark.timed
@pytest.mark.parametrize(("where", "path"), [*((where, None) for where in WHERE), ("default", "socket")])
def test_no_timeout_of_the_program_is_ours(where: str, path: str | None, tmp_path: Path) -> None:
    """Over idle workers with a request_timeout, control, scrapes, a reload and drains nobody waits for as long as the
    program has its sockets wait: no worker is killed, none is over its time, and no client's connection is changed."""
    definitions, of_connection, of_listener = WHERE[where]
    settings: dict[str, Any] = {"max_children": 3, "graceful_timeout": GRACE_S, "request_timeout": 20.0,
                                "control_socket": "control", "metrics_address": "metrics"}  # fmt: skip
    bases = "PreForkingTCPServer"
    if path is not None:
        bases, settings["address"] = "PreForkingUnixStreamServer", path
    source = script(definitions, bases=bases, **settings)
    with Service(tmp_path, source, env={RELOADS: "1"}) as service:
        service.wait_ready(3)
        began = monotonic()
        with service.hold() as held:
            assert held.ask(b"timeout") == of_connection.encode()
            assert len(asked(tmp_path / "control", "workers")["workers"]) == 3
            nothing_for(A_WHILE, held.sock)
            assert int(held.ask(b"pid")) == held.pid  # a connection that had become non-blocking would be at its end
        after = service.mark()
        asked(tmp_path / "control", "reload")
        service.wait("pool", lambda pool: pool["ready"] == 3 and pool["exits"].get("replaced", 0) >= 3, after=after)
        asked(tmp_path / "control", "status")
        assert get(str(tmp_path / "metrics")).status == 200
        with service.hold() as held:
            service.signal(signal.SIGTERM)
            nothing_for(A_WHILE, held.sock)
        assert service.wait_exit() == 0
        assert monotonic() - began < LONG_S
        ended, left = service.wait("ended"), service.wait("after")
    assert set(ended["exits"]) <= {"replaced", "drained"}, ended["exits"]
    assert (ended["timed_out"], ended["lost"]) == (0, 0)
    assert left["timeout"] == of_listener
    assert left["blocking"] is (of_listener is None)
