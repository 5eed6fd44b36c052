"""Whose definition a server has, told from the class that has it."""

import abc
import inspect
import socketserver
from typing import Any
from unittest import mock

import pytest

import prefork
from prefork.workers.definitions import (
    GivesWay,
    definer,
    evaluated,
    is_patched,
    is_the_programs,
    is_the_programs_class,
    is_the_programs_module,
    of_class,
    put,
)


class Mine(prefork.ThreadingTCPServer):
    def verify_request(self, *args: Any) -> bool:
        return True


class Over(prefork.PreForkingMixIn, socketserver.ThreadingTCPServer):
    pass


@pytest.mark.parametrize(
    ("cls", "name", "theirs"),
    [
        (Mine, "verify_request", True), (Mine, "process_request", False), (Mine, "process_request_thread", False),
        (Over, "process_request", False), (Over, "process_request_thread", False), (Over, "get_request", False),
        (prefork.PreForkingTCPServer, "process_request", False),
        (prefork.PreForkingTCPServer, "process_request_thread", False),  # which it has not at all
    ],
)  # fmt: skip
def test_the_program_defines_it(cls: Any, name: str, theirs: bool) -> None:
    """A name is the program's where the nearest definition is: in a class that is neither ours nor the standard
    library's, or on the object."""
    server = cls.__new__(cls)
    assert is_the_programs(server, name) is theirs
    vars(server)[name] = len
    assert is_the_programs(server, name)


BASES: dict[str, Any] = {"over ours": prefork.TCPServer, "over the standard library's": socketserver.TCPServer}
MIXINS = (prefork.PreForkingMixIn, prefork.ThreadingMixIn)
GIVING = sorted(
    {name for cls in type("All", (*MIXINS, prefork.TCPServer), {}).__mro__ for name, value in vars(cls).items()
     if isinstance(value, GivesWay)}
)  # fmt: skip


def chained(name: str, word: str) -> Any:
    """A method, or a value, that tells its word and what the next definition tells."""

    def method(self: Any, *args: Any) -> list[str]:
        mine = next(cls for cls in type(self).__mro__ if vars(cls).get(name) is method)
        following = getattr(super(mine, self), name, None)
        told = following() if word in ("over", "other") and callable(following) else []
        return [word, *(told if isinstance(told, list) else [])]

    return method


@pytest.mark.parametrize("base", BASES)
@pytest.mark.parametrize("name", GIVING)
def test_the_next_definition_is_the_programs(name: str, base: str) -> None:
    """`super()` over the mix-in leads to the program's class behind it, also in a diamond, and to what has been
    assigned or patched there since the classes were made."""
    their: Any = type("Base", (BASES[base],), {name: chained(name, "base")})
    other: Any = type("Other", (their,), {name: chained(name, "other")})
    over: Any = type("Over", (*MIXINS, their), {name: chained(name, "over")})
    server: Any = over.__new__(over)
    assert getattr(server, name)() == ["over", "base"]
    diamond: Any = type("Diamond", (over, other), {})
    assert getattr(diamond.__new__(diamond), name)() == ["over", "other", "base"]
    with mock.patch.object(their, name, chained(name, "patched")):
        assert getattr(server, name)() == ["over", "patched"]
    setattr(their, name, lambda self: ["later"])
    assert getattr(server, name)() == ["over", "later"]


@pytest.mark.parametrize("base", BASES)
@pytest.mark.parametrize("name", GIVING)
def test_values_change_where_they_are(name: str, base: str) -> None:
    """A value in the program's class behind the mix-in may be assigned, patched, or be a property, whenever; the
    object's own comes first, as everywhere."""
    their: Any = type("Base", (BASES[base],), {name: 1})
    cls: Any = type("Server", (*MIXINS, their), {})
    server = cls.__new__(cls)
    assert (getattr(server, name), getattr(cls, name), is_the_programs(server, name)) == (1, 1, True)
    setattr(their, name, 2)
    assert getattr(server, name) == 2
    with mock.patch.object(server, name, 3):
        assert getattr(server, name) == 3
    assert getattr(server, name) == 2
    with pytest.raises(AttributeError):
        delattr(server, name)
    kept: list[int] = []
    setattr(
        their, name, property(lambda self: kept[-1], lambda self, value: kept.append(value), lambda self: kept.clear())
    )
    setattr(server, name, 4)
    assert (getattr(server, name), kept) == (4, [4])
    delattr(server, name)
    assert not kept
    delattr(their, name)
    assert definer(cls, name) not in (None, their)


@pytest.mark.parametrize("base", BASES)
@pytest.mark.parametrize("name", sorted({"handle_error", "handle_request", "shutdown", "request_queue_size"}))
def test_what_stands_behind_the_server_is_not_found(name: str, base: str) -> None:
    """A class behind the server class has what that one has not; no more than without the mix-in."""
    behind = type("Helpers", (), {name: "helper's", "worker_started": "helper's"})
    server: Any = type("Server", (*MIXINS, BASES[base], behind), {})
    assert getattr(server, name) != "helper's"
    assert server.worker_started == "helper's"


@pytest.mark.parametrize("base", BASES)
def test_abstract_classes(base: str) -> None:
    """What a program's class declares abstract in front of the mix-in, or behind the server, ours implement."""
    interface = abc.ABCMeta("Interface", (), {"shutdown": abc.abstractmethod(lambda self: None)})
    for bases in ((*MIXINS, BASES[base], interface), (*MIXINS, type("Impl", (BASES[base],), {}), interface)):
        cls = abc.ABCMeta("Server", bases, {})
        assert not inspect.isabstract(cls)


@pytest.mark.parametrize("base", BASES)
@pytest.mark.parametrize("kind", ["ours", "a method", "a property", "the object's"])
@pytest.mark.parametrize("name", ["handle_error", "finish_request", "verify_request"])
def test_ours_over_the_programs(name: str, kind: str, base: str) -> None:
    """What we put on the object is found there, and calls what was there: ours, or whatever the program has."""
    words = {
        "a method": lambda self, *args: "theirs",
        "a property": property(lambda self: lambda *args: "theirs"),
    }
    their: Any = type("Base", (BASES[base],), {name: words[kind]} if kind in words else {})
    cls: Any = type("Server", (*MIXINS, their), {})
    server, other = cls.__new__(cls), cls.__new__(cls)
    if kind == "the object's":
        setattr(server, name, lambda *args: "theirs")
    before = evaluated(server, name)
    put(server, name, lambda *args: ["ours", before(*args)])
    if kind == "ours":
        assert before.__self__ is server  # type: ignore[attr-defined]
        assert before.__name__ == name
        return
    assert getattr(server, name)("request", "address") == ["ours", "theirs"]
    if kind in words:
        assert of_class(server, name)("request", "address") == "theirs"
        assert getattr(other, name)("request", "address") == "theirs"


@pytest.mark.parametrize("name", socketserver.__all__)
def test_each_class_has_what_the_standard_one_has(name: str) -> None:
    """A program that sets or patches a name in a class changes those classes alone that it would change there."""
    theirs, ours = getattr(socketserver, name), getattr(prefork, name)
    above = {cls.__name__ for cls in theirs.__mro__[1:]}
    public = [each for each in vars(theirs) if not each.startswith("_")]
    assert [each for each in public if (found := definer(ours, each)) is None or found.__name__ in above] == []


NAMES: list[object] = ["prefork", "prefork.workers.loop", "socketserver", "prefork_app", "socketserver.mine", "", None]


@pytest.mark.parametrize("name", NAMES)
def test_whose_a_module_is(name: object) -> None:
    """A name that only begins as ours does is the program's, as is whatever a class has in its place."""
    assert is_the_programs_module(name) is (name not in NAMES[:3])
    assert is_the_programs_class(type("Some", (), {"__module__": name})) is (name not in NAMES[:3])


def test_a_function_without_a_module_is_the_programs() -> None:
    """One that was made by exec() with a namespace of its own, and put in a class of the standard library's."""
    names: dict[str, Any] = {"__builtins__": {}}
    exec("def verify_request(self, request, client_address): return True", names)
    del names["__builtins__"]
    assert "__name__" not in names
    with mock.patch.object(socketserver.BaseServer, "verify_request", names["verify_request"]):
        assert is_patched(socketserver.BaseServer, "verify_request")
