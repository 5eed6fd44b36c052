"""The only attribute that we put on a program's server object, and a public one that is read from there.

Runs in any process that has the object.
"""

from functools import cache
from typing import Any


class Own:
    """Descriptor of the only attribute that we add to a program's server object: the object with all our state.

    The object is created at first use. Each class names the kind it needs; if several bases of a server do, the object
    inherits from all their kinds, in the order of the server's bases.
    """

    def __init__(self, kind: type[Any]) -> None:
        self.kind = kind
        self._name = ""

    def __set_name__(self, owner: type, name: str) -> None:
        self._name = name

    def __get__(self, server: Any, owner: type) -> Any:
        if server is None:
            return self
        kinds = tuple(own.kind for cls in owner.__mro__ if isinstance(own := vars(cls).get(self._name), Own))
        return vars(server).setdefault(self._name, _of_kinds(kinds)(server))


@cache
def _of_kinds(kinds: tuple[type[Any], ...]) -> type[Any]:
    bases = tuple(kind for kind in kinds if not any(kind in other.__mro__[1:] for other in kinds))
    return bases[0] if len(bases) == 1 else type("Own", bases, {})


class SlotNumber:
    """Descriptor of `server.slot`, and no property: a program that assigns to that name has its own there."""

    def __get__(self, server: Any, owner: type) -> Any:
        return self if server is None else server._prefork_.slot
