"""A service each of whose hooks forks once when it is told to (a file of its name in its directory says how), and whose
forked process returns from the hook, or raises: `Hooks`, and a handler that fails on purpose."""

import contextlib
import os
from typing import Any

from tests.support.programs.served import Told, Who, tell


def stray(hook: str) -> bool:
    """Fork, if asked to in this hook; return True or raise in the new process, which goes on with what follows."""
    with contextlib.suppress(FileNotFoundError):
        with open(hook) as file:
            how = file.read()
        os.unlink(hook)  # by one process only
        parent = os.getpid()
        if os.fork() == 0:
            tell("stray", hook=hook, parent=parent)
            if how == "raises":
                raise RuntimeError(f"of a stray in {hook}")
            if how == "exits":
                raise SystemExit(7)
            return True
    return False


class Handler(Who):
    def do_raise(self) -> None:
        raise ValueError("asked to raise")


class Hooks(Told):
    def worker_started(self) -> None:
        if not stray("worker_started"):
            super().worker_started()

    def worker_draining(self) -> None:
        stray("worker_draining")

    def worker_stopping(self) -> None:
        if not stray("worker_stopping"):
            super().worker_stopping()

    def service_actions(self) -> None:
        if not stray("service_actions"):
            super().service_actions()

    def get_request(self) -> Any:
        found = super().get_request()
        stray("get_request")
        return found

    def verify_request(self, request: Any, client_address: Any) -> bool:
        return stray("verify_request") or bool(super().verify_request(request, client_address))

    def process_request(self, request: Any, client_address: Any) -> None:
        if not stray("process_request"):
            super().process_request(request, client_address)

    def finish_request(self, request: Any, client_address: Any) -> None:
        if not stray("finish_request"):
            super().finish_request(request, client_address)

    def handle_error(self, request: Any, client_address: Any) -> None:
        if not stray("handle_error"):
            super().handle_error(request, client_address)

    def shutdown_request(self, request: Any) -> None:
        if not stray("shutdown_request"):
            super().shutdown_request(request)

    def close_request(self, request: Any) -> None:
        if not stray("close_request"):
            super().close_request(request)
