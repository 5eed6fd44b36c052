"""A handler that tells what it finds in its thread, and leaves something there of each kind."""

import contextvars
import decimal
import re
import sys
import threading
from typing import Any

from prefork import StreamRequestHandler
from tests.support.programs.served import EndedByTerm, Told, tell

local = threading.local()
variable: contextvars.ContextVar[str] = contextvars.ContextVar("variable", default="nothing")


class Initialised(threading.local):
    value = "not made"

    def __init__(self) -> None:
        self.value = "made"


initialised = Initialised()


class Connection:
    """Of the program's to somewhere, one in each thread."""

    def __del__(self) -> None:
        tell("connection closed")


class Handler(StreamRequestHandler):
    def handle(self) -> None:
        said = self.rfile.readline().strip().decode()
        thread = threading.current_thread()
        name = re.sub(r"\d+", "N", thread.name)
        found = {
            "local": getattr(local, "value", "nothing"), "initialised": initialised.value, "variable": variable.get(),
            "precision": decimal.getcontext().prec, "attribute": getattr(thread, "value", "nothing"),
            "name": name, "daemon": thread.daemon, "main": thread is threading.main_thread(),
            "profile": sys.getprofile() is None,
        }  # fmt: skip
        local.value = initialised.value = said
        local.connection = Connection()
        variable.set(said)
        decimal.getcontext().prec = 5
        if said == "attribute":
            thread.value = said  # type: ignore[attr-defined]
        elif said == "name":
            thread.name = "of the program"
        elif said == "profile":
            sys.setprofile(lambda *arguments: None)
        elif said == "exit":
            sys.exit(3)
        self.wfile.write(repr(found).encode())


class Hooks(Told):
    def worker_stopping(self) -> None:
        tell("threads", names=[thread.name for thread in threading.enumerate()])


class Plain(EndedByTerm):
    pass


class Wrapped(Hooks):
    """Has a thread body of its own."""

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        local.value = "nothing"
        super().process_request_thread(request, client_address)
