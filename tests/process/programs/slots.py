"""A service that tells which slot each process has, and a handler that answers it with what a child of its is told."""

import os
import subprocess
from typing import Any

from tests.support.programs.served import EndedByTerm, Told, Who, tell


class Handler(Who):
    def do_slot(self) -> str:
        started = subprocess.run(["sh", "-c", "echo $PREFORK_SLOT"], capture_output=True, text=True).stdout.strip()
        return f"{self.server.slot} {started or None}"


class Hooks(Told):
    def serve_forever(self, *args: Any) -> None:
        tell("master", slot=self.slot, variable=os.environ.get("PREFORK_SLOT"))
        super().serve_forever(*args)
        tell("after", slot=self.slot, variable=os.environ.get("PREFORK_SLOT"))

    def worker_started(self) -> None:
        tell("slot", slot=self.slot, variable=os.environ["PREFORK_SLOT"])
        super().worker_started()


class Plain(Hooks, EndedByTerm):
    pass
