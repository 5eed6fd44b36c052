"""The hook on `sys.meta_path` that puts our value class into prometheus_client; it is removed after that import.

Runs in any program that imports prefork. Must not import prometheus_client itself, which takes 100 ms and 13 MB, nor
our class before the program has imported that.
"""

import sys
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

from ..late_imports import apart_from_forks

VALUES = "prometheus_client.values"


def install_hook() -> None:
    """Make prometheus_client use our value class, from its import on, or from now on if it is already imported.

    The user's choice stands: only prometheus_client's default class is replaced, not the one that it uses with
    PROMETHEUS_MULTIPROC_DIR.
    """
    module = sys.modules.get(VALUES)
    if module is not None:
        _set_class(module)
    elif not any(isinstance(finder, _Hook) for finder in sys.meta_path):
        sys.meta_path.insert(0, _Hook())


def _set_class(module: ModuleType) -> None:
    if module.ValueClass is module.MutexValue:
        with apart_from_forks():
            from .values import Value, expect_forks  # late: for programs with metrics of their own

        expect_forks()
        module.ValueClass = Value  # type: ignore[attr-defined]


class _Hook:
    """A finder that leaves finding one module to the other finders, and wraps its loader (importlib.abc)."""

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> ModuleSpec | None:
        if name != VALUES:
            return None
        for finder in sys.meta_path:
            spec = finder.find_spec(name, path, target) if finder is not self else None
            if spec is not None and spec.loader is not None:
                spec.loader = _Loader(spec.loader, self)  # type: ignore[assignment]  # a whole loader, by __getattr__
                return spec
        return None


class _Loader:
    """A loader that first gives the module its own loader back, then executes it and sets our class."""

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
