"""What is imported lazily (PEP 810, Python 3.15 on): imported ahead of its first use, where that is the better time.

Runs in the master, before the first fork, so that the workers share what else each would import for itself; and in the
one worker of a check or of a rehearsal, where a module that cannot be imported is found before it is in service.
"""

import sys
from collections.abc import Iterator
from types import ModuleType

__all__ = ["Failed", "import_lazy"]

Failed = tuple[str, Exception]  # what is imported lazily, by the name of who imports it, and why it could not be


def import_lazy() -> list[Failed]:
    """Import what is still lazy in any module, and what becomes known by that; what could not be imported.

    What the standard library itself imports lazily is left to it, unless the interpreter was told that every import is
    lazy. Does nothing before Python 3.15.
    """
    failed: list[Failed] = []
    tried: set[tuple[str, str]] = set()
    while found := [each for each in _lazy() if each not in tried]:
        for module, attribute in found:
            try:
                getattr(sys.modules[module], attribute)  # imports it, and puts what it is in the place of the promise
            except Exception as exc:
                failed.append((f"{module}.{attribute}", exc))
        tried.update(found)
    return failed


if sys.version_info >= (3, 15):
    from types import LazyImportType

    def _lazy() -> Iterator[tuple[str, str]]:
        everything = sys.get_lazy_imports() == "all"
        for name, module in list(sys.modules.items()):
            if isinstance(module, ModuleType) and (everything or name.partition(".")[0] not in sys.stdlib_module_names):
                for attribute, value in list(vars(module).items()):
                    if type(value) is LazyImportType:
                        yield name, attribute
else:

    def _lazy() -> Iterator[tuple[str, str]]:
        return iter(())
