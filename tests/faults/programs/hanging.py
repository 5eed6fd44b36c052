"""Hooks of a master that hangs once there is a file `hang`, until the gate, a FIFO, has been opened and closed."""

import os
from pathlib import Path

from tests.support.programs.served import Told, tell


class Hooks(Told):
    def service_actions(self) -> None:
        super().service_actions()
        if os.path.exists("hang"):
            os.unlink("hang")
            tell("hanging")
            Path("gate").read_bytes()
