"""The value in force of a setting, on a server or its class: the program's attribute, where that can be one.

Pure. Runs in any process. A program may have something of its own by that name: then prefork goes on with its default.
"""

import os
from typing import Any

from prefork.workers.definitions import GivesWay, definer, is_ours

from ..errors import ConfigError


def is_own(value: object) -> bool:
    """Return True for what can be no value of a setting, and so is the program's own: a function, a file, a socket, a
    logger."""
    return callable(value) or hasattr(value, "fileno") or hasattr(value, "write") or hasattr(value, "addHandler")


def plain(value: Any) -> Any:
    """Return a value of the program's as the setting has it: a path is a text."""
    return os.fspath(value) if isinstance(value, os.PathLike) else value


def asked_of(target: object, name: str) -> Any:
    """Return the attribute. Raises ConfigError where it is a property of the program's that raises."""
    try:
        return getattr(target, name)
    except Exception as exc:
        said = f"{type(exc).__name__}: {exc}"
        raise ConfigError(f"could not ask {owner_of(target, name)} for {name}: {said}") from exc


def value_of(target: object, name: str) -> Any:
    """Return the value in force of a setting: the attribute, or prefork's default where that is the program's own."""
    value = getattr(target, name)
    return default_of(target, name) if is_own(value) else plain(value)


class InForce:
    """The settings of a server, as attributes."""

    def __init__(self, server: object) -> None:
        self._server = server

    def __getattr__(self, name: str) -> Any:
        return value_of(self._server, name)


def default_of(target: object, name: str) -> Any:
    """Return prefork's own value of a setting, whatever the program's classes have."""
    cls = target if isinstance(target, type) else type(target)
    found = next(vars(base)[name] for base in cls.__mro__ if is_ours(base) and name in vars(base))
    return found.ours if isinstance(found, GivesWay) else found


def owner_of(target: object, name: str) -> str:
    """Return the class or the object that has this attribute, in words."""
    if not isinstance(target, type) and name in vars(target):
        return f"the instance of {type(target).__qualname__}"
    cls = definer(target if isinstance(target, type) else type(target), name)
    return "" if cls is None else f"class {cls.__module__}.{cls.__qualname__}"
