"""The kinds of TARGET of `prefork run TARGET`, and the server made from each.

    handler class     served by a pre-forking server of the address's kind; with threads if --max-threads is given; also
                      a functools.partial of one
    server class      called with the address, and with its class attribute RequestHandlerClass if it has one;
                      PreForkingMixIn is put in front of it unless it has it already
    server instance   bound by its own module, so --bind must not be given
    factory           a function that returns an instance; called with the address if it takes an argument

Owns the import of the user's module and the creation of the server; must not serve. Runs in the process that becomes
the master. Mistakes raise ConfigError; an exception in the user's own code raises UserCodeError, with it as the cause.
Longer than most files: each kind of target, and what is said of one that is none, stand side by side.
"""

import contextlib
import errno
import importlib
import os
import socket
import sys
from collections.abc import Callable, Mapping
from types import ModuleType
from typing import TYPE_CHECKING, Any, get_origin

from ..accompanied import checked
from ..errors import BindError, ConfigError, PreforkError, UserCodeError, nearest, reason_of
from ..mixins import ThreadingMixIn
from ..pool import PreForkingMixIn, pool_of
from ..process import loading
from ..run_mode import RunMode, run_mode
from ..server import BaseServer, TCPServer, UDPServer, UnixDatagramServer, UnixStreamServer
from ..settings.fields import settings, validate
from ..settings.handlers import unwrapped, why_not_run
from ..sockets.addresses import Address, Kind, address_text, parse_address
from ..sockets.of_server import is_closed, socket_of

if TYPE_CHECKING:
    from inspect import Signature

__all__ = ["Server", "Target", "applies", "build", "holder", "load"]

# Any: a target is an object of the user's module, based on our classes, the standard library's or their own.
Server = Any

_BY_KIND: Mapping[Kind, type[BaseServer]] = {
    "tcp": TCPServer,
    "udp": UDPServer,
    "unix": UnixStreamServer,
    "unixgram": UnixDatagramServer,
}
_KIND_NAMES = {"tcp": "TCP", "udp": "UDP", "unix": "Unix stream", "unixgram": "Unix datagram"}


# --- loading ---------------------------------------------------------------------------------------


class Target:
    """The imported object that `text` (module:attribute) names. `origins` maps settings to their sources."""

    address_by = "--bind HOST:PORT"  # where its address would be given

    def __init__(self, text: str, found: Any, origins: Mapping[str, str]) -> None:
        self.text = text
        self.found = found
        self.origins = origins

    def refused(self, reason: str, address: Address | None = None) -> ConfigError:
        where = f" at {address.text}" if address else ""
        return ConfigError(f"could not serve {self.text}{where}: {reason}")

    def call(self, function: Callable[..., Any], *args: Any) -> Any:
        """Call the user's code. Raises UserCodeError for any exception but our own errors."""
        return _theirs(f"could not make a server of {self.text}", function, *args)


def _theirs(sentence: str, function: Callable[..., Any], *args: Any) -> Any:
    try:
        with loading(sentence):
            return function(*args)
    except PreforkError:
        raise
    except SystemExit as exc:
        raise UserCodeError(f"{sentence}: it left with status {exc.code}") from exc
    except OSError as exc:
        if exc.errno == errno.EAFNOSUPPORT:  # there is no IPv6
            raise BindError(exc.errno, f"{sentence}: {reason_of(exc)}") from None
        error = UserCodeError(f"{sentence}: {type(exc).__name__}: {exc}")
        if exc.errno == errno.EADDRINUSE and run_mode() is RunMode.CHECK:
            error.add_note("The service may run and have it open: open it only if not prefork.rehearsing().")
        raise error from exc
    except Exception as exc:
        raise UserCodeError(f"{sentence}: {type(exc).__name__}: {exc}") from exc


def load(text: str, origins: Mapping[str, str]) -> Target:
    """Import `module:attribute`, searching the current directory first. Raises ConfigError."""
    module_name, _, path = text.partition(":")
    if not path or not all(part.isidentifier() for part in (module_name + "." + path).split(".")):
        hint = "; a module is named without .py and slashes" if module_name.endswith(".py") or "/" in text else ""
        raise ConfigError(f"could not read the target {text!r}: it must be module:attribute, as in app:Server{hint}")
    if sys.path[0] not in ("", os.getcwd()):
        sys.path.insert(0, os.getcwd())
    found: Any = _import(module_name)
    for part in path.split("."):
        if not hasattr(found, part):
            near = nearest(part, dir(found))
            raise ConfigError(f"could not find {text}: {found!r} has no attribute {part}{near}")
        found = getattr(found, part)
    if isinstance(generic := get_origin(found), type):  # Server[str] is Server, to whoever calls it
        found = generic
    return Target(text, found, origins)


def _import(name: str) -> ModuleType:
    try:
        module: ModuleType = _theirs(f"could not import {name}", importlib.import_module, name)
    except UserCodeError as exc:
        missing = exc.__cause__.name if isinstance(exc.__cause__, ModuleNotFoundError) else None
        if missing and f"{name}.".startswith(f"{missing}."):
            where = f"in {os.getcwd()} or among the installed packages"
            hint = "; leave .py out" if name.endswith(".py") else ""
            raise ConfigError(f"could not import {name}: there is no module {missing} {where}{hint}") from None
        raise
    return module


# --- building --------------------------------------------------------------------------------------


def build(target: Target, address: Address | None, values: Mapping[str, Any]) -> Server:
    """Return the bound server for `target`, with the settings in `values`. Raises ConfigError or BindError."""
    found = target.found
    if isinstance(found, type) or _handler_in(found) is not None:
        return _at_its_address(target, _from_class(target, found, address, values), address)
    if _is_server(found):
        if address is not None:
            raise target.refused("it is an instance, bound by its own module; leave --bind out", address)
        return _configured(target, found, values)
    if callable(found):
        return _at_its_address(target, _configured(target, _from_factory(target, found, address), values), address)
    raise target.refused(f"it is {_a(type(found))}, not a handler class, server class, server or factory")


def _handler_in(found: object) -> type | None:
    """Return the handler class that a partial would make; None if it is none."""
    cls = unwrapped(found)
    return cls if cls is not found and isinstance(cls, type) and _is_handler(cls) else None


def _is_handler(found: type) -> bool:
    return not _is_server(found) and callable(getattr(found, "handle", None))


def _is_server(found: object) -> bool:
    return callable(getattr(found, "serve_forever", None)) and callable(getattr(found, "process_request", None))


def _from_class(target: Target, found: Any, address: Address | None, values: Mapping[str, Any]) -> Server:
    made, found = found, _handler_in(found) or found
    if not (_is_server(found) or _is_handler(found)):
        raise target.refused(f"the class {found.__name__} has neither handle() nor serve_forever()")
    if address is None:
        raise target.refused(f"it needs an address; say {target.address_by}")
    cls = _server_class(target, found, address, values)
    if not _is_server(found):
        return target.call(cls, address.address, made)
    if hasattr(cls, "RequestHandlerClass"):
        return target.call(_callable_with(target, cls, 2), address.address, cls.RequestHandlerClass)
    return target.call(_callable_with(target, cls, 1), address.address)


def holder(target: Target, address: Address | None, values: Mapping[str, Any]) -> Any:
    """Return the object with the settings in force: the class that would be instantiated, or the instance."""
    found = _handler_in(target.found) or target.found
    if not isinstance(found, type) or not (_is_server(found) or _is_handler(found)):
        return build(target, address, values)
    return _server_class(target, found, address or _any_address(found), values)


def _any_address(found: type) -> Address:
    texts = {"udp": "udp://127.0.0.1:0", "unix": "unix:/none", "unixgram": "unixgram:/none"}
    kind = _kind_of(found) if _is_server(found) else None
    return parse_address(texts.get(kind or "", "127.0.0.1:0"))


def _server_class(target: Target, found: type, address: Address, values: Mapping[str, Any]) -> Any:
    bases = _server_bases(target, found, address) if _is_server(found) else _handler_bases(address, values)
    return _derived(target, bases, found, address, values)


def _handler_bases(address: Address, values: Mapping[str, Any]) -> tuple[type, ...]:
    threads = (ThreadingMixIn,) if "max_threads" in values else ()
    return (PreForkingMixIn, *threads, _BY_KIND[address.kind])


def _server_bases(target: Target, found: type, address: Address) -> tuple[type, ...]:
    kind = _kind_of(found)
    if kind is not None and kind != address.kind:
        raise target.refused(f"it is a {_KIND_NAMES[kind]} server", address)
    return (found,) if issubclass(found, PreForkingMixIn) else (PreForkingMixIn, found)


def _kind_of(cls: type) -> Kind | None:
    family, kind = getattr(cls, "address_family", None), getattr(cls, "socket_type", None)
    if kind == socket.SOCK_DGRAM:
        return "unixgram" if family == socket.AF_UNIX else "udp"
    return ("unix" if family == socket.AF_UNIX else "tcp") if kind == socket.SOCK_STREAM else None


def _derived(
    target: Target, bases: tuple[type, ...], found: type, address: Address, values: Mapping[str, Any]
) -> Callable[..., Server]:
    """Return a subclass of the target's name with the settings, which apply before anything is bound."""
    names: dict[str, Any] = {
        "__module__": found.__module__,
        "__qualname__": found.__qualname__,
        "__doc__": found.__doc__,
        **values,
    }
    if address.family is not None and not _chooses_family(bases, address):
        names["address_family"] = address.family
    if address.fd is not None:
        names["inherited_fd"] = address.fd
    cls: type = target.call(type, found.__name__, bases, names)
    _check_known(target, cls, values)
    validate(cls, target.origins)
    checked(cls)
    return cls


def _chooses_family(bases: tuple[type, ...], address: Address) -> bool:
    """Return True if our TCPServer chooses the family itself; `dual_stack` only applies to its own choice."""
    family = getattr(bases[-1], "address_family", None)
    return address.fd is None and family == socket.AF_INET and issubclass(bases[-1], TCPServer)


def _callable_with(target: Target, function: Callable[..., Any], count: int) -> Callable[..., Any]:
    """Return `function` if it takes `count` arguments: (address), or (address, handler class)."""
    signature = _signature(function)
    try:
        signature.bind(*[None] * count)
    except TypeError:
        module, _, name = target.text.partition(":")
        wanted = "an address" if count == 1 else "an address and a handler class"
        if "addr" in [*signature.parameters, "", ""][1] and len(signature.parameters) == 3:
            error = target.refused(
                f"it handles a request; write a function that makes the server, and serve {module}:make"
            )
            error.add_note(f"    def make(address):\n        return PreForkingTCPServer(address, {name})")
            raise error from None
        easy = f"set RequestHandlerClass in {name}, or " if _lacks_handler(function, signature) else ""
        error = target.refused(
            f"it cannot be called with {wanted} alone; {easy}write a function, and serve {module}:make"
        )
        error.add_note(_two_lines(name, signature))
        raise error from None
    return function


def _signature(function: Callable[..., Any]) -> "Signature":
    import inspect  # 3 ms, and for what is no handler only

    return inspect.signature(function)


def _lacks_handler(function: Callable[..., Any], signature: "Signature") -> bool:
    """Return True if this is a server class that could be called if it had a `RequestHandlerClass`."""
    if not isinstance(function, type) or hasattr(function, "RequestHandlerClass"):
        return False
    try:
        second = [*signature.bind(None, None).arguments][1]
    except TypeError:
        return False
    return second == "RequestHandlerClass"


def _two_lines(name: str, signature: "Signature") -> str:
    """Return the function to write: it calls the class, or the other function, with all that this needs."""
    parameters = [
        each for each in signature.parameters.values() if each.kind not in (each.VAR_POSITIONAL, each.VAR_KEYWORD)
    ]
    needed = [each for each in parameters if each.default is each.empty]
    first = [each.name for each in needed if each.kind is not each.KEYWORD_ONLY]
    named = [each.name for each in parameters if "addr" in each.name and each.name not in first]
    others = [f"{each.name}=…" for each in needed if each.name not in (*first, *named[:1])]
    at = next((n for n, each in enumerate(first) if "addr" in each), 0)
    around = first[:at], first[at + 1 :]
    arguments = [*first, *others, f"{named[0]}=address"] if named else [*around[0], "address", *around[1], *others]
    if ["host" in each for each in first[:1]] + ["port" in each for each in first[1:2]] == [True, True]:
        arguments = ["*address", *first[2:], *others]
    return f"    def make(address):\n        return {name}({', '.join(arguments)})"


def _at_its_address(target: Target, server: Server, address: Address | None) -> Server:
    """Return the server if it is bound to the address that was asked for: its first parameter may be another one."""
    origin = pool_of(server).origin
    bound = None if origin is None else origin.bound_to
    if address is None or address.fd is not None or bound is None or _is_at(bound, address):
        return server
    server.server_close()
    module, _, name = target.text.partition(":")
    reason = f"it binds {address_text(bound)}; write a function that takes the address, and serve {module}:make"
    error = target.refused(reason, address)
    error.add_note(_two_lines(name, _signature(target.found)))
    raise error


def _is_at(bound: Any, address: Address) -> bool:
    asked = address.address
    if isinstance(asked, str):
        path = os.fsdecode(bound)
        return asked == path or ("\0" not in asked + path and os.path.realpath(asked) == os.path.realpath(path))
    one, other = (host.partition("%")[0] for host in (asked[0], bound[0]))  # the kernel has the scope elsewhere
    return asked[1] == bound[1] and (one == other or bool(_hosts(one) & _hosts(other)))


def _hosts(host: str) -> set[Any]:
    """Return the addresses of a host name; a host that is not said is every IPv4 address."""
    with contextlib.suppress(OSError):
        return {found[4][0] for found in socket.getaddrinfo(host or "0.0.0.0", None)}
    return {host}


def _from_factory(target: Target, factory: Callable[..., Any], address: Address | None) -> Server:
    if (why := why_not_run(factory)) is not None:
        raise target.refused(f"it {why}")
    parameters = target.call(_signature, factory).parameters.values()
    if address is None:
        if any(p.default is p.empty and p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD) for p in parameters):
            raise target.refused("it takes an address; say --bind HOST:PORT")
        return target.call(factory)
    if address.fd is not None:
        raise target.refused("a factory binds its own socket and cannot be given a descriptor", address)
    if not parameters:
        raise target.refused("it takes no address; leave --bind out", address)
    return target.call(_callable_with(target, factory, 1), address.address)


def _configured(target: Target, server: Server, values: Mapping[str, Any]) -> Server:
    """Return an instance that is already bound, with the settings that can still be changed."""
    if isinstance(server, type):
        raise target.refused(f"it returned the class {server.__name__}, not a server; serve that class, or call it")
    if not _is_server(server):
        raise target.refused(f"it returned {_a(type(server))}, not a server")
    if not isinstance(server, PreForkingMixIn):
        raise target.refused(f"it is {_a(type(server))}, which has no PreForkingMixIn among its bases")
    if is_closed(server):
        raise target.refused("it is closed")
    sock = socket_of(server)
    if sock and sock.type == socket.SOCK_STREAM and not sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
        raise target.refused("its socket is not listening; it was made with bind_and_activate=False")
    _check_known(target, type(server), values)
    for name, value in values.items():
        if settings(type(server))[name].setting.group == "Listening":
            reason = f"{name} (from {target.origins[name]}) must be set before the socket is bound, in the program"
            raise target.refused(f"{reason} that binds it")
        setattr(server, name, value)
    validate(server, target.origins)
    return server


def _check_known(target: Target, cls: type, values: Mapping[str, Any]) -> None:
    fields = settings(cls)
    for name in values:
        if name not in fields:
            raise target.refused(f"its class has no setting {name} (from {target.origins[name]})")
        if not applies(cls, name):
            origin = target.origins[name]
            raise target.refused(f"{name} (from {origin}) needs a ThreadingMixIn among the bases of its class")


def applies(cls: type, name: str) -> bool:
    """Return True if this setting has an effect on this class."""
    return name != "max_threads" or hasattr(cls, "process_request_thread")


def _a(cls: type) -> str:
    return "None" if cls is type(None) else f"{'an' if cls.__name__[:1] in 'aeiouAEIOU' else 'a'} {cls.__name__}"
