"""Hooks of a program that forks a process of its own in the master."""

import os
import signal

from tests.support.programs.served import Told, tell


class Hooks(Told):
    stranger = 0

    def service_actions(self) -> None:
        super().service_actions()
        if not self.stranger:
            self.stranger = os.fork()
            if self.stranger == 0:
                signal.pause()
            tell("stranger", stranger=self.stranger)
