"""Hooks that are no plain methods: each is called as the standard library would, and the requests are counted."""

import ast
import functools
import socketserver
from collections.abc import Callable, Iterator
from typing import Any
from unittest import mock

import pytest

import prefork
from prefork.inheritance.standard_classes import process_in_place
from prefork.run_mode import RunMode, run_as
from tests.process.test_precedence import EACH, LOOPBACK, OF_POOLS, OF_THREADS, STANDARD, Answer, Ledger, served
from tests.support.clients.connections import ask
from tests.support.programs.serving import serving

MIXINS: dict[str, tuple[Any, ...]] = {
    "threaded": (prefork.ThreadingMixIn,),
    "forked": (prefork.ForkingMixIn,),
    "pool": (prefork.PreForkingMixIn,),
    "pool of standard threads": (prefork.PreForkingMixIn, socketserver.ThreadingMixIn),
    "forked ahead": (prefork.PreForkingMixIn, prefork.ForkingMixIn),
    "single": (prefork.PreForkingMixIn, prefork.ThreadingMixIn),
}

Call = Callable[..., Any]


class CallableObject:
    def __init__(self, call: Call) -> None:
        self.call = call

    def __call__(self, *args: Any) -> Any:
        return self.call(*args)


class Assignable:
    """A hook with a setter of its own."""

    def __init__(self, call: Call) -> None:
        self.call = call

    def __get__(self, server: Any, owner: type) -> Any:
        return self if server is None else self.call

    def __set__(self, server: Any, value: Any) -> None:
        raise AssertionError("nobody but the program assigns here")


KINDS: dict[str, Callable[[Call], Any]] = {
    "a static method": staticmethod,
    "a class method": lambda call: classmethod(lambda cls, *args: call(*args)),
    "a partial": functools.partial,
    "an object": CallableObject,
    "a property": lambda call: property(lambda self: call),
    "a cached property": lambda call: functools.cached_property(lambda self: call),
    "a descriptor that can be assigned": Assignable,
    "a partial method": lambda call: functools.partialmethod(lambda self, first, *args: call(*args), "first"),
}
WHEN = ["before the constructor", "after the constructor"]


@pytest.fixture
def ledger() -> Iterator[Ledger]:
    made = Ledger()
    yield made
    made.close()


@pytest.fixture
def mode(mixin: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    for cls in STANDARD:
        monkeypatch.setattr(cls, "process_request", cls.process_request)
    before = run_as(RunMode.SINGLE if mixin == "single" else RunMode.SERVE)
    yield
    run_as(before)


def names_for(mixin: str) -> list[str]:
    threaded = {prefork.ThreadingMixIn, socketserver.ThreadingMixIn} & set(MIXINS[mixin])
    pool = prefork.PreForkingMixIn in MIXINS[mixin] and mixin != "single"
    return [*EACH, "handle_error", "service_actions", *(OF_THREADS if threaded else []), *(OF_POOLS if pool else [])]


def calls(ledger: Ledger, names: list[str], base: type, made: list[Any]) -> dict[str, Call]:
    """By name, what notes it and calls the definition of `base`."""

    def call(name: str) -> Call:
        def noted(*args: Any) -> Any:
            ledger.note(name)
            return getattr(base, name)(made[0], *args)

        return noted

    return {name: call(name) for name in names}


@pytest.mark.once
@pytest.mark.usefixtures("mode")
@pytest.mark.parametrize("base", [prefork.TCPServer, socketserver.TCPServer])
@pytest.mark.parametrize("mixin", MIXINS)
@pytest.mark.parametrize("kind", [*KINDS, *WHEN])
def test_each_kind(kind: str, mixin: str, base: Any, ledger: Ledger, caplog: pytest.LogCaptureFixture) -> None:
    """Every hook may be an attribute of any kind that can be called, of the class or of the object."""
    made: list[Any] = []
    bases = (*MIXINS[mixin], base)
    names = names_for(mixin)
    plain: Any = type("Plain", bases, {"max_children": 1})
    hooks = calls(ledger, names, plain, made)

    class OnObject(plain):  # type: ignore[misc]
        def __init__(self, *args: Any) -> None:
            if kind == WHEN[0]:
                self.__dict__.update(hooks)
            super().__init__(*args)
            if kind == WHEN[1]:
                for name, hook in hooks.items():
                    setattr(self, name, hook)

    cls: Any = OnObject
    if kind in KINDS:
        cls = type("Server", (plain,), {name: KINDS[kind](hook) for name, hook in hooks.items()})
        for name in names:
            if (name_it := getattr(vars(cls)[name], "__set_name__", None)) is not None:
                name_it(cls, name)
    server = cls(LOOPBACK, Answer)
    made.append(server)
    if mixin == "single":
        process_in_place(server)
    served(server)
    caplog.clear()
    assert ledger.called() == set(names)
    assert (server.statistics().completed, server.statistics().failed) == (1, 1)


class Counting:
    def __init__(self, call: Call) -> None:
        self.call = call
        self.calls = 0

    def __call__(self, *args: Any) -> Any:
        self.calls += 1
        return self.call(*args)


class Counted(socketserver.BaseRequestHandler):
    """Answers with what each hook has counted, and changes the count."""

    def handle(self) -> None:
        hooks = {name: getattr(self.server, name) for name in (*EACH, "handle_error")}
        told = {name: hook.calls for name, hook in hooks.items()}
        for hook in hooks.values():
            hook.calls += 100
        again = {name: getattr(self.server, name).calls - 100 for name in hooks}
        self.request.sendall(repr([told, again]).encode())


def of_objects(server: Any) -> None:
    for name in (*EACH, "handle_error"):
        setattr(server, name, Counting(getattr(server, name)))


def of_functions(server: Any) -> None:
    """Functions that count by an attribute of their own."""

    def counting(call: Call) -> Any:
        def counted(*args: Any) -> Any:
            own.calls += 1
            return call(*args)

        own: Any = counted
        own.calls = 0
        return own

    for name in (*EACH, "handle_error"):
        setattr(server, name, counting(getattr(server, name)))


@pytest.mark.parametrize("base", [prefork.TCPServer, socketserver.TCPServer])
@pytest.mark.parametrize("mixin", [name for name in MIXINS if name != "single"])
@pytest.mark.parametrize("put_there", [of_objects, of_functions])
def test_attributes_of_hooks(put_there: Any, mixin: str, base: Any) -> None:
    """What a hook has on it, as a Mock its calls, is there wherever the server is asked for the hook, and may be
    changed there."""
    server: Any = type("Server", (*MIXINS[mixin], base), {"max_children": 1})(LOOPBACK, Counted)
    put_there(server)
    with serving(server):
        told, again = ast.literal_eval(ask(server.server_address, b"").decode())
    begun = {"get_request": 1, "verify_request": 1, "process_request": 1, "finish_request": 1}
    assert told == again == {**dict.fromkeys(EACH, 0), "handle_error": 0, **begun}


@pytest.mark.parametrize("base", [prefork.TCPServer, socketserver.TCPServer])
@pytest.mark.parametrize("name", ["finish_request", "process_request_thread", "process_request", "verify_request"])
def test_patched_while_it_serves(name: str, base: Any, ledger: Ledger) -> None:
    """What a test puts into the class of a server that serves is called, as long as it is there."""
    cls: Any = type("Server", (prefork.ThreadingMixIn, base), {})
    server = cls(LOOPBACK, Answer)
    original = getattr(cls, name)

    def noted(self: Any, *args: Any) -> Any:
        ledger.note(name)
        return original(self, *args)

    with serving(server):
        assert ask(server.server_address, b"before") == b"before"
        with mock.patch.object(cls, name, noted):
            assert ask(server.server_address, b"while") == b"while"
        ledger.note("after")
        assert ask(server.server_address, b"after") == b"after"
    assert ledger.calls() == [name, "after"]
    assert server.statistics().completed == 3
    assert vars(server).get(name) is None
