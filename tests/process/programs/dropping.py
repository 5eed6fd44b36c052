"""A service whose workers change their user at their start: they could open no file of the master's folder."""

import os

from tests.support.programs.served import Told, Who, tell

USER = 54321


class Handler(Who):
    def do_open(self, path: str) -> str:
        try:
            os.close(os.open(path, os.O_WRONLY))
        except OSError as exc:
            return type(exc).__name__
        return "opened"


class Hooks(Told):
    def worker_started(self) -> None:
        os.setgroups([])
        os.setgid(USER)
        os.setuid(USER)
        super().worker_started()
        tell("exporting", address=self.metrics_server_address)
