"""The only attribute that we put on a program's server object, and the public values that are read from there.

Runs in any process that has the object. The class of that attribute is what serves, and most of what prefork is: it is
loaded in the constructor of the first server, not by each program that imports prefork and defines a class. Not later
either: by then the program may have changed its root directory or its user, run out of descriptors, or forked.
"""

import _thread  # `threading` may never be needed
import os
import sys
from collections.abc import Callable
from functools import cache
from typing import Any, Generic, Self, TypeVar, overload

LOADED_WITHIN_S = 10.0  # what a fork waits for at most: it may hold what the load needs

Public = TypeVar("Public")

_loading = _thread.RLock()  # held by the thread that loads


class Own:
    """Descriptor of the only attribute that we add to a program's server object: the object with all our state.

    The object is created at first use. Each class has a function that loads and returns the kind it needs; if several
    bases of a server do, the object inherits from all their kinds, in the order of the server's bases.
    """

    def __init__(self, kind: Callable[[], type[Any]]) -> None:
        self.kind = kind
        self._name = ""

    def __set_name__(self, owner: type, name: str) -> None:
        self._name = name

    def __get__(self, server: Any, owner: type) -> Any:
        if server is None:
            return self
        return vars(server).setdefault(self._name, _of_kinds(self.kinds(owner))(server))

    def kinds(self, owner: type) -> tuple[type[Any], ...]:
        """Return the kinds that the bases of a server class need, loaded."""
        return tuple(own.kind() for cls in owner.__mro__ if isinstance(own := vars(cls).get(self._name), Own))


def load_for(server: Any) -> None:
    """Load all that this server needs to serve. Called in its constructor, ours or the standard library's.

    A thread that forks meanwhile waits: in its child the locks of the import would be held for ever.
    """
    cls = type(server)
    threading = sys.modules.get("threading")
    if threading is not None and threading.active_count() > 1:
        _keep_forks_apart()
    with _loading:
        cls._prefork_.kinds(cls)


@cache
def _keep_forks_apart() -> None:
    # For good, and a cost of each fork: only where threads need it. Before a fork the last to be registered is first:
    # `logging` takes a lock that the load needs.
    import logging  # noqa: F401

    os.register_at_fork(before=_wait_for_load, after_in_parent=_let_load, after_in_child=_let_load)


def _wait_for_load() -> None:
    _loading.acquire(timeout=LOADED_WITHIN_S)


def _let_load() -> None:
    try:
        _loading.release()
    except RuntimeError:
        pass  # it took too long, and is another thread's


@cache
def _of_kinds(kinds: tuple[type[Any], ...]) -> type[Any]:
    bases = tuple(kind for kind in kinds if not any(kind in other.__mro__[1:] for other in kinds))
    return bases[0] if len(bases) == 1 else type("Own", bases, {})


class Computed(Generic[Public]):
    """Decorator for a public value of ours, and no property: a program that assigns to that name has its own there."""

    def __init__(self, compute: Callable[[Any], Public]) -> None:
        self._compute = compute
        self.__doc__ = compute.__doc__

    @overload
    def __get__(self, server: None, owner: type) -> Self: ...
    @overload
    def __get__(self, server: object, owner: type) -> Public: ...

    def __get__(self, server: object | None, owner: type) -> Self | Public:
        return self if server is None else self._compute(server)
