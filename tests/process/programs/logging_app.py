"""A service that logs by a logger of its own. `Levelled` sets the level to debug once there is a file `level`."""

import logging
import os

from prefork import logs
from tests.support.programs.served import Told, Who

log = logging.getLogger("app")


class Handler(Who):
    def do_log(self) -> None:
        log.debug("asked for %s", os.path.basename(os.getcwd()), extra={"event": "asked_for", "client": "a\nb"})


class Hooks(Told):
    def worker_started(self) -> None:
        super().worker_started()
        log.error("started as %d", os.getpid(), extra={"event": "started_as", "pid": os.getpid()})
        if os.path.exists("broken"):
            raise RuntimeError("no such table")


class Levelled(Told):
    def service_actions(self) -> None:
        if os.path.exists("level"):
            logs.set_level("debug")
        super().service_actions()
