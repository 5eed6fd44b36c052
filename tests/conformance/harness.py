"""Runs tests of CPython's own, unchanged, against us: a program of its own, a process for each run.

    python -m tests.conformance.harness ours report.json test.test_socketserver

With "ours", `prefork` stands in `socketserver`'s place before anything imports that; with "accepted", AcceptedSocket is
`socket.socket` itself, so that every file of a socket is ours; with "looped" every handler of `http.server` and of what
is built on it has KeepAliveMixIn, and with "kept" its connections are served stay by stay, too; with "stock" nothing is
replaced, which tells what the same tests do on this machine without us. The report is JSON: `outcomes` (a word by the
id of the test), `details` (why, where the word is not "passed"), `left` (what was left behind) and `stays`.
"""

import gc
import importlib
import json
import os
import sys
import tempfile
import threading
import traceback
import unittest
from pathlib import Path
from typing import Any

# By the name of the method, in every class; left out of both runs.
LEFT_OUT = {
    # Since 3.14: it replaces `socket.socket` in the whole process while the server's thread begins to serve, and so may
    # get hold of a socket of that thread's wake-up.
    "test_tcp_timeout",
}
USERS_OF_SOCKETSERVER = ("http.server", "xmlrpc.server", "wsgiref.simple_server", "logging.config")


def stand_in() -> None:
    """Put prefork in socketserver's place, and prove that its users in the standard library got it."""
    import prefork

    early = [name for name in ("socketserver", *USERS_OF_SOCKETSERVER) if name in sys.modules]
    assert not early, f"imported too early to see prefork: {early}"
    sys.modules["socketserver"] = prefork
    for name in USERS_OF_SOCKETSERVER:
        importlib.import_module(name)

    import http.server
    import logging.config
    import xmlrpc.server
    from wsgiref import simple_server

    from prefork.server import TCPServer

    for user in (http.server.HTTPServer, xmlrpc.server.SimpleXMLRPCServer, simple_server.WSGIServer):
        assert TCPServer in user.__mro__, user.__mro__
    assert issubclass(http.server.BaseHTTPRequestHandler, prefork.StreamRequestHandler)
    assert vars(logging.config)["ThreadingTCPServer"] is prefork.ThreadingTCPServer
    # What serves is loaded by the first server, once a process: with it ctypes, whose library may keep a file open.
    prefork.TCPServer(("127.0.0.1", 0), prefork.StreamRequestHandler, bind_and_activate=False).server_close()


def accept_ours() -> None:
    """Have everything that makes a socket make an AcceptedSocket."""
    import socket

    from prefork.workers.socket_files import AcceptedSocket

    early = [name for name in ("socketserver", *USERS_OF_SOCKETSERVER) if name in sys.modules]
    assert not early, f"imported too early to see our sockets: {early}"
    socket.socket = AcceptedSocket  # type: ignore[misc]


HANDLERS = {
    "http.server": ("BaseHTTPRequestHandler", "SimpleHTTPRequestHandler", "CGIHTTPRequestHandler"),
    "xmlrpc.server": ("SimpleXMLRPCRequestHandler", "DocXMLRPCRequestHandler"),
    "wsgiref.simple_server": ("WSGIRequestHandler",),
}


stays = 0  # that were served


def mix_in() -> None:
    """Have each handler class of the standard library keep its connections, under its own name."""
    from prefork import KeepAliveMixIn

    for module_name, names in HANDLERS.items():
        module = importlib.import_module(module_name)
        for name in names:
            cls = vars(module).get(name)  # some end with a version of Python
            if cls is not None and not issubclass(cls, KeepAliveMixIn):
                own = {"__module__": module_name, "__doc__": cls.__doc__}
                setattr(module, name, type(name, (KeepAliveMixIn, cls), own))


def keep() -> None:
    """Have every server serve a connection stay by stay, in the thread that serves it, as a pool's workers would."""
    import select

    from prefork import KeepAliveMixIn
    from prefork.server import BaseServer
    from prefork.workers.keeping import KEEPABLE
    from prefork.workers.kept import Kept
    from prefork.workers.stay import KeptSocket, Stay, peek

    finish_request = BaseServer.finish_request

    def stay_by_stay(self: Any, request: Any, client_address: Any) -> None:
        global stays
        handler, left = self.RequestHandlerClass, Kept()
        if not (isinstance(handler, type) and issubclass(handler, KeepAliveMixIn) and type(request) in KEEPABLE):
            finish_request(self, request, client_address)
            return
        while True:
            select.select([] if left.unread else [request], [], [], 0 if left.unread else None)
            if not left.unread and not peek(request):
                return
            with KeptSocket(request.family, request.type, request.proto, os.dup(request.fileno())) as kept:
                kept.stay = stay = Stay(left, lambda stay: None)
                stays += 1
                finish_request(self, kept, client_address)
            if not stay.goes_on:
                return
            left = Kept.decoded(stay.left().encoded())

    BaseServer.finish_request = stay_by_stay  # type: ignore[method-assign]


class Recorder(unittest.TestResult):
    """What became of each test: one word by its id, and the text that explains a word which is not "passed"."""

    def __init__(self) -> None:
        super().__init__()
        self.outcomes: dict[str, str] = {}
        self.details: dict[str, str] = {}

    def _note(self, test: Any, outcome: str, detail: str = "") -> None:
        name = test.id()
        if self.outcomes.get(name, "passed") == "passed":  # the first trouble is the one that counts
            self.outcomes[name] = outcome
            if detail:
                self.details[name] = detail

    def addSuccess(self, test: Any) -> None:
        self._note(test, "passed")

    def addFailure(self, test: Any, err: Any) -> None:
        self._note(test, "failed", "".join(traceback.format_exception(*err)))

    def addError(self, test: Any, err: Any) -> None:
        self._note(test, "error", "".join(traceback.format_exception(*err)))

    def addSkip(self, test: Any, reason: str) -> None:
        self._note(test, "skipped", reason)

    def addExpectedFailure(self, test: Any, err: Any) -> None:
        self._note(test, "expected failure")

    def addUnexpectedSuccess(self, test: Any) -> None:
        self._note(test, "unexpected success")

    def addSubTest(self, test: Any, subtest: Any, err: Any) -> None:
        if err is not None:
            self._note(test, "failed", f"{subtest.id()}\n" + "".join(traceback.format_exception(*err)))


def open_descriptors() -> dict[int, str]:
    found = {}
    for name in os.listdir("/proc/self/fd"):
        try:
            found[int(name)] = os.readlink(f"/proc/self/fd/{name}")
        except FileNotFoundError:
            pass  # the one that listed them
    return found


def left_behind(before: dict[int, str]) -> list[str]:
    """Descriptors, threads and children that the tests leave."""
    gc.collect()
    left = [f"descriptor {fd} {what}" for fd, what in open_descriptors().items() if fd not in before]
    left += [f"thread {thread.name}" for thread in threading.enumerate() if thread is not threading.main_thread()]
    try:
        os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
        left.append("a child process")
    except ChildProcessError:
        pass
    return left


def without(suite: unittest.TestSuite) -> unittest.TestSuite:
    """The suite without what is left out."""
    kept = unittest.TestSuite()
    for each in suite:
        if isinstance(each, unittest.TestSuite):
            kept.addTest(without(each))
        elif each.id().rpartition(".")[2] not in LEFT_OUT:
            kept.addTest(each)
    return kept


def run(names: list[str]) -> dict[str, Any]:
    """Run these tests as regrtest does: with the network resource, in a directory that goes away afterwards."""
    from test import support
    from test.support import os_helper

    support.use_resources = ["network"]
    support.verbose = 0
    with tempfile.TemporaryDirectory() as directory, os_helper.change_cwd(directory):
        before = open_descriptors()
        recorder = Recorder()
        without(unittest.defaultTestLoader.loadTestsFromNames(names)).run(recorder)
        left = left_behind(before)
    return {"outcomes": recorder.outcomes, "details": recorder.details, "left": left, "stays": stays}


def main(which: str, report: str, *names: str) -> None:
    if which in ("ours", "looped", "kept"):
        stand_in()
        if which != "ours":
            mix_in()
        if which == "kept":
            keep()
    elif which == "accepted":
        accept_ours()
    Path(report).write_text(json.dumps(run(list(names))))


if __name__ == "__main__":
    main(*sys.argv[1:])
