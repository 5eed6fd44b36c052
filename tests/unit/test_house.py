"""The rules of the house that can be read off the source: floors, one fork, one reap, one signal.signal."""

import ast
from collections.abc import Iterator
from pathlib import Path

import prefork

ROOT = Path(prefork.__file__).parents[1]
BUILDINGS = ("prefork", "workers", "metrics")


def sources(building: str) -> Iterator[tuple[str, ast.Module]]:
    for path in sorted((ROOT / building).rglob("*.py")):
        yield str(path.relative_to(ROOT)), ast.parse(path.read_text())


def imports(building: str) -> Iterator[tuple[str, str]]:
    """(file, absolute name of what it imports), of every import wherever it stands."""
    package = {"prefork": "prefork", "workers": "prefork.workers", "metrics": "prefork.metrics"}[building]
    for name, tree in sources(building):
        for node in ast.walk(tree):
            if isinstance(node, ast.Import):
                yield from ((name, alias.name) for alias in node.names)
            elif isinstance(node, ast.ImportFrom):
                here = package.split(".")[: len(package.split(".")) + 1 - node.level] if node.level else []
                module = ".".join([*here, *([node.module] if node.module else [])])
                yield from ((name, f"{module}.{alias.name}") for alias in node.names)


def callers(*dotted: str) -> set[str]:
    """The files that call, or hand on, one of these functions by its dotted name."""
    return {
        name
        for building in BUILDINGS
        for name, tree in sources(building)
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute) and ast.unparse(node) in dotted
    }


def is_under(name: str, *packages: str) -> bool:
    return any(f"{name}.".startswith(f"{package}.") for package in packages)


def test_sources_are_found() -> None:
    """The rules below look at files that are there."""
    assert all(any(sources(building)) for building in BUILDINGS)


def test_metrics_stands_on_nothing() -> None:
    """metrics/ imports neither workers/ nor prefork/."""
    wrong = [(f, n) for f, n in imports("metrics") if is_under(n, "prefork") and not is_under(n, "prefork.metrics")]
    assert wrong == []


def test_workers_stand_on_metrics() -> None:
    """workers/ imports of this project only itself and metrics/."""
    allowed = ("prefork.workers", "prefork.metrics")
    wrong = [(f, n) for f, n in imports("workers") if is_under(n, "prefork") and not is_under(n, *allowed)]
    assert wrong == []


def test_nobody_imports_a_bare_building() -> None:
    """`workers` and `metrics` are never imported as top-level packages: users have modules of these names."""
    wrong = [(f, n) for building in BUILDINGS for f, n in imports(building) if is_under(n, "workers", "metrics")]
    assert wrong == []


def test_relative_inside_absolute_across() -> None:
    """Inside a building imports are relative, so that a file moves with its neighbours."""
    wrong = []
    for building, package in (("workers", "prefork.workers"), ("metrics", "prefork.metrics")):
        for name, tree in sources(building):
            wrong += [
                (name, node.module)
                for node in ast.walk(tree)
                if isinstance(node, ast.ImportFrom) and not node.level and is_under(node.module or "", package)
            ]
    assert wrong == []


def test_one_fork() -> None:
    """One module forks."""
    assert callers("os.fork", "os.forkpty", "os.posix_spawn") == {"prefork/master/processes.py"}


def test_one_reap() -> None:
    """The module that forks is the one that reaps, by pid."""
    assert callers("os.wait", "os.wait3", "os.wait4", "os.waitpid", "os.waitid") == {"prefork/master/processes.py"}


def test_one_place_for_signal_handlers() -> None:
    """One module installs signal handlers."""
    assert callers("signal.signal", "signal.sigaction") == {"workers/signals.py"}
