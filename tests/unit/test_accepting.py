"""What an error of accept means: a shortage, a request that is gone, or nothing we know."""

import errno
import socket
import ssl
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from prefork.metrics.facts import AcceptError
from prefork.metrics.scoreboard import HEADER_WORDS
from prefork.workers.accepting import IN_VAIN, Accepted, NotAccepted, accept_error, is_resource_error, is_shortage
from prefork.workers.plain_accept import accepted_by


@pytest.mark.parametrize(
    ("number", "fact", "shortage"),
    [
        (errno.EMFILE, AcceptError.EMFILE, True),
        (errno.ENFILE, AcceptError.ENFILE, True),
        (errno.ENOBUFS, AcceptError.NOMEM, True),
        (errno.ENOMEM, AcceptError.NOMEM, True),
        (errno.ECONNABORTED, AcceptError.ABORTED, False),
        (errno.EPERM, AcceptError.OTHER, False),
    ],
)
def test_system_errors(number: int, fact: AcceptError, shortage: bool) -> None:
    """Four numbers say that descriptors or memory are short; the rest cost one request."""
    exc = OSError(number, "as the kernel says it")
    assert (accept_error(exc), is_resource_error(exc)) == (fact, shortage)


@pytest.mark.parametrize(
    "exc",
    [OSError("no number"), ssl.SSLError(errno.ENOMEM, "not an errno"), ssl.SSLError(errno.EMFILE, "not one either")],
)
def test_numbers_that_are_no_errno(exc: OSError) -> None:
    """The number of a TLS error is OpenSSL's, and an OSError may have none."""
    assert accept_error(exc) is AcceptError.OTHER
    assert not is_resource_error(exc)


@pytest.fixture
def listener() -> Iterator[socket.socket]:
    """A listener with one client in its queue."""
    with socket.create_server(("127.0.0.1", 0)) as listener, socket.create_connection(listener.getsockname()):
        yield listener


@pytest.mark.parametrize("timeout", [None, 10.0])
@pytest.mark.parametrize("default", [None, 5.0])
def test_accepted(timeout: float | None, default: float | None, listener: socket.socket) -> None:
    """What is accepted is what socket.accept() returns: class, kind, address, and timeout."""
    listener.settimeout(timeout)
    socket.setdefaulttimeout(default)
    try:
        with socket.create_connection(listener.getsockname()):
            (ours, ours_address), (theirs, theirs_address) = accepted_by(listener), listener.accept()
    finally:
        socket.setdefaulttimeout(None)
    with ours, theirs:
        assert type(ours) is type(theirs) is socket.socket
        kinds = [(each.family, each.type, each.proto, each.gettimeout(), each.getblocking()) for each in (ours, theirs)]
        assert kinds[0] == kinds[1]
        assert ours_address[0] == theirs_address[0]
        assert ours.getpeername() == ours_address


def test_accept_of_the_programs_own(listener: socket.socket) -> None:
    """A class of sockets with an `accept()` of its own has it called."""

    class Own(socket.socket):
        def accept(self) -> tuple[socket.socket, object]:
            return super().accept()[0], "mine"

    with Own(fileno=listener.detach()) as own:
        request, address = accepted_by(own)
        request.close()
    assert address == "mine"


@pytest.mark.parametrize(
    ("exc", "short"),
    [
        (OSError(errno.EAGAIN, "no process"), True), (OSError(errno.ENOMEM, "no memory"), True),
        (OSError(errno.EPERM, "no"), False), (RuntimeError("can't start new thread"), True),
        (RuntimeError("another"), False), (ValueError("no number"), False),
    ],
)  # fmt: skip
def test_what_a_shortage_is(exc: Exception, short: bool) -> None:
    """No process or thread can be had; what has no number at all is none."""
    assert is_shortage(exc) == short


class Proxy:
    """An object that stands for a socket, and passes on whatever it is asked."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock

    def __getattr__(self, name: str) -> Any:
        return getattr(self._sock, name)


def test_a_listener_that_is_no_socket() -> None:
    """An object that stands for one is asked itself; so is one with an `accept` of its own."""

    class Own(socket.socket):
        pass

    with socket.create_server(("127.0.0.1", 0)) as listener, Own(fileno=listener.detach()) as own:
        for each in (Proxy(own), own):
            with socket.create_connection(own.getsockname()) as client:
                request, address = accepted_by(each)
                assert (request.getpeername(), address) == (client.getsockname(), client.getsockname())
                request.close()
        own.accept = lambda: ("a request", "somebody")  # type: ignore[method-assign,assignment,return-value]
        assert accepted_by(own) == ("a request", "somebody")


HUNG = 30.0
SHUT, NOTHING_NOW = OSError(errno.EINVAL, "invalid"), BlockingIOError(errno.EAGAIN, "nothing now")


class Two:
    """Two threads that accept at a listener; each is told something by the steps of the other."""

    def __init__(self) -> None:
        self.told: list[bool] = []
        self.meanwhile: dict[object, Callable[[], object]] = {}  # once, where the one thread is: "asked", True or False
        self.others: list[threading.Thread] = []
        self.failed = NotAccepted(memoryview(bytearray(8 * HEADER_WORDS)).cast("Q"), self._is_shut, self._on_shut)

    def _is_shut(self) -> bool:
        self._meet("asked")
        return True

    def _on_shut(self, shut: bool) -> None:
        self._meet(shut)
        self.told.append(shut)

    def _meet(self, where: object) -> None:
        """Begin the other's step; it waits for this one's, or is done at once."""
        if (step := self.meanwhile.pop(where, None)) is not None:
            other = threading.Thread(target=step)
            self.others.append(other)
            other.start()
            other.join(0.05)  # an input: as long as it would take if it did not wait

    def join(self) -> None:
        for each in self.others:
            each.join(HUNG)

    @property
    def known(self) -> bool:
        """Whether it is known to be shut down, as the next accept that finds nothing has it."""
        return self.failed._known_shut


def test_something_comes_while_it_is_told_to_be_shut() -> None:
    """What is told last is that something has come, and that is what is known."""
    two = Two()
    two.meanwhile[True] = two.failed.end
    assert two.failed.count(SHUT) is Accepted.SHUT
    two.join()
    assert (two.told, two.known) == ([True, False], False)


def test_shut_down_while_something_is_told_to_have_come() -> None:
    """What is told last is that it is shut down: else who waits would be told of it for ever."""
    two = Two()
    two.failed.count(SHUT)
    two.meanwhile[False] = lambda: two.failed.count(SHUT)
    two.failed.end()
    two.join()
    assert (two.told, two.known) == ([True, False, True], True)


def test_something_comes_before_it_is_told_to_be_shut() -> None:
    """The next that comes is told all the same: nothing that was counted is needed for that."""
    two = Two()
    two.meanwhile["asked"] = two.failed.end
    assert two.failed.count(SHUT) is Accepted.SHUT
    two.join()
    assert (two.told, two.known, bool(two.failed.in_vain)) == ([True], True, True)
    two.failed.end()
    assert (two.told, two.known) == ([True, False], False)


def test_each_number_of_accepts_in_vain_is_some_threads() -> None:
    """Of two threads that find nothing, one asks in the end, whoever counts in between."""

    class Amid(NotAccepted):
        """Another thread counts one more between two steps of this one."""

        amid = True  # at first it is alone

        def __setattr__(self, name: str, value: Any) -> None:
            super().__setattr__(name, value)
            if name == "in_vain" and value > 1 and not self.amid:
                self.amid = True
                outcomes.append(self.count(NOTHING_NOW))
                self.amid = False

    outcomes: list[Accepted] = []
    failed = Amid(memoryview(bytearray(8 * HEADER_WORDS)).cast("Q"), lambda: True, lambda shut: None)
    outcomes.append(failed.count(NOTHING_NOW))
    failed.amid = False
    outcomes += [failed.count(NOTHING_NOW) for _ in range(IN_VAIN)]
    assert Accepted.SHUT in outcomes
