"""The nearest definition of a name of the program's server: the program's own, ours, or the standard library's.

Pure. Runs in any process.
"""

import sys
from collections.abc import Callable
from types import FunctionType, MethodType
from typing import Any, TypeVar

Mixin = TypeVar("Mixin", bound=type)

# Ours call the next definition, or have to be found first: `socket` is where a listener becomes ours.
COOPERATIVE = frozenset({"serve_forever", "server_close", "service_actions", "socket"})
OF_STANDARD_MIXINS = frozenset(
    {
        "active_children", "block_on_close", "collect_children", "daemon_threads", "handle_timeout", "process_request",
        "process_request_thread", "timeout",
    }
)  # fmt: skip


_SHIPPED: dict[tuple[str, str], object] = {}


def ships(*names: str) -> Callable[[Mixin], Mixin]:
    """Class decorator that notes values which a pool has others of: what a program sets for all servers, in the
    standard library's class as in ours of that name, is known by its difference from them."""

    def noted(cls: Mixin) -> Mixin:
        _SHIPPED.update({(cls.__name__, name): vars(cls)[name] for name in names})
        return cls

    return noted


class GivesWay:
    """A definition of ours that stands in front of the program's, in a mix-in: the program's is the one in force.

    Asked anew each time, since a program may define, assign and patch whenever it likes, and whoever asks: the server,
    its class, or `super()` in a class over the mix-in.
    """

    def __init__(self, mixin: type, name: str) -> None:
        self.ours = vars(mixin)[name]
        self.__doc__ = self.ours.__doc__
        self._mixin = mixin
        self._name = name
        self._is_value = not hasattr(type(self.ours), "__get__")

    def __get__(self, server: Any, owner: type) -> Any:
        name = self._name
        if getattr(super(self._mixin, owner), name, self) is self:  # nobody behind has it, as usual
            found = self.ours
            if self._is_value and (server is None or name not in vars(server)):
                return found
        else:
            found = self._in_force(owner)
        if (
            server is not None
            and not hasattr(found, "__set__")
            and self._name in vars(server)
            and self._is_first(owner)
        ):
            return vars(server)[self._name]
        bind = getattr(type(found), "__get__", None)
        return found if bind is None else bind(found, server, owner)

    def __set__(self, server: Any, value: Any) -> None:
        found = self._in_force(type(server))
        if hasattr(found, "__set__"):
            found.__set__(server, value)
        else:
            vars(server)[self._name] = value

    def __delete__(self, server: Any) -> None:
        found = self._in_force(type(server))
        if hasattr(found, "__delete__"):
            found.__delete__(server)
        elif vars(server).pop(self._name, self) is self:
            raise AttributeError(self._name)

    def _is_first(self, cls: type) -> bool:
        """Return True if the class has this one by that name. Else it was reached by super(), which passes by what is
        on the object."""
        return next(vars(base)[self._name] for base in cls.__mro__ if self._name in vars(base)) is self

    def _in_force(self, cls: type) -> Any:
        theirs = self.behind(cls)
        return self.ours if theirs is None else vars(theirs)[self._name]

    def behind(self, cls: type) -> type | None:
        """Return the program's class whose definition is in force, behind ours; None if ours is.

        What stands behind a server class that defines the name would not be found without the mix-in either.
        """
        mro, name = cls.__mro__, self._name
        for base in mro[mro.index(self._mixin) + 1 :]:
            if name in base.__dict__:
                if is_the_programs_class(base) or is_patched(base, name):
                    return None if _is_behind_the_server(mro, self._mixin) else base
                if _is_server(base):
                    return None
        return None


def gives_way(mixin: Mixin) -> Mixin:
    """Class decorator for a mix-in of ours: its public definitions give way to the program's behind it.

    What the standard library's own mix-ins define wins over the class behind them there, and so it does here.
    """
    for name in [name for name in vars(mixin) if not name.startswith("_")]:
        if name not in COOPERATIVE | OF_STANDARD_MIXINS:
            setattr(mixin, name, GivesWay(mixin, name))
    return mixin


def hook(server: Any, name: str) -> Callable[[], Any]:
    """Return a hook of a pool's; what the program has by that name, and nobody can call, is none."""
    found = getattr(server, name, None)
    return found if callable(found) else lambda: None


class Covered:
    """A property of the program's, or its like, by the name of a hook: what we put on an object comes first.

    An object's own attributes come before everything else of its class, but not before these.
    """

    def __init__(self, theirs: Any, name: str) -> None:
        self.theirs = theirs
        self._name = name

    def __get__(self, server: Any, owner: type) -> Any:
        if server is not None and self._name in vars(server):
            return vars(server)[self._name]
        return self.theirs.__get__(server, owner)

    def __set__(self, server: Any, value: Any) -> None:
        self.theirs.__set__(server, value)

    def __delete__(self, server: Any) -> None:
        self.theirs.__delete__(server)


class StandIn:
    """A hook of ours in the place of one with attributes, as a callable object or a Mock has: they are that one's."""

    __slots__ = ("_call", "_theirs")

    def __init__(self, call: Callable[..., Any], theirs: Callable[..., Any]) -> None:
        object.__setattr__(self, "_call", call)
        object.__setattr__(self, "_theirs", theirs)

    def __call__(self, *args: Any, **named: Any) -> Any:
        return self._call(*args, **named)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._theirs, name)

    def __setattr__(self, name: str, value: Any) -> None:
        setattr(self._theirs, name, value)

    def __delattr__(self, name: str) -> None:
        delattr(self._theirs, name)


def _in_place_of(theirs: Callable[..., Any], ours: Callable[..., Any]) -> Callable[..., Any]:
    function = theirs.__func__ if isinstance(theirs, MethodType) else theirs
    plain = type(function) is FunctionType and not vars(function)  # a call of a StandIn costs one more
    return ours if plain or ours == theirs or type(ours) is StandIn else StandIn(ours, theirs)


def put(server: Any, name: str, ours: Callable[..., Any]) -> Callable[..., Any]:
    """Put a hook of ours on the object, over whatever its class defines; return what stands there now."""
    ours = _in_place_of(evaluated(server, name), ours)
    cls, found = definer(type(server), name), _raw(server, name)
    if cls is not None and _comes_first(found):
        setattr(cls, name, Covered(found, name))
    vars(server)[name] = ours
    return ours


def evaluated(server: Any, name: str) -> Callable[..., Any]:
    """Return a hook as the program has it; a property is asked anew at each call."""
    found = _raw(server, name)
    if name in vars(server) and not _comes_first(found):
        hook: Callable[..., Any] = vars(server)[name]
        return hook
    return of_class(server, name)


def of_class(server: Any, name: str) -> Callable[..., Any]:
    """Return a hook as the class has it, whatever is on the object; a property is asked anew at each call."""
    found = _raw(server, name)
    if isinstance(found, GivesWay):
        found = found.ours
    elif isinstance(found, Covered):
        found = found.theirs
    bind = getattr(type(found), "__get__", None)
    if bind is not None and hasattr(found, "__set__"):
        return lambda *args, **named: bind(found, server, type(server))(*args, **named)
    hook: Callable[..., Any] = found if bind is None else bind(found, server, type(server))
    return hook


def _comes_first(found: Any) -> bool:
    return hasattr(found, "__set__") and not isinstance(found, GivesWay | Covered)


def _raw(server: Any, name: str) -> Any:
    cls = definer(type(server), name)
    return None if cls is None else vars(cls)[name]


def definer(cls: type, name: str) -> type | None:
    """Return the class whose definition of a name is in force; None if there is none."""
    first = next((base for base in cls.__mro__ if name in vars(base)), None)
    found = None if first is None else vars(first)[name]
    return (found.behind(cls) or first) if isinstance(found, GivesWay) else first


def is_the_programs(server: Any, name: str) -> bool:
    """Return True if the program defines this method of its server, in a class or on the object."""
    cls = definer(type(server), name) or object
    return name in vars(server) or is_the_programs_class(cls) or is_patched(cls, name)


def is_patched(cls: type, name: str) -> bool:
    """Return True if the program has put something of its own into this class, which is ours or the standard library's:
    a method, or another value than that of the standard library."""
    found = vars(cls).get(name)
    found = found.ours if isinstance(found, GivesWay) else found
    if (cls.__name__, name) in _SHIPPED:
        return bool(found != _SHIPPED[cls.__name__, name])
    if not callable(found) or cls is object:
        return False
    where = found.__globals__.get("__name__") if type(found) is FunctionType else ""  # a wrapper has another's name
    return where != cls.__module__ and not is_our_module(where)


def is_base_servers(server: Any, name: str) -> bool:
    """Return True if this method of the server is that of BaseServer, ours or the standard library's."""
    return _is_of(server, name, "BaseServer")


def is_threading_mixins(server: Any, name: str) -> bool:
    """Return True if this method of the server is that of ThreadingMixIn, ours or the standard library's."""
    return _is_of(server, name, "ThreadingMixIn")


def is_forking_mixins(server: Any, name: str) -> bool:
    """Return True if this method of the server is that of ForkingMixIn, ours or the standard library's."""
    return _is_of(server, name, "ForkingMixIn")


def _is_of(server: Any, name: str, cls_name: str) -> bool:
    if definer(type(server), "__getattribute__") is not object:
        return False
    cls = definer(type(server), name) or object
    return cls.__name__ == cls_name and not is_the_programs_class(cls) and not is_patched(cls, name)


def is_our_module(name: object) -> bool:
    """Return True for the `__module__` of what is ours; a class or a function may have anything in its place."""
    return f"{name}.".startswith("prefork.")


def is_the_programs_module(name: object) -> bool:
    """Return True unless what has this `__module__` is ours or of the standard library's socketserver."""
    return name != "socketserver" and not is_our_module(name)


def is_standard_module(name: object) -> bool:
    return str(name).partition(".")[0] in sys.stdlib_module_names


def is_ours(cls: type) -> bool:
    return is_our_module(cls.__module__)


def is_the_programs_class(cls: type) -> bool:
    return cls is not object and is_the_programs_module(cls.__module__)


def _is_server(cls: type) -> bool:
    return hasattr(cls, "server_activate") and not is_the_programs_class(cls)


def _is_behind_the_server(mro: tuple[type, ...], mixin: type) -> bool:
    """Return True for the base of our BaseServer, which has that one's methods."""
    return any(base.__name__ == "BaseServer" and _is_server(base) for base in mro[: mro.index(mixin)])
