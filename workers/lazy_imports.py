"""Lazy imports (PEP 810, Python 3.15 and later), carried out ahead of their first use.

Runs in the master before the first fork, so that the workers share memory that each would otherwise fill for itself;
and in the single worker of a check or a rehearsal, so that a module that cannot be imported is found before it is in
service.
"""

import sys
from collections.abc import Iterator
from types import ModuleType

from prefork.metrics.late_imports import apart_from_forks

from .definitions import is_standard_module

__all__ = ["Failed", "import_lazy"]

Failed = tuple[str, Exception]  # the lazy import, as "<importing module>.<attribute>", and why it failed


def import_lazy() -> list[Failed]:
    """Import whatever is still lazy in any module, and in those that this imports. Return what could not be imported.

    Lazy imports inside the standard library are left alone, unless the interpreter was told to make every import lazy.
    Does nothing before Python 3.15.
    """
    failed: list[Failed] = []
    tried: set[tuple[str, str]] = set()
    while found := [each for each in _lazy() if each not in tried]:
        for module, attribute in found:
            try:
                with apart_from_forks():
                    getattr(sys.modules[module], attribute)  # imports it, and replaces the lazy object
            except Exception as exc:
                failed.append((f"{module}.{attribute}", exc))
        tried.update(found)
    return failed


if sys.version_info >= (3, 15):
    from types import LazyImportType

    def _lazy() -> Iterator[tuple[str, str]]:
        everything = sys.get_lazy_imports() == "all"
        for name, module in list(sys.modules.items()):
            if isinstance(module, ModuleType) and (everything or not is_standard_module(name)):
                for attribute, value in list(vars(module).items()):
                    if type(value) is LazyImportType:
                        yield name, attribute
else:

    def _lazy() -> Iterator[tuple[str, str]]:
        return iter(())
