"""Precedence: whose definition of a name a server has, where classes of the program's, ours and the standard ones meet.

    class Site(PreForkingMixIn, Base)       Base is the program's, over ours or over the standard library's

Evaluated when a class is defined, in any process. A setting, a hook or a method of ours gives way to the program's,
although the mix-in stands first: workers/definitions.py sees to that whenever one is asked for. Here is what can be
said of a class once and for all.
"""

import contextlib
from collections.abc import Iterable, Iterator
from types import FunctionType
from typing import Any

from prefork.workers.definitions import (
    is_ours,
    is_the_programs,
    is_the_programs_class,
    is_the_programs_module,
    of_class,
    put,
)

LOOP = frozenset({"handle_request", "serve_forever", "shutdown"})


def find_first(cls: type, name: str, ours: Any) -> None:
    """Have a descriptor of ours found where the program's class has a plain value of that name, such as None."""
    nearest = next(vars(base)[name] for base in cls.__mro__ if name in vars(base))
    if not hasattr(nearest, "__set__"):
        setattr(cls, name, ours)


def resolve_aliases(cls: type) -> None:
    """Have other names that the program has given to methods of the loop, when its class was defined, mean ours."""
    for base in filter(is_the_programs_class, cls.__mro__):
        for name, value in list(vars(base).items()):
            if (meant := _method_of_the_loop(value)) not in (None, name) and getattr(cls, name) is value:
                setattr(
                    cls, name, next(vars(ours)[meant] for ours in cls.__mro__ if is_ours(ours) and meant in vars(ours))
                )


def hides(base: type) -> bool:
    """Return True if this class, before a mix-in, hides it: BaseServer, or a server class with a loop of its own.

    One whose `serve_forever()` calls the next is what it should be.
    """
    if not _is_server(base):
        return False
    loop = vars(base).get("serve_forever")
    return _is_base_server(base) or (loop is not None and not _calls_the_next(loop))


def take_back(cls: type, hiding: type, mixin: type) -> bool:
    """Put what BaseServer hides of the mix-in on the class itself; return False if that is not enough.

    The program has a class with hooks only, over BaseServer, before the mix-in. A server class there hides more than
    BaseServer does. Where one of the hooks calls the next definition, that is BaseServer's, and what ours does would be
    left out; where a class with the mix-in stands before, it is what was put on that one.
    """
    mro = cls.__mro__
    over = [base for base in mro[1 : mro.index(hiding)] if issubclass(base, hiding)]
    standard = [base for base in mro[: mro.index(hiding)] if _is_server(base) and not issubclass(base, mixin)]
    if not _is_base_server(hiding) or not over or not all(map(is_the_programs_class, standard)):
        return False
    if any(issubclass(base, mixin) for base in over):
        return True
    hooks = [vars(base) for base in mro[: mro.index(hiding)] if is_the_programs_class(base)]
    if any(_calls_the_next(each) for names in hooks for each in names.values()):
        return False
    for name in vars(hiding).keys() - _OF_EVERY_CLASS:
        definers = [base for base in mro if name in vars(base)]
        ours = next((base for base in definers if base is not hiding and is_ours(base)), None)
        if definers[0] is hiding and ours is not None:
            setattr(cls, name, vars(ours)[name])
    return True


_OF_EVERY_CLASS = frozenset({"__dict__", "__doc__", "__module__", "__weakref__"})


def _is_server(cls: type) -> bool:
    return hasattr(cls, "finish_request")


def _is_base_server(cls: type) -> bool:
    return cls.__name__ == "BaseServer" and not is_the_programs_class(cls)


def _calls_the_next(value: object) -> bool:
    return isinstance(value, FunctionType) and not {"super", "BaseServer"}.isdisjoint(value.__code__.co_names)


def is_called_by(classes: Iterable[type], name: str) -> bool:
    """Return True if the program calls a method of this name itself, in one of these classes: then it is its own, and
    no hook of ours. An override that calls the next is none of its callers."""
    return any(
        isinstance(function, FunctionType) and function.__name__ != name and name in function.__code__.co_names
        for cls in classes
        for base in filter(is_the_programs_class, cls.__mro__)
        for function in vars(base).values()
    )


def loop_behind(cls: type, ours: type) -> type | None:
    """Return the program's class with a `serve_forever()` that stands behind ours and is not found."""
    mro = cls.__mro__
    behind = (base for base in mro[mro.index(ours) :] if is_the_programs_class(base) and "serve_forever" in vars(base))
    return next(behind, None)


def loop_not_called(cls: type, ours: type) -> Iterator[tuple[str, str]]:
    """Yield a `serve_forever()` of the program's that a pool cannot use, and why."""
    if (base := loop_behind(cls, ours)) is not None:
        yield f"serve_forever() of {base.__qualname__}", f"a pool is served by the one of {ours.__name__}"


@contextlib.contextmanager
def shutdown_heard(server: Any, own: Any, mixin: type) -> Iterator[None]:
    """Hear a `shutdown()` of the program's that was written for its own loop, behind ours, which does not run.

    It is called, and ends ours as well. `own`: what `shutdown(wait=…)` of the loop in force is a method of.
    """
    if (
        loop_behind(type(server), mixin) is None
        or not is_the_programs(server, "shutdown")
        or "shutdown" in vars(server)
    ):
        yield
        return
    theirs = of_class(server, "shutdown")

    def shutdown(*args: Any, **named: Any) -> None:
        own.shutdown(wait=False)
        theirs(*args, **named)
        own.shutdown(wait=True)

    ours = put(server, "shutdown", shutdown)
    try:
        yield
    finally:
        if vars(server).get("shutdown") is ours:
            del vars(server)["shutdown"]


def _method_of_the_loop(value: object) -> str | None:
    """Return the name of this method, if it is the standard library's or ours."""
    if not isinstance(value, FunctionType) or value.__name__ not in LOOP:
        return None
    return None if is_the_programs_module(value.__module__) else value.__name__
