"""Settings: the one list of what can be configured, read from the annotated class attributes of a server class.

    max_children: Annotated[int, Setting("most workers at once", group="Pool", at_least=1)] = 5

Owns the definition of a setting, the parsing of its text, the allowed values, alone and in combination, and the
descriptions that REFERENCE.md and `--help` print. Must not hold a value, whose only place is the class attribute, and
must not import slow modules. Runs in the process that calls `serve_forever()` or runs the command line, before anything
is bound.
Longer than most files: what a setting may be stands beside each way of saying one.
"""

import math
import os
import socket
import sys
import types
from collections.abc import Iterator, Mapping
from typing import Annotated, Any, NamedTuple, Union, get_args, get_origin

if sys.version_info >= (3, 14):
    import annotationlib

from ..errors import ConfigError
from .in_force import asked_of, is_own, owner_of, plain, value_of
from .units import UNITS, UnitName, number_text

__all__ = ["Field", "Setting", "parse", "settings", "show", "validate"]


class Setting(NamedTuple):
    """The description of an annotated class attribute. Bounds are in `unit`; `above` is exclusive."""

    help: str
    unit: UnitName = ""
    group: str = "Pool"
    at_least: float | None = None
    at_most: float | None = None
    above: float | None = None
    default_text: str = ""  # printed for a default that depends on the machine
    choices: tuple[str, ...] = ()  # for a text: the only allowed ones
    kinds: tuple[str, ...] = ()  # for an address: the only allowed values of Address.kind
    name: str = ""  # name of option, variable and key, if not the attribute's
    metavar: str = ""
    flag: bool = False  # the option takes no value
    positional: bool = False  # a positional argument instead of an option
    reloadable: bool = True  # a reload can change it; otherwise a restart is needed
    several: bool = False  # of an address: it may be said more than once


class Field(NamedTuple):
    """One setting of one class: its name, type, default and `Setting`."""

    name: str
    type: type
    optional: bool  # None is allowed and means off
    default: Any
    setting: Setting

    @property
    def key(self) -> str:
        """The name that the option, the variable and the file use."""
        return self.setting.name or self.name

    @property
    def option(self) -> str:
        return self.metavar if self.setting.positional else "--" + self.key.replace("_", "-")

    @property
    def variable(self) -> str:
        return "PREFORK_" + self.key.upper()

    @property
    def metavar(self) -> str:
        kind = "WORD" if self.setting.choices else UNITS[self.setting.unit].metavar
        return self.setting.metavar or kind or {bool: "YES|NO", int: "N", float: "X"}.get(self.type, "TEXT")

    @property
    def default_text(self) -> str:
        return self.setting.default_text or show(self.default, self.setting.unit)

    @property
    def allowed(self) -> str:
        """The allowed values as text, in words that complete "it must be …"."""
        return self._allowed("off")

    def _allowed(self, nothing: str) -> str:
        words = self._kind()
        if nothing == "None":  # of Python
            words = words.replace("host:port or unix:/path", "a tuple (host, port) or a path")
        if self.setting.unit != "mode":  # its words include the bounds
            words += self._bounds()
        return words + (f", or {nothing}" if self.optional else "")

    def _kind(self) -> str:
        if self.setting.choices:
            return "one of " + ", ".join(self.setting.choices)
        if self.setting.kinds == ("unix",):
            return "/path or unix:/path"
        if "udp" not in self.setting.kinds and "tcp" in self.setting.kinds:
            return "host:port or unix:/path"
        words = {bool: "yes or no", int: "a whole number", float: "a number"}.get(self.type, "a text")
        return UNITS[self.setting.unit].words or words

    def _bounds(self) -> str:
        words = ""
        if self.setting.above is not None:
            words += f" above {number_text(self.setting.above)}"
        if self.setting.at_least is not None:
            words += f", at least {number_text(self.setting.at_least)}"
        if self.setting.at_most is not None:
            words += f", at most {number_text(self.setting.at_most)}"
        return words

    def check(self, value: object, origin: str = "", owner: str = "") -> None:
        """Raise ConfigError unless `value` has the right type and range.

        `origin` names the source of the value; without one it is the program, where None switches off, and `owner` what
        has the attribute there.
        """
        value = plain(value)
        if value is None and self.optional:
            return
        if not self.takes(value) or (not origin and self._is_text(value)):
            name, allowed = (self.key, self.allowed) if origin else (self.name, self._allowed("None"))
            if _has_null(value):
                allowed = "without a null byte"
            error = ConfigError(f"could not set {name} to {value!r:.80}{_from(origin or owner)}: it must be {allowed}")
            if not origin:
                error.add_note(f"prefork takes it for its setting {name}: {self.setting.help}. What is the program's "
                               f"own needs another name.")  # fmt: skip
            raise error

    def takes(self, value: object) -> bool:
        """Return True for a value of the right type and range, but for None."""
        return self._is_of_type(value) and self._in_range(value)

    def _is_of_type(self, value: object) -> bool:
        if self.setting.several:
            return isinstance(value, tuple) and bool(value)
        if self.setting.unit == "address":
            return _is_address(value, self.type)
        if isinstance(value, bool) or self.type is bool:  # a bool is an int in Python, but an error here
            return isinstance(value, bool) and self.type is bool
        if self.type is float:
            return isinstance(value, (int, float)) and math.isfinite(value)
        return isinstance(value, self.type) and not _has_null(value)

    def _is_text(self, value: object) -> bool:
        """Return True for an address as the command line has it, which would be taken for the name of a file here."""
        is_address = self.setting.unit == "address" and self.type is object
        return is_address and isinstance(value, str) and ":" in value.partition("/")[0]

    def _in_range(self, value: Any) -> bool:
        s = self.setting
        return (
            (not s.choices or value in s.choices)
            and (s.unit != "directory" or os.path.isabs(value))
            and (s.unit != "networks" or _are_networks(value))
            and (s.above is None or value > s.above)
            and (s.at_least is None or value >= s.at_least)
            and (s.at_most is None or value <= s.at_most)
        )


def _are_networks(text: str) -> bool:
    from ..sockets.networks import Networks

    try:
        Networks(text)
    except ValueError:
        return False
    return True


def _has_null(value: object) -> bool:
    """Return True for a text that the kernel takes for another one, so that nothing is called so: no path, no user."""
    return isinstance(value, str) and "\0" in value


def _from(origin: str) -> str:
    return f" (from {origin})" if origin else ""


def _is_address(value: object, kind: type) -> bool:
    """Return True for a (host, port) tuple or a Unix path; or, if `kind` asks for it, an Address."""
    if kind is not object:
        return isinstance(value, kind)
    if isinstance(value, (str, bytes, os.PathLike)):
        return bool(os.fspath(value))
    if not isinstance(value, (tuple, list)) or len(value) < 2:
        return False
    host, port = value[:2]
    return isinstance(host, str) and type(port) is int and 0 <= port <= 65535


# --- reading the annotations ----------------------------------------------------------------------


def settings(cls: type) -> Mapping[str, Field]:
    """Return every setting of `cls` and its bases, in the order of definition, the most basic class first.

    A subclass changes the default by setting the attribute, and the rest by annotating it with another Setting.
    """
    found: dict[str, Field] = {}
    for klass in reversed(cls.__mro__):
        for name, hint, setting in _annotated(klass):
            found[name] = Field(name, *_type_of(hint), getattr(cls, name), setting)
    return found


def _own_annotations(klass: type) -> Mapping[str, Any]:
    """Return the annotations of the class's own body. An unresolvable name must not affect the others."""
    if sys.version_info >= (3, 14):
        # Lazy (PEP 649): they are not in the class's __dict__, and read as values, one unknown name fails them all.
        return annotationlib.get_annotations(klass, format=annotationlib.Format.FORWARDREF)
    own: Mapping[str, Any] = vars(klass).get("__annotations__", {})
    return own


def _annotated(klass: type) -> Iterator[tuple[str, Any, Setting]]:
    for name, hint in _own_annotations(klass).items():
        if isinstance(hint, str):
            # Evaluate only those with a Setting: the user's other annotations may use undefined names.
            if "Setting(" not in hint:
                continue
            hint = eval(hint, vars(sys.modules[klass.__module__]), dict(vars(klass)))
        if get_origin(hint) is Annotated:
            for extra in hint.__metadata__:
                if isinstance(extra, Setting):
                    yield name, hint.__origin__, extra


def _type_of(hint: Any) -> tuple[type, bool]:
    """Return the type X of `X | None`, or `object` for several types, and whether None is allowed."""
    if get_origin(hint) not in (Union, types.UnionType):
        return hint, False
    inner = [arg for arg in get_args(hint) if arg is not types.NoneType]
    return inner[0] if len(inner) == 1 else object, types.NoneType in get_args(hint)


# --- combinations ---------------------------------------------------------------------------------

# (the smaller, the larger, whether they may be equal). A setting that is None or absent is not compared.
_IN_ORDER = (
    ("min_children", "max_children", True),
    ("min_spare_children", "max_spare_children", True),
    ("min_spare_children", "max_children", True),
    ("max_spare_children", "max_children", True),
    ("slow_request_timeout", "request_timeout", False),
)

_FOR_CONNECTIONS = (
    "first_byte_timeout", "max_queue_wait", "max_connections", "max_connections_per_client", "tls_certificate",
)  # fmt: skip


def validate(target: object, origins: Mapping[str, str] | None = None) -> None:
    """Check every setting of a server or a server class, alone and in combination.

    `origins` maps settings to their sources, in words for the message. Raises ConfigError, with one sentence that has
    the name, the value and the allowed values.
    """
    cls = target if isinstance(target, type) else type(target)
    fields = settings(cls)
    for name, field in fields.items():
        value = asked_of(target, name)
        if not is_own(value) and not (target is cls and hasattr(value, "__get__")):  # that is asked of the object
            field.check(value, (origins or {}).get(name, ""), owner_of(target, name))
    for smaller, larger, may_be_equal in _IN_ORDER:
        if smaller in fields and larger in fields:
            _check_order(target, fields[smaller], fields[larger], may_be_equal, origins or {})
    if getattr(target, "socket_type", None) == socket.SOCK_DGRAM:
        for name in _FOR_CONNECTIONS:
            if getattr(target, name, None) is not None:
                raise ConfigError(f"could not set {name}: it is for connections, and this server takes datagrams")
    if "user" in fields:
        from .users import privileges_of

        privileges_of(target, origins)


def _check_order(target: object, smaller: Field, larger: Field, may_be_equal: bool, origins: Mapping[str, str]) -> None:
    low, high = value_of(target, smaller.name), value_of(target, larger.name)
    if (
        low is None
        or high is None
        or hasattr(low, "__get__")
        or hasattr(high, "__get__")
        or low < high
        or (low == high and may_be_equal)
    ):
        return
    bound = "at most" if may_be_equal else "less than"
    raise ConfigError(
        f"could not set {smaller.name} to {low}{_from(origins.get(smaller.name, ''))}: it must be {bound} "
        f"{larger.name}, which is {high}{_from(origins.get(larger.name, ''))}"
    )


# --- text -----------------------------------------------------------------------------------------

_BOOLEANS = {"yes": True, "true": True, "on": True, "1": True, "no": False, "false": False, "off": False, "0": False}
_NONE = {"none", "off"}


def parse(field: Field, text: str, origin: str = "") -> Any:
    """Parse the text of a setting: `512MiB`, `30s`, `none`, `yes`, or a plain number.

    Raises ConfigError, as `validate` does, if the text is invalid or the value is not allowed.
    """
    word = text.strip().lower()
    try:
        value = None if field.optional and word in _NONE else _read(field, text, word)
        field.check(value)
    except (ValueError, KeyError, OverflowError) as exc:
        if "could not read" in str(exc):  # the parser explains the error itself
            raise ConfigError(str(exc).replace(repr(text), repr(text) + _from(origin), 1)) from None
        examples = UNITS[field.setting.unit].examples
        raise ConfigError(
            f"could not set {field.key} to {text!r}{_from(origin)}: it must be {field.allowed}{examples}"
        ) from None
    return value


def _read(field: Field, text: str, word: str) -> Any:
    if field.type is bool:
        return _BOOLEANS[word]
    if field.setting.unit == "address":
        return _read_address(field, text)
    if field.setting.unit == "networks":
        return UNITS["networks"].read(text)
    if field.type is str:
        return word if field.setting.choices else text
    number = UNITS[field.setting.unit].read(word)
    return float(number) if field.type is float else number


def _read_address(field: Field, text: str) -> Any:
    if field.setting.several:
        from ..sockets.addresses import parse_addresses

        return parse_addresses(text)
    if field.setting.kinds == ("unix",):
        from ..sockets.addresses import control_path

        return control_path(text)
    address = UNITS["address"].read(text)
    if field.setting.kinds and (address.kind not in field.setting.kinds or address.fd is not None):
        raise ValueError(text)
    return address.address if field.type is object or field.type is str else address


def show(value: object, unit: UnitName = "") -> str:
    """Format a value as a user may type it: `off`, `yes`, `30s`, `512MiB`."""
    if value is None:
        return "off"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if unit == "address" or isinstance(value, (int, float)):
        return UNITS[unit].show(value)
    return str(value)
