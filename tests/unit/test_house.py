"""The rules of the house that can be read off the source: floors, one fork, one reap, one signal.signal."""

import ast
import re
from collections import defaultdict
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

import prefork
from prefork.master.children import ChildState
from prefork.master.policy import Phase
from prefork.metrics.log_events import LogEvent

pytestmark = pytest.mark.once  # nothing of it is the interpreter's

ROOT = Path(prefork.__file__).parents[1]
BUILDINGS = ("prefork", "workers", "metrics")


def sources(building: str) -> Iterator[tuple[str, ast.Module]]:
    for path in sorted((ROOT / building).rglob("*.py")):
        yield str(path.relative_to(ROOT)), ast.parse(path.read_text())


def imports(building: str) -> Iterator[tuple[str, str]]:
    """(file, absolute name of what it imports), of every import wherever it stands."""
    for name, tree in sources(building):
        for node in ast.walk(tree):
            if isinstance(node, ast.Import):
                yield from ((name, alias.name) for alias in node.names)
            elif isinstance(node, ast.ImportFrom):
                module = imported_from(ROOT / name, node)
                yield from ((name, f"{module}.{alias.name}") for alias in node.names)


def imported_from(path: Path, node: ast.ImportFrom) -> str:
    """The absolute name of the module that an import in this file names."""
    here = module_of(path).split(".")
    package = here if path.name == "__init__.py" else here[:-1]
    start = package[: len(package) + 1 - node.level] if node.level else []
    return ".".join([*start, *([node.module] if node.module else [])])


def module_of(path: Path) -> str:
    """The dotted name under which a file is imported."""
    parts = path.relative_to(ROOT).with_suffix("").parts
    top = "prefork" if parts[0] == "prefork" else f"prefork.{parts[0]}"
    return ".".join([top, *parts[1:]]).removesuffix(".__init__")


MODULES = {module_of(path): path for building in BUILDINGS for path in sorted((ROOT / building).rglob("*.py"))}


def arrows(*, late: bool) -> dict[str, set[str]]:
    """What each module imports of ours, for types too. `late`: also inside a function."""
    found: dict[str, set[str]] = {}
    for name, path in MODULES.items():
        tree = ast.parse(path.read_text())
        functions = [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)]
        inside = {node for function in functions for node in ast.walk(function)}
        found[name] = set()
        for node in ast.walk(tree):
            if isinstance(node, ast.ImportFrom) and (late or node not in inside):
                base = imported_from(path, node)
                for alias in node.names:
                    full = f"{base}.{alias.name}"
                    found[name].add(full if full in MODULES else base)
        found[name] &= set(MODULES) - {name}
    return found


def package_of(module: str) -> str:
    """The package in which a module stands; `face` for what a program imports."""
    parts = module.split(".")
    return parts[1] if len(parts) > 2 or parts[-1] in ("workers", "metrics") else "face"


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


# Written to be copied by users, and run by its path before the package can be imported.
ABSOLUTE = {"prefork/examples.py", "prefork/takeover.py"}


def building_of(module: str) -> str:
    """The building in which a module of ours stands."""
    second = module.split(".")[1:2]
    return second[0] if second and second[0] in ("workers", "metrics") else "prefork"


def test_relative_inside_absolute_across() -> None:
    """Inside a building imports are relative, so that a file moves with its neighbours; across they are absolute, so
    that one sees where it leaves."""
    wrong = []
    for building in BUILDINGS:
        for name, tree in sources(building):
            for node in ast.walk(tree):
                targets = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
                if isinstance(node, ast.ImportFrom):
                    base = imported_from(ROOT / name, node)
                    targets = [f"{base}.{alias.name}" for alias in node.names]
                wrong += [
                    (name, target)
                    for target in targets
                    if is_under(target, "prefork") and name not in ABSOLUTE
                    if (building_of(target) == building) != bool(getattr(node, "level", 0))
                ]
    assert wrong == []


def test_no_circle() -> None:
    """No file imports another that imports it, over however many others, be it for types only."""
    try:
        tuple(TopologicalSorter(arrows(late=False)).static_order())
    except CycleError as exc:
        pytest.fail(" → ".join(reversed(exc.args[1])))


# Which packages a package may see. What is not listed here sees none; the face composes them all.
SEES = {
    "workers": {"metrics"},
    "sockets": {"metrics", "workers"},
    "settings": {"sockets", "workers"},
    "inheritance": {"workers", "metrics"},
    "surroundings": {"metrics", "workers"},
    "master": {"sockets", "workers", "metrics"},
    "reload": {"master", "settings", "sockets", "surroundings", "workers", "metrics"},
    "control": {"reload", "master", "settings", "sockets", "workers", "metrics"},
    "exporter": {"inheritance", "master", "sockets", "workers", "metrics"},
    "supervised": {"exporter", "reload", "master", "settings", "sockets", "workers", "metrics"},
    "holder": {"master", "sockets", "workers", "metrics"},
    "top": {"control", "sockets"},
    "cli": {
        "top",
        "inheritance",
        "control",
        "exporter",
        "reload",
        "master",
        "settings",
        "sockets",
        "surroundings",
        "workers",
        "metrics",
    },
}
# The new image without its program is put together of the same parts as a pool, and has nobody to do it.
COMPOSES = {"prefork.reload.degraded"}


def test_packages_see_each_other_downward() -> None:
    """A package imports of the others only those below it, at whatever moment; the command line is imported by none."""
    wrong = [
        (module, target)
        for module, targets in arrows(late=True).items()
        for target in targets
        for here, there in [(package_of(module), package_of(target))]
        if here != there and here != "face" and there != "face" and there not in SEES.get(here, set())
        if module not in COMPOSES
    ]
    assert wrong == []
    found = arrows(late=True).items()
    users = {module for module, targets in found if any(is_under(target, "prefork.cli") for target in targets)}
    assert {module for module in users if package_of(module) != "cli"} == {"prefork.__main__"}


def test_the_face_is_small() -> None:
    """What a program imports is at most 25 files; all else stands in the package of its feature."""
    assert len(list((ROOT / "prefork").glob("*.py"))) <= 25


def test_files_are_short() -> None:
    """A file has at most 350 lines, or its docstring says why it is longer than most."""
    long = {module: text for module, path in MODULES.items() if (text := path.read_text()).count("\n") > 350}
    assert [name for name, text in long.items() if "Longer than most files:" not in str(docstring(text))] == []


def docstring(text: str) -> str | None:
    """The docstring of a module, without its line ends."""
    found = ast.get_docstring(ast.parse(text))
    return None if found is None else " ".join(found.split())


def test_a_package_says_what_it_is() -> None:
    """The `__init__.py` of a package is its docstring; only that of prefork itself has more."""
    for module, path in MODULES.items():
        if path.name == "__init__.py" and module != "prefork":
            assert [type(node) for node in ast.parse(path.read_text()).body] == [ast.Expr], module


def test_one_name_one_thing() -> None:
    """No class and no public constant of one name stands in two files."""
    places = defaultdict(set)
    for module, path in MODULES.items():
        for node in ast.parse(path.read_text()).body:
            names = [node.name] if isinstance(node, ast.ClassDef) else []
            if isinstance(node, ast.Assign | ast.AnnAssign):
                targets = node.targets if isinstance(node, ast.Assign) else [node.target]
                names = [target.id for target in targets if isinstance(target, ast.Name) and not target.id.islower()]
            for name in names:
                if not name.startswith("_"):
                    places[name].add(module)
    assert {name: modules for name, modules in places.items() if len(modules) > 1} == {}


def test_docstrings_are_sentences() -> None:
    """None begins with a question word: it says what its subject is."""
    asks = re.compile(r"(Whether|What|Who|Which|Where|When|How)\b")
    found = [
        f"{name}:{node.body[0].lineno}"
        for building in BUILDINGS
        for name, tree in sources(building)
        for node in ast.walk(tree)
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef)
        and asks.match(ast.get_docstring(node) or "")
    ]
    assert not found


def test_one_fork() -> None:
    """One module forks."""
    assert callers("os.fork", "os.forkpty", "os.posix_spawn") == {"prefork/master/processes.py"}


def test_one_reap() -> None:
    """The module that forks is the one that reaps, by pid."""
    assert callers("os.wait", "os.wait3", "os.wait4", "os.waitpid", "os.waitid") == {"prefork/master/processes.py"}


def test_one_place_for_the_reason_of_an_error() -> None:
    """One function says why a call of the kernel failed: it is never "None", and no name in it is in small letters."""
    found = {
        name
        for building in BUILDINGS
        for name, tree in sources(building)
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute) and node.attr == "strerror" and ast.unparse(node.value) != "os"
    }
    assert found == {"prefork/errors.py"}


def test_one_place_says_whose_a_module_is() -> None:
    """One module asks a name whether it is ours; but for the one that runs before the package can be imported."""
    asks = re.compile(r"""startswith\(\(?"prefork\.|partition\("\."\).*(== "prefork"|stdlib_module_names)""")
    found = {str(path.relative_to(ROOT)) for path in MODULES.values() if asks.search(path.read_text())}
    assert found == {"prefork/takeover.py", "workers/definitions.py"}


def test_one_place_for_signal_handlers() -> None:
    """One module installs signal handlers."""
    assert callers("signal.signal", "signal.sigaction") == {"workers/signals.py"}


LOGS = {f"log.{level}" for level in ("debug", "info", "warning", "error", "exception", "critical", "log")}


def log_calls() -> Iterator[tuple[str, ast.Call]]:
    for module, path in MODULES.items():
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and ast.unparse(node.func) in LOGS:
                yield f"{module}:{node.lineno}", node


def test_every_log_call_names_its_event() -> None:
    """Each call of a logger says which event of the closed list it is."""
    unnamed = []
    for where, call in log_calls():
        extra = next((keyword.value for keyword in call.keywords if keyword.arg == "extra"), None)
        if extra is None or not re.match(r"event\(LogEvent[.\[]", ast.unparse(extra)):
            unnamed.append(where)
    assert unnamed == []


def test_every_event_happens() -> None:
    """No event of the list is one that nobody logs; those of a state or a phase are looked up by its name."""
    text = "\n".join(path.read_text() for module, path in MODULES.items() if module != "prefork.metrics.log_events")
    named = set(re.findall(r"LogEvent\.([A-Z_]+)", text))
    named |= {f"CHILD_{state.name}" for state in ChildState} | {phase.name for phase in Phase}
    assert {each.name for each in LogEvent} - named == set()
