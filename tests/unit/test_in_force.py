"""Settings where the program has something of its own by that name."""

import functools
import io
import logging
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import prefork
from prefork.settings.effects import own_values
from prefork.settings.fields import settings, validate
from prefork.settings.in_force import InForce, value_of
from prefork.workers.definitions import hook

POOL: Any = prefork.PreForkingTCPServer
FIELDS = settings(POOL)


def method(self: Any) -> None: ...


@pytest.fixture
def own() -> Iterator[dict[str, Any]]:
    with socket.socket() as sock:
        yield {"a file": io.StringIO(), "a logger": logging.getLogger("access"), "a socket": sock, "a method": method}


@pytest.mark.parametrize("kind", ["a file", "a logger", "a socket", "a method"])
@pytest.mark.parametrize("name", FIELDS)
def test_what_can_be_no_setting(name: str, kind: str, own: dict[str, Any]) -> None:
    """What can be the value of no setting is the program's own: it serves with the default, and that is said."""
    cls: Any = type("Mine", (POOL,), {name: own[kind]})
    server = cls.__new__(cls)
    for target in (cls, server):
        validate(target)
        assert value_of(target, name) == getattr(InForce(target), name) == getattr(POOL, name)
    ((whose, why),) = own_values(server, settings(cls))
    assert whose == f"{name} of class {__name__}.Mine"
    assert why.startswith(f"it is a {type(getattr(server, name)).__name__}, and prefork's setting of that name is ")


@pytest.mark.parametrize("name", ["working_directory", "control_socket", "metrics_address"])
def test_paths(name: str, tmp_path: Path) -> None:
    """A path may be one of pathlib's."""
    cls: Any = type("Mine", (POOL,), {name: tmp_path / "there"})
    validate(cls)
    assert value_of(cls, name) == str(tmp_path / "there")


@pytest.mark.parametrize("kind", [property, functools.cached_property])
def test_properties(kind: Any) -> None:
    """One that is computed is asked of the object, and checked there."""
    cls: Any = type("Mine", (POOL,), {"max_children": kind(lambda self: self.wanted), "min_children": 1})
    if kind is functools.cached_property:
        vars(cls)["max_children"].__set_name__(cls, "max_children")
    validate(cls)
    server = cls.__new__(cls)
    server.wanted = 3
    validate(server)
    assert value_of(server, "max_children") == 3
    other = cls.__new__(cls)
    other.wanted = 0
    with pytest.raises(prefork.ConfigError, match="could not set max_children to 0 "):
        validate(other)


@pytest.mark.parametrize("name", ["worker_started", "worker_draining", "worker_stopping"])
@pytest.mark.parametrize(("value", "said"), [(False, 1), ("yes", 1), (3, 1), (None, 0)])
def test_what_can_be_no_hook(name: str, value: object, said: int) -> None:
    """What nobody can call is no hook of a pool's; that is said, but of None, which says it itself."""
    cls: Any = type("Mine", (POOL,), {name: value})
    server = cls.__new__(cls)
    assert hook(server, name)() is None
    assert [each[0] for each in own_values(server, settings(cls))] == [f"{name} of class {__name__}.Mine"] * said
