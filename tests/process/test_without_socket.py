"""Servers that have a descriptor to wait for, and no socket: whatever needs none works, and a pool refuses."""

import os
import shutil
import socketserver
from pathlib import Path
from typing import Any

import pytest

import prefork
from tests.process.programs import without_socket
from tests.support.clients.connections import ask
from tests.support.programs.command import running
from tests.support.programs.serving import serving

BASES = [socketserver.BaseServer, prefork.BaseServer]
MIXINS: dict[str, tuple[Any, ...]] = {
    "plain": (), "counted": (prefork.SupervisedMixIn,), "threaded": (prefork.ThreadingMixIn,),
    "forked": (prefork.ForkingMixIn,),
}  # fmt: skip
CASES = [(mixin, base) for mixin in MIXINS for base in BASES if MIXINS[mixin] or base is prefork.BaseServer]


def answered(server_address: str, tmp_path: Path) -> bool:
    """Ask through the pipe, by way of another one."""

    path = tmp_path / "answer"
    os.mkfifo(path)
    with open(server_address, "w") as pipe:
        pipe.write(str(path))
    answer = path.read_text()
    path.unlink()
    return answer == "answered"


@pytest.mark.parametrize("metrics", [None, ("127.0.0.1", 0)])
@pytest.mark.parametrize(("mixin", "base"), CASES)
def test_a_pipe(mixin: str, base: Any, metrics: Any, tmp_path: Path) -> None:
    """A request is whatever `get_request()` makes of what `fileno()` is readable for; metrics are served as well."""
    server = type("Server", (*MIXINS[mixin], without_socket.piped(base)), {"metrics_address": metrics})()
    with serving(server):
        assert answered(server.server_address, tmp_path)
        assert answered(server.server_address, tmp_path)
    if mixin != "plain":
        assert server.statistics().completed == 2


@pytest.mark.parametrize("base", BASES)
@pytest.mark.parametrize("mixin", MIXINS)
def test_an_epoll(mixin: str, base: Any) -> None:
    """So too where that is an epoll."""
    server = type("Server", (*MIXINS[mixin], without_socket.polled(base)), {})()
    with serving(server):
        for sock in server.both:
            assert ask(sock.getsockname(), b"word\n") == b"WORD\n"


@pytest.mark.parametrize("base", BASES)
def test_handle_request(base: Any, tmp_path: Path) -> None:
    """`handle_request()` waits for the server's `timeout`, since there is no socket that has one."""
    server = type("Server", (prefork.ThreadingMixIn, without_socket.piped(base)), {"timeout": 0})()
    timed_out = []
    server.handle_timeout = lambda: timed_out.append(True)
    with server:
        server.handle_request()
    assert timed_out == [True]


@pytest.mark.parametrize("base", BASES)
def test_a_pool_refuses(base: Any) -> None:
    """In one sentence, before anything is forked: what workers cannot share, and what to do."""
    with type("Piped", (prefork.PreForkingMixIn, without_socket.piped(base)), {})() as server:
        with pytest.raises(prefork.ConfigError) as caught:
            server.serve_forever()
        assert str(caught.value) == (
            "could not serve from a pool: Piped has no socket that workers could share; serve it without "
            "PreForkingMixIn, or with --single"
        )
    with type("Polled", (prefork.PreForkingMixIn, without_socket.polled(base)), {})() as server:
        server.socket = server.both[0]
        with pytest.raises(prefork.ConfigError) as caught:
            server.serve_forever()
        assert str(caught.value) == (
            "could not serve from a pool: workers cannot wait together for what Polled.fileno() names (invalid "
            "argument); make a server of each socket, or serve it without PreForkingMixIn"
        )


@pytest.mark.parametrize("target", ["Piped", "PipedOver"])
def test_single(target: str, tmp_path: Path) -> None:
    """With `--single` it is served, in the one process that there is."""
    shutil.copy(without_socket.__file__, tmp_path / "app.py")
    with running(["run", f"app:{target}", "--bind", "127.0.0.1:0", "--single"], cwd=tmp_path) as run:
        assert answered(run.address, tmp_path)
