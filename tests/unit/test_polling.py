"""Poll objects, of both kinds."""

import select
import socket
from typing import Any

import pytest

from prefork.workers import polling

READY = 0.02  # seconds, of a wait in which nothing comes


@pytest.mark.parametrize("kind", [select.poll, polling._Select])
def test_kinds(kind: Any) -> None:
    """What was registered is reported when it is readable, until it is unregistered."""
    poll = kind()
    one, other = socket.socketpair()
    with one, other:
        poll.register(one.fileno(), polling.READ)
        assert poll.poll(polling.ms(READY)) == []
        other.send(b"x")
        assert [fd for fd, _ in poll.poll()] == [one.fileno()]
        poll.unregister(one.fileno())
        assert poll.poll(polling.ms(READY)) == []


@pytest.mark.parametrize(("seconds", "expected"), [(None, None), (0.0, 0), (0.0001, 1), (0.5, 500), (0.5001, 501)])
def test_a_wait_is_never_too_short(seconds: float | None, expected: int | None) -> None:
    """Milliseconds are rounded up, so that a loop whose moment has not come does not spin until then."""
    assert polling.ms(seconds) == expected
