"""How our value class gets into prometheus_client: a hook on `sys.meta_path`, which is there until somebody imports it.

Runs in any program that imports prefork, and imports nothing itself: prometheus_client takes 100 ms and 13 MB.
"""

import sys
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

from .values import VALUES, Value


def install_hook() -> None:
    """Have prometheus_client use our value class, from its import on, or from now on if it is imported already.

    A choice of the user's stands: the class is replaced only where it is prometheus_client's plain one, not with
    PROMETHEUS_MULTIPROC_DIR.
    """
    module = sys.modules.get(VALUES)
    if module is not None:
        _set_class(module)
    elif not any(isinstance(finder, _Hook) for finder in sys.meta_path):
        sys.meta_path.insert(0, _Hook())


def _set_class(module: ModuleType) -> None:
    if module.ValueClass is module.MutexValue:
        module.ValueClass = Value  # type: ignore[attr-defined]


class _Hook:
    """Finds one module as the others do, and takes a look at it once it is there."""

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> ModuleSpec | None:
        if name != VALUES:
            return None
        for finder in sys.meta_path:
            spec = finder.find_spec(name, path, target) if finder is not self else None
            if spec is not None and spec.loader is not None:
                spec.loader = _Loader(spec.loader, self)  # type: ignore[assignment]  # all of a loader, by __getattr__
                return spec
        return None


class _Loader:
    """A loader that sets our class after the module has run, and gives the module back its own loader before."""

    def __init__(self, loader: Any, hook: _Hook) -> None:
        self._loader = loader
        self._hook = hook

    def exec_module(self, module: ModuleType) -> None:
        module.__loader__ = self._loader
        if module.__spec__ is not None:
            module.__spec__.loader = self._loader
        self._loader.exec_module(module)
        _set_class(module)
        if self._hook in sys.meta_path:
            sys.meta_path.remove(self._hook)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._loader, name)
