"""CPython's own tests, of the interpreter that runs this, unchanged, with prefork in socketserver's place.

Each run is a process of its own (harness.py), for the replacement must come before the first import.
"""

import contextlib
import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
HUNG = 120.0  # seconds; never reached unless something hangs

# They speak of the module that bears the name, not of what it does.
NAMES_THE_MODULE = {
    # It collects what `__module__ == "socketserver"` says; test_surface.py asserts the same of prefork.__all__.
    "test.test_socketserver.MiscTestCase.test_all",
}
TESTS_OF_SOCKETSERVER = 27  # in 3.11 to 3.14
if sys.version_info >= (3, 15):
    # `socketserver.__version__`, for ever "0.4", warns that it goes away; prefork's is its own, and stays.
    NAMES_THE_MODULE.add("test.test_socketserver.TestModule.test_deprecated__version__")
    TESTS_OF_SOCKETSERVER = 28


@dataclass
class Report:
    outcomes: dict[str, str]
    details: dict[str, str]
    left: list[str]
    stays: int

    def differing(self, other: "Report") -> set[str]:
        return {name for name, _ in self.outcomes.items() ^ other.outcomes.items()}

    def explain(self, names: set[str]) -> str:
        return "\n\n".join(f"{name}: {self.outcomes.get(name)}\n{self.details.get(name, '')}" for name in sorted(names))


def run(tmp_path: Path, which: tuple[str, ...], names: list[str]) -> list[Report]:
    """The reports of these harnesses, which run at the same time."""
    with contextlib.ExitStack() as stack:
        processes = []
        for each in which:
            command = [sys.executable, "-m", "tests.conformance.harness", each, str(tmp_path / each), *names]
            with open(tmp_path / f"{each}.log", "wb") as log:
                process = subprocess.Popen(command, cwd=ROOT, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
            processes.append(stack.enter_context(process))
            stack.callback(process.kill)  # before it is waited for; nothing when it has ended
        for each, process in zip(which, processes, strict=True):
            assert process.wait(HUNG) == 0, (tmp_path / f"{each}.log").read_text()
    return [Report(**json.loads((tmp_path / each).read_text())) for each in which]


def test_socketserver(tmp_path: Path) -> None:
    """All of test.test_socketserver passes but what is about the module's name; none is skipped, nothing is left."""
    (report,) = run(tmp_path, ("ours",), ["test.test_socketserver"])
    not_passed = {name for name, outcome in report.outcomes.items() if outcome != "passed"}
    assert not_passed == NAMES_THE_MODULE, report.explain(not_passed)
    assert len(report.outcomes) == TESTS_OF_SOCKETSERVER, sorted(report.outcomes)
    assert report.left == []


# Only the classes that run a server: all of test_logging takes a quarter of a minute.
LOGGING = [
    f"test.test_logging.{name}"
    for name in (
        "SocketHandlerTest",
        "UnixSocketHandlerTest",
        "DatagramHandlerTest",
        "UnixDatagramHandlerTest",
        "SysLogHandlerTest",
        "UnixSysLogHandlerTest",
        "IPv6SysLogHandlerTest",
        "HTTPHandlerTest",
        "ConfigDictTest.test_listen_config_10_ok",
        "ConfigDictTest.test_listen_config_1_ok",
        "ConfigDictTest.test_listen_verify",
    )
]


@pytest.mark.parametrize(
    "names",
    [["test.test_httpservers"], ["test.test_xmlrpc"], ["test.test_wsgiref"], LOGGING],
    ids=["http.server", "xmlrpc.server", "wsgiref", "logging"],
)
def test_users_of_socketserver(names: list[str], tmp_path: Path) -> None:
    """What the standard library builds on socketserver does over us, test by test, what it does over the original."""
    ours, stock = run(tmp_path, ("ours", "stock"), names)
    differing = {name for name, _ in ours.outcomes.items() ^ stock.outcomes.items()}
    assert ours.outcomes == stock.outcomes, ours.explain(differing)
    assert "passed" in ours.outcomes.values()
    assert ours.left == stock.left == []


# They take the objects of a handler for connections; one that is kept has an object for each stay.
ONE_OBJECT = "test.test_xmlrpc.KeepaliveServerTestCase"


@pytest.mark.parametrize(
    "names",
    [["test.test_httpservers"], ["test.test_xmlrpc"], ["test.test_wsgiref"]],
    ids=["http.server", "xmlrpc.server", "wsgiref"],
)
def test_kept_connections(names: list[str], tmp_path: Path) -> None:
    """With KeepAliveMixIn before each handler class, in a loop and stay by stay, they do what they do without it."""
    looped, kept, stock = run(tmp_path, ("looped", "kept", "stock"), names)
    assert looped.outcomes == stock.outcomes, looped.explain(looped.differing(stock))
    differing = {name for name in kept.differing(stock) if ONE_OBJECT not in name}
    assert not differing, kept.explain(differing)
    assert looped.left == kept.left == []
    assert "passed" in stock.outcomes.values()
    assert [report.stays > 0 for report in (looped, kept, stock)] == [False, True, False]


# Where test_socket speaks of files.
FILES = [
    f"test.test_socket.{name}"
    for name in (
        "FileObjectClassTestCase",
        "UnbufferedFileObjectClassTestCase",
        "LineBufferedFileObjectClassTestCase",
        "SmallBufferedFileObjectClassTestCase",
        "UnicodeReadFileObjectClassTestCase",
        "UnicodeWriteFileObjectClassTestCase",
        "UnicodeReadWriteFileObjectClassTestCase",
        "GeneralModuleTests.test_dealloc_warn",
        "GeneralModuleTests.test_makefile_invalid_mode",
        "GeneralModuleTests.test_makefile_mode",
        "GeneralModuleTests.test_name_closed_socketio",
        "GeneralModuleTests.test_pickle",
        "GeneralModuleTests.test_unusable_closed_socketio",
    )
]


@pytest.mark.parametrize(
    "names",
    [FILES, ["test.test_socketserver", "test.test_httpservers"]],
    ids=["files", "servers"],
)
def test_accepted_sockets(names: list[str], tmp_path: Path) -> None:
    """With AcceptedSocket as `socket.socket`, tests of sockets' files and of servers do what they do without."""
    ours, stock = run(tmp_path, ("accepted", "stock"), names)
    differing = {name for name, _ in ours.outcomes.items() ^ stock.outcomes.items()}
    assert ours.outcomes == stock.outcomes, ours.explain(differing)
    assert "passed" in ours.outcomes.values()
    assert ours.left == stock.left == []
