"""The public surface, compared with the socketserver of the interpreter that runs this: names, defaults, signatures."""

import inspect
import socketserver
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

import prefork

ROOT = Path(__file__).parents[2]

OURS = {
    "SupervisedMixIn", "PreForkingMixIn", "PreForkingTCPServer", "PreForkingUDPServer", "PreForkingUnixStreamServer",
    "PreForkingUnixDatagramServer", "ConfigError", "BootError", "BindError", "PreforkError", "Statistics",
    "every", "rehearsing", "KeepAliveMixIn",
}  # fmt: skip
SINCE_3_12 = {"ForkingUnixStreamServer", "ForkingUnixDatagramServer"}


def attributes(cls: type) -> list[tuple[str, Any]]:
    """The public attributes of a class, and `__init__`."""
    return [
        (name, getattr(cls, name)) for name in dir(cls) if not name.startswith("_") or name in ("__init__", "__enter__")
    ]


CLASS_ATTRIBUTES = [
    pytest.param(name, attribute, value, id=f"{name}.{attribute}")
    for name in socketserver.__all__
    for attribute, value in attributes(getattr(socketserver, name))
    if value is not object.__init__
]


def test_all_is_the_standard_librarys_and_ours() -> None:
    """`__all__` holds every name of socketserver's in every version, ours, and nothing else."""
    assert set(prefork.__all__) == set(socketserver.__all__) | SINCE_3_12 | OURS
    assert len(prefork.__all__) == len(set(prefork.__all__))


def test_all_holds_every_public_object() -> None:
    """As CPython's test_all asks of socketserver: what is defined in prefork and has a public name is in `__all__`."""
    for name in prefork.__all__:  # some are loaded when they are named
        getattr(prefork, name)
    defined = {
        name
        for name, value in vars(prefork).items()
        if not name.startswith("_")
        and not isinstance(value, ModuleType)
        and str(getattr(value, "__module__", "")).startswith("prefork")
    }
    assert defined == set(prefork.__all__)


@pytest.mark.parametrize(("name", "attribute", "value"), CLASS_ATTRIBUTES)
def test_attribute(name: str, attribute: str, value: Any) -> None:
    """Every public attribute is there, with the standard default, or callable by the same arguments."""
    ours = getattr(getattr(prefork, name), attribute)
    if not callable(value):
        if not isinstance(inspect.getattr_static(getattr(prefork, name), attribute), property):
            assert ours == value
        return
    theirs = inspect.signature(value).parameters.values()
    mine = inspect.signature(ours).parameters.values()
    assert [(p.name, p.kind, p.default) for p in mine] == [(p.name, p.kind, p.default) for p in theirs]


@pytest.mark.parametrize("name", socketserver.__all__)
def test_bases(name: str) -> None:
    """A class is a subclass of the same public classes as in the standard library."""
    theirs = {base.__name__ for base in getattr(socketserver, name).__mro__}
    ours = {base.__name__ for base in getattr(prefork, name).__mro__}
    assert theirs <= ours


def test_every_name_of_the_standard_module() -> None:
    """What the standard module has beside its classes, programs take as well: its private names, and its modules."""
    modules = [name for name, value in vars(socketserver).items() if isinstance(value, ModuleType)]
    for name in ("_ServerSelector", "_Threads", "_NoThreads", *modules):
        assert getattr(prefork, name) is getattr(socketserver, name)
    assert {name for name in socketserver.__all__ if getattr(prefork, name) is getattr(socketserver, name)} == set()
    with pytest.raises(AttributeError, match="module 'prefork' has no attribute '_Selector'"):
        _ = prefork._Selector  # type: ignore[attr-defined]


def test_the_files_of_a_handler() -> None:
    """A program may ask whether its `wfile` is the unbuffered one, by the private name of its class."""
    assert issubclass(prefork._SocketWriter, socketserver.BufferedIOBase)  # type: ignore[attr-defined]
    assert prefork._SocketWriter is not socketserver._SocketWriter  # type: ignore[attr-defined]


def test_import_stands_alone() -> None:
    """`import prefork` imports neither socketserver nor what is built on it, so that it can take its place; nor does a
    pool."""
    program = (
        "import sys, prefork; prefork.PreForkingTCPServer; "
        "print([m for m in ('socketserver', 'http.server', 'xmlrpc.server', 'wsgiref', 'logging.config',"
        " 'prometheus_client') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
