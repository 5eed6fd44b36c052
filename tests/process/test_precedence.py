"""Every public hook and setting, wherever a class of the program's defines it: that definition is the one in force."""

import os
import socketserver
from collections.abc import Iterator
from typing import Any

import pytest

import prefork
from prefork.inheritance.standard_classes import process_in_place
from prefork.run_mode import RunMode, run_as
from prefork.settings.effects import misspelt
from prefork.settings.fields import settings
from prefork.workers.definitions import is_the_programs
from tests.support.clients.connections import ask
from tests.support.programs.serving import HUNG, serving

LOOPBACK = ("127.0.0.1", 0)
BASES: dict[str, Any] = {"over ours": prefork.TCPServer, "over the standard library's": socketserver.TCPServer}
PLACES = ["on the instance", "in the class", "before the mix-in", "between the mix-ins", "behind the mix-ins"]
MIXINS: dict[str, tuple[Any, ...]] = {
    "counted": (prefork.SupervisedMixIn,),
    "threaded": (prefork.ThreadingMixIn,),
    "forked": (prefork.ForkingMixIn,),
    "standard threads": (prefork.SupervisedMixIn, socketserver.ThreadingMixIn),
    "pool": (prefork.PreForkingMixIn,),
    "pool of threads": (prefork.PreForkingMixIn, prefork.ThreadingMixIn),
    "pool of standard threads": (prefork.PreForkingMixIn, socketserver.ThreadingMixIn),
    "forked ahead": (prefork.PreForkingMixIn, prefork.ForkingMixIn),
    "standard forked ahead": (prefork.PreForkingMixIn, socketserver.ForkingMixIn),
}
STANDARD = (socketserver.ThreadingMixIn, socketserver.ForkingMixIn)

ONCE = ["serve_forever", "server_bind", "server_activate", "server_close", "shutdown"]
EACH = ["get_request", "verify_request", "process_request", "finish_request", "shutdown_request", "close_request"]
HOOKS = [*ONCE, *EACH, "handle_error", "service_actions"]
OF_THREADS = ["process_request_thread"]
OF_POOLS = ["worker_started", "worker_stopping"]


class Answer(socketserver.BaseRequestHandler):
    def handle(self) -> None:
        word = self.request.recv(100)
        if word == b"fail":
            raise LookupError("asked to")
        self.request.sendall(word)


class Ledger:
    """The names of the hooks that were called, in any process."""

    def __init__(self) -> None:
        self._read, self._write = os.pipe()
        os.set_blocking(self._read, False)

    def note(self, name: str) -> None:
        os.write(self._write, f"{name}\n".encode())

    def calls(self) -> list[str]:
        return os.read(self._read, 1 << 16).decode().split()

    def called(self) -> set[str]:
        return set(self.calls())

    def close(self) -> None:
        os.close(self._read)
        os.close(self._write)


@pytest.fixture
def ledger() -> Iterator[Ledger]:
    made = Ledger()
    yield made
    made.close()


def hooks(ledger: Ledger, names: list[str]) -> type:
    """A class with these hooks, each of which calls the next definition."""

    def hook(name: str) -> Any:
        def noted(self: Any, *args: Any, **kwargs: Any) -> Any:
            ledger.note(name)
            mine = [cls for cls in type(self).__mro__ if vars(cls).get(name) is noted]
            following = getattr(super(mine[-1], self), name, None)
            return following(*args, **kwargs) if following is not None else None

        return noted

    return type("Hooks", (), {name: hook(name) for name in names})


def put_on(server: Any, ledger: Ledger, names: list[str]) -> None:
    def hook(name: str) -> Any:
        found = getattr(server, name)

        def noted(*args: Any, **kwargs: Any) -> Any:
            ledger.note(name)
            return found(*args, **kwargs)

        return noted

    vars(server).update({name: hook(name) for name in names})


def made(place: str, mixins: tuple[Any, ...], base: Any, members: Any) -> Any:
    """A server class that has what `members` defines in that place."""
    names = {"max_children": 1} if prefork.PreForkingMixIn in mixins else {}
    own = {name: value for name, value in vars(members).items() if not name.startswith("__")}
    if place == "behind the mix-ins":
        return type("Server", (*mixins, type("Base", (members, base), {})), names)
    if place == "between the mix-ins":
        return type("Server", (mixins[0], type("Mine", (members, *mixins[1:], base), {})), names)
    if place == "before the mix-in":
        return type("Server", (members, *mixins, base), names)
    if place == "in the class":
        return type("Server", (*mixins, base), names | own)
    return type("Server", (*mixins, base), names)


def expected(place: str, mixin: str, names: list[str], *, pool: bool) -> set[str]:
    """All, but what nobody can call: a pool has a loop of its own, and a mix-in of the standard library's is there to
    replace what stands behind it."""
    wanted = set(names)
    if place == "on the instance":
        wanted -= {"server_bind", "server_activate"}  # it is bound by then
    mixins = {"between the mix-ins": MIXINS[mixin][:1], "behind the mix-ins": MIXINS[mixin]}.get(place, ())
    if pool and mixins:
        wanted -= {"serve_forever"}
    if {prefork.ThreadingMixIn, prefork.ForkingMixIn, *STANDARD} & set(mixins):
        wanted -= {"process_request"}
        wanted -= set(OF_THREADS)
    if socketserver.ForkingMixIn in mixins:
        wanted -= {"service_actions"}
    return wanted


def hooks_of(mixin: str) -> list[str]:
    threaded = {prefork.ThreadingMixIn, socketserver.ThreadingMixIn} & set(MIXINS[mixin])
    return [*HOOKS, *(OF_THREADS if threaded else [])]


def served(server: Any) -> None:
    """Two requests, one of which fails."""
    with serving(server):
        assert ask(server.server_address, b"word") == b"word"
        assert ask(server.server_address, b"fail") == b""


@pytest.mark.once
@pytest.mark.parametrize("base", BASES)
@pytest.mark.parametrize("mixin", MIXINS)
@pytest.mark.parametrize("place", PLACES)
def test_hooks(place: str, mixin: str, base: str, ledger: Ledger, caplog: pytest.LogCaptureFixture) -> None:
    """Each is called, in the process where it runs."""
    mixins = MIXINS[mixin]
    pool = prefork.PreForkingMixIn in mixins
    names = hooks_of(mixin) + (OF_POOLS if pool else [])
    server = made(place, mixins, BASES[base], hooks(ledger, names))(LOOPBACK, Answer)
    if place == "on the instance":
        put_on(server, ledger, names)
    served(server)
    caplog.clear()
    assert ledger.called() == expected(place, mixin, names, pool=pool)
    if socketserver.ForkingMixIn not in mixins:
        assert (server.statistics().completed, server.statistics().failed) == (1, 1)


@pytest.fixture
def single(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Serve as `prefork run --single`, in this process; afterwards the standard library's classes are as they were."""
    for cls in STANDARD:
        monkeypatch.setattr(cls, "process_request", cls.process_request)
    before = run_as(RunMode.SINGLE)
    yield
    run_as(before)


@pytest.mark.once
@pytest.mark.usefixtures("single")
@pytest.mark.parametrize("base", BASES)
@pytest.mark.parametrize("mixin", [name for name in MIXINS if prefork.PreForkingMixIn in MIXINS[name]])
@pytest.mark.parametrize("place", PLACES)
def test_hooks_with_single(place: str, mixin: str, base: str, ledger: Ledger, caplog: pytest.LogCaptureFixture) -> None:
    """The same in the one process that there is, whatever mix-ins would have done."""
    names = hooks_of(mixin)
    server = made(place, MIXINS[mixin], BASES[base], hooks(ledger, names))(LOOPBACK, Answer)
    process_in_place(server)
    if place == "on the instance":
        put_on(server, ledger, names)
    served(server)
    caplog.clear()
    assert ledger.called() == expected(place, mixin, names, pool=False)
    assert (server.statistics().completed, server.statistics().failed) == (1, 1)


VALUES: dict[str, Any] = {
    "service_name": "mine", "allow_reuse_address": False, "companions": {}, "inherited_fd": None, **{
        name: object() for name in settings(prefork.PreForkingTCPServer)
    },
}  # fmt: skip
OWN_HOOKS = ["worker_started", "worker_draining", "worker_stopping", "handle_error", "handle_request", "shutdown",
             "statistics", "reload", "slot", "draining"]  # fmt: skip


@pytest.mark.parametrize("base", BASES)
@pytest.mark.parametrize("place", PLACES[1:])
def test_settings(place: str, base: str) -> None:
    """The program's value is the one in force, of every setting and every hook of ours; so is a method of its own that
    has the name of one of ours."""
    values = VALUES | {name: lambda self: None for name in OWN_HOOKS}
    mixins = (prefork.PreForkingMixIn, prefork.ThreadingMixIn, prefork.ForkingMixIn)
    if place == "in the class":
        server = type("Server", (*mixins, BASES[base]), values)
    else:
        server = made(place, (prefork.PreForkingMixIn, prefork.ThreadingMixIn), BASES[base], type("Mine", (), values))
        values.pop("max_children")  # which the class itself says
    assert {name: vars(server).get(name, getattr(server, name)) for name in values} == values


def test_a_loop_that_is_not_called(caplog: pytest.LogCaptureFixture) -> None:
    """A pool has its own loop, and says whose it does not call; a plain server calls the program's, and its loop is
    ours: it ends at once, before the first poll."""
    called = []

    class Base(socketserver.TCPServer):
        def serve_forever(self, poll_interval: float = HUNG) -> None:
            called.append(type(self).__name__)
            super().serve_forever(poll_interval)
            self.server_close()

    pool = type("Pool", (prefork.PreForkingMixIn, Base), {"max_children": 1})(LOOPBACK, Answer)
    plain = type("Plain", (prefork.ThreadingMixIn, Base), {})(LOOPBACK, Answer)
    for server in (pool, plain):
        with serving(server, poll_interval=HUNG):
            assert ask(server.server_address, b"word") == b"word"
    assert called == ["Plain"]
    assert [message for record in caplog.records if "serve_forever()" in (message := record.message)] == [
        "serve_forever() of test_a_loop_that_is_not_called.<locals>.Base has no effect: a pool is served by the one of "
        "PreForkingMixIn"
    ]


@pytest.mark.parametrize("base", BASES)
def test_a_shutdown_for_a_loop_that_is_not_called(base: str) -> None:
    """A program's `shutdown()` that tells only its own loop to end is called, and ends the pool as well."""

    def serve_forever(self: Any, poll_interval: float = HUNG) -> None:
        while not self.stopped:
            self.handle_request()

    def shutdown(self: Any) -> None:
        self.stopped = True

    loop = {"stopped": False, "serve_forever": serve_forever, "shutdown": shutdown}
    their: Any = type("Base", (BASES[base],), loop)
    server: Any = type("Pool", (prefork.PreForkingMixIn, their), {"max_children": 1})(LOOPBACK, Answer)
    with serving(server):
        assert ask(server.server_address, b"word") == b"word"
        assert not server.stopped
    assert server.stopped
    assert "shutdown" not in vars(server)


@pytest.mark.parametrize("base", BASES)
def test_other_names_of_the_loop(base: str) -> None:
    """What the program has called by another name when its class was defined is ours all the same."""
    loop = BASES[base].serve_forever
    git = type("Git", (BASES[base],), {"serve": loop, "stop": BASES[base].shutdown, "once": BASES[base].handle_request})
    pool: Any = type("Pool", (prefork.PreForkingMixIn, git), {})
    assert pool.serve is prefork.PreForkingMixIn.serve_forever
    assert pool.stop is prefork.PreForkingMixIn.shutdown
    plain: Any = type("Plain", (prefork.ThreadingMixIn, git), {})
    assert plain.serve is prefork.SupervisedMixIn.serve_forever
    assert vars(git)["serve"] is loop


@pytest.mark.parametrize("over", [socketserver.BaseServer, prefork.BaseServer])
@pytest.mark.parametrize("cls", [prefork.ForkingTCPServer, prefork.ThreadingTCPServer, prefork.PreForkingTCPServer])
def test_hooks_over_base_server(over: Any, cls: Any) -> None:
    """A class with hooks alone, over BaseServer, may stand first: it hides nothing."""
    ours, theirs = os.pipe()
    hooks = type("Hooks", (over,), {"verify_request": lambda self, *args: bool(os.write(theirs, b"verified\n"))})
    server = type("Server", (hooks, cls), {"max_children": 1})(LOOPBACK, Answer)
    with serving(server):
        assert ask(server.server_address, b"word") == b"word"
    assert os.read(ours, 100) == b"verified\n"
    assert server.statistics().completed == 1
    os.close(ours)
    os.close(theirs)


def test_hooks_that_leave_ours_out() -> None:
    """One that calls the next definition, which is BaseServer's, would leave out ours: it is refused."""

    class Hooks(socketserver.BaseServer):
        def server_close(self) -> None:
            super().server_close()

    with pytest.raises(TypeError, match="Hooks comes before the mix-in and would hide it; write the mix-in first"):
        type("Server", (Hooks, prefork.ForkingTCPServer), {})


def test_active_children_of_the_program() -> None:
    """`active_children` can be assigned, as in the standard library."""
    with prefork.ForkingTCPServer(LOOPBACK, Answer) as server:
        assert server.active_children is None
        server.active_children = {1}
        assert server.active_children == {1}


@pytest.mark.parametrize("place", PLACES[1:])
def test_socket_with_a_default(place: str) -> None:
    """A class that says that there is no socket yet has one all the same."""
    cls = made(place, (prefork.PreForkingMixIn,), socketserver.TCPServer, type("Mine", (), {"socket": None}))
    server = cls(LOOPBACK, Answer)
    with serving(server):
        assert ask(server.server_address, b"word") == b"word"


def nameless(name: str, *bases: Any, **hooks: Any) -> Any:
    """A class, as defined by code that is executed in a namespace without a name."""
    for each in hooks.values():
        each.__module__ = None
    return type(name, bases, {**hooks, "__module__": None})


@pytest.mark.parametrize("place", ["over the mix-ins", "behind the mix-ins"])
@pytest.mark.parametrize("base", BASES)
@pytest.mark.parametrize("mixin", MIXINS)
def test_classes_of_no_module(mixin: str, base: str, place: str) -> None:
    """They are the program's like any others, and what they define is in force."""

    def serve_forever(self: Any, *args: Any) -> None:
        super(with_hooks, self).serve_forever(*args)

    def verify_request(self: Any, *args: Any) -> bool:
        return True

    mixins, over = MIXINS[mixin], place.startswith("over")
    with_hooks = nameless("Hooks", *(mixins if over else ()), BASES[base], serve_forever=serve_forever,
                     verify_request=verify_request)  # fmt: skip
    server_class = nameless("Server", *(() if over else mixins), with_hooks)
    with server_class(LOOPBACK, nameless("Handler", Answer)) as server, serving(server):
        assert is_the_programs(server, "verify_request")
        assert ask(server.server_address, b"x") == b"x"
        assert list(misspelt(server, {})) == []
