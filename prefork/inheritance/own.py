"""The only attribute that we put on a program's server object, and the public values that are read from there.

Runs in any process that has the object. The class of that attribute is what serves, and most of what prefork is: it is
loaded in the constructor of the first server, not by each program that imports prefork and defines a class. Not later
either: by then the program may have changed its root directory or its user, run out of descriptors, or forked.
"""

from collections.abc import Callable
from functools import cache
from typing import Any, Generic, Self, TypeVar, overload

from prefork.metrics.late_imports import apart_from_forks

Public = TypeVar("Public")


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
    """Load all that this server needs to serve. Called in its constructor, ours or the standard library's."""
    cls = type(server)
    with apart_from_forks():
        cls._prefork_.kinds(cls)


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
