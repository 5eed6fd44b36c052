"""Tools that read annotations at run time (documentation, validation, injection) can read all of ours."""

import inspect
import typing
from collections.abc import Iterator
from typing import Any

import pytest

import prefork
from prefork import testing


def annotated(name: str, value: Any) -> Iterator[tuple[str, Any]]:
    """What has annotations of a public name: itself, and the methods and properties of a class."""
    yield name, value
    for cls in value.__mro__ if isinstance(value, type) else ():
        for attribute, found in vars(cls).items():
            parts = [getattr(found, part, None) for part in ("fget", "fset", "__func__", "ours")]
            for each in (found, *parts):
                if inspect.isfunction(each) and each.__module__.startswith("prefork"):
                    yield f"{name}.{attribute}", each


NAMES = [(name, module) for module in (prefork, testing) for name in module.__all__]


@pytest.mark.parametrize(("name", "module"), NAMES)
def test_hints_can_be_read(name: str, module: Any) -> None:
    """typing.get_type_hints() answers for each public class and function, and for each method of a class."""
    for where, found in annotated(name, getattr(module, name)):
        try:
            typing.get_type_hints(found, include_extras=True)
        except NameError as exc:
            pytest.fail(f"{where}: {exc}")


def test_what_is_loaded_late_is_found() -> None:
    """It is the class that the method returns an object of."""
    assert typing.get_type_hints(prefork.ForkingMixIn.statistics) == {"return": prefork.Statistics}
