"""A program that closes all descriptors but its own, as daemons do when they begin; `CLOSES` says where it does so."""

import os
from pathlib import Path
from typing import Any

from prefork import rehearsing
from tests.support.programs import served
from tests.support.programs.served import Told, Who, tell

WHERE = os.environ.get("CLOSES", "")


def close_all() -> None:
    """Close all, but for the pipe on which it tells the test."""
    facts = served._pipe
    os.closerange(3, facts)
    os.closerange(facts + 1, 256)


class Hooks(Told):
    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        if WHERE == "__init__":
            close_all()

    def service_actions(self) -> None:
        super().service_actions()
        if WHERE == "service_actions" and Path("close").exists():
            close_all()

    def worker_started(self) -> None:
        super().worker_started()
        if WHERE == "worker_started":
            close_all()


class Handler(Who):
    def do_close(self) -> None:
        close_all()

    def do_close_listener(self) -> None:
        self.server.socket.close()

    def do_close_its_descriptor(self) -> None:
        os.close(self.server.fileno())


class Early(Told):
    """Of a release: closes them in the rehearsal as well."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        close_all()


class Late(Told):
    """Of a release: closes them after the rehearsal only."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        if not rehearsing():
            close_all()
            tell("closed")
