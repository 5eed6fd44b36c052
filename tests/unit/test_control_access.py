"""Where the control socket is, and who may use it: the terms, and the listener over a reload. Real sockets, no fork."""

import contextlib
import os
import socket
import stat
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from prefork.control import access
from prefork.control.access import (
    CLIENTS_MAX,
    ControlTerms,
    bind_control,
    listen,
    resumed_listener,
    resumed_terms,
    try_out,
)
from prefork.errors import BindError, ConfigError
from prefork.sockets.listener import Listener

ME, ROOT, NOBODY, SOMEBODY, LOOKS = os.geteuid(), 0, 65534, 54321, 54322


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def terms(path: str = "c", mode: int = 0o600, owner: str | None = None) -> ControlTerms:
    return ControlTerms.read(path, mode, owner, f"nobody, {SOMEBODY}", f" {LOOKS} ,,")


def mode_of(path: str) -> int:
    return stat.S_IMODE(os.stat(path).st_mode)


# The terms.


def test_who_may_what() -> None:
    """Root and we may everything, whom `control_allow` names too, whom `control_allow_read` names may look; others
    nothing."""
    may = {uid: terms().peer(7, uid) for uid in (ME, ROOT, NOBODY, SOMEBODY, LOOKS, LOOKS + 1)}
    assert {uid: peer and peer.looks_only for uid, peer in may.items()} == {
        ME: False, ROOT: False, NOBODY: False, SOMEBODY: False, LOOKS: True, LOOKS + 1: None,
    }  # fmt: skip
    assert all((peer.pid, peer.uid) == (7, uid) for uid, peer in may.items() if peer is not None)
    assert ControlTerms.read("c", 0o600, None, None, None).peer(7, NOBODY) is None


def test_root_may_everything(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where the service runs as somebody else."""
    monkeypatch.setattr(os, "geteuid", lambda: SOMEBODY + 7)
    nobodys = ControlTerms.read("c", 0o600, None, None, None)
    assert [bool(nobodys.peer(7, uid)) for uid in (0, 1, SOMEBODY, SOMEBODY + 7)] == [True, False, False, True]


def test_the_path() -> None:
    """With `unix:` or without; relative ones are where we are."""
    assert terms("unix:c").path == terms("c").path == "c"
    assert (terms().mode, terms().owner, bool(terms().access)) == (0o600, None, True)


def test_who_is_not_there() -> None:
    """A user of a list, or the owner, who is not there is a mistake that names the setting."""
    with pytest.raises(
        ConfigError, match="could not set control_allow to 'root, no-such-user': there is no user no-such"
    ):
        ControlTerms.read("c", 0o600, None, "root, no-such-user", None)
    with pytest.raises(ConfigError, match="could not set control_allow_read to 'no-such-user'"):
        ControlTerms.read("c", 0o600, None, None, "no-such-user")
    with pytest.raises(ConfigError, match="control_owner"):
        ControlTerms.read("c", 0o600, "no-such-user", None, None)


# The listener.


def packed(listener: Listener, of: ControlTerms) -> dict[str, Any]:
    """As the control server hands it over."""
    return {
        "fd": os.dup(listener.fileno()), "path": listener.path, "identity": listener.identity and [*listener.identity],
        "terms": [of.path, of.mode, of.owner, sorted(of.may_command), sorted(of.may_look)],
    }  # fmt: skip


@contextlib.contextmanager
def bound(of: ControlTerms) -> Iterator[Listener]:
    with bind_control(of) as listener:
        yield listener


def test_bound() -> None:
    """The listener never blocks, has the mode that was asked for, and lets sixteen wait."""
    with bound(terms(mode=0o640)) as listener, contextlib.ExitStack() as clients:
        assert mode_of("c") == 0o640
        assert listener.gettimeout() == 0.0
        for _ in range(CLIENTS_MAX + 1):  # the kernel's count is of one more
            client = clients.enter_context(socket.socket(socket.AF_UNIX))
            client.setblocking(False)
            client.connect("c")
        client = clients.enter_context(socket.socket(socket.AF_UNIX))
        client.setblocking(False)
        assert client.connect_ex("c") != 0


def test_where_it_cannot_be() -> None:
    """A folder that is not there is a sentence, and a path that was made is removed again when the rest fails."""
    with pytest.raises(BindError, match="could not bind no/c: no such file or directory"):
        bind_control(terms("no/c"))
    with pytest.raises(ConfigError, match="control_owner"):
        bind_control(ControlTerms("c", 0o600, "no-such-user", frozenset(), frozenset()))
    assert not os.path.lexists("c")


def test_the_terms_go_over() -> None:
    """What the next image reads of them is what they were."""
    before = terms(mode=0o640, owner=f"{ME}")
    with bound(terms()) as listener:
        record = packed(listener, before)
        assert resumed_terms(record) == before
        os.close(record["fd"])


def test_the_same_path_is_the_same_socket() -> None:
    """Over a reload with the same path it is handed over: who connected meanwhile is there, and the path stands."""
    with bound(terms()) as before, socket.socket(socket.AF_UNIX) as client:
        client.connect("c")
        with listen(terms(), packed(before, terms())) as listener:
            assert listener.resumed
            assert listener.stands
            assert listener.path == os.path.abspath("c")
            listener.accept()[0].close()
            listener.unlink()
            assert not os.path.lexists("c")


def test_a_new_mode() -> None:
    """The mode is changed where it is another, and left alone where it is not, whatever somebody did to it."""
    with bound(terms()) as before:
        with listen(terms(mode=0o660), packed(before, terms())):
            assert mode_of("c") == 0o660
        os.chmod("c", 0o606)
        with listen(terms(mode=0o600), packed(before, terms())):
            assert mode_of("c") == 0o606


def test_a_mode_that_cannot_be_set() -> None:
    """A mode that cannot be set is told in a sentence, and leaves the previous image's socket as it was, open."""
    with bound(terms()) as before:
        record = packed(before, terms())
        os.rename("c", "elsewhere")
        os.link("elsewhere", "c")
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("prefork.sockets.ownership.Access.change", refused)
            with pytest.raises(BindError, match="could not set mode and owner of c: operation not permitted"):
                listen(terms(mode=0o660), record)
        with socket.socket(fileno=record["fd"]) as still:
            assert still.getsockname() == before.getsockname()


def refused(*arguments: object) -> None:
    raise PermissionError(1, "Operation not permitted")


@pytest.mark.parametrize("what", ["another path", "gone", "none"])
def test_made_anew(what: str) -> None:
    """For another path, one that was removed, and where the previous image had none, it is a new socket."""
    with bound(terms()) as before:
        record = None if what == "none" else packed(before, terms())
        if what != "another path":
            os.unlink("c")
        path = "d" if what == "another path" else "c"
        with listen(terms(path), record) as listener:
            assert not listener.resumed
            assert listener.path == os.path.abspath(path)
        if record is not None:
            os.close(record["fd"])


def test_what_stands_in_its_place() -> None:
    """Somebody else's file at the path is left as it is, and said: no client could reach us there."""
    with bound(terms()) as before:
        os.unlink("c")
        Path("c").touch(mode=0o600)
        with pytest.raises(BindError, match="could not bind c: it exists and is not a socket"):
            listen(terms(mode=0o666), record := packed(before, terms()))
        os.close(record["fd"])
        assert mode_of("c") == 0o600


def test_tried_out() -> None:
    """A rehearsal binds where the service does not listen, and nothing where it does."""
    with bound(terms()):
        assert try_out(terms(), os.path.abspath("c")) is None
        tried = try_out(terms("d"), os.path.abspath("c"))
        assert tried is not None
        with tried:
            assert os.path.lexists("d")


def test_the_listener_goes_over(monkeypatch: pytest.MonkeyPatch) -> None:
    """It never blocks, and knows its path by the inode, so that only that is removed; without a path it has none."""
    lent: list[socket.socket] = []
    monkeypatch.setattr(access, "handed", lambda: SimpleNamespace(lend=lent.append))
    with bound(terms()) as listener:
        with resumed_listener(packed(listener, terms())) as next_ones:
            assert lent == [next_ones]
            assert (next_ones.gettimeout(), next_ones.identity, next_ones.stands) == (0.0, listener.identity, True)
        listener.path = listener.identity = None
        with resumed_listener(packed(listener, terms())) as next_ones:
            assert (next_ones.identity, next_ones.stands) == (None, False)
        monkeypatch.setattr(access, "handed", lambda: None)
        resumed_listener(packed(listener, terms())).close()
