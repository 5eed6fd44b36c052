"""Hooks of services that are reloaded: what one prints, and one that asks for the reload itself."""

import os

from tests.support.programs.served import Told, tell


class Printing(Told):
    """Prints once which release it is, and leaves it to Python when that comes out."""

    release = ""
    said = False

    def service_actions(self) -> None:
        super().service_actions()
        if not self.said:
            self.said = True
            print("unflushed", self.release)
            tell("said")


class Asking(Told):
    """Reloads itself as soon as there is a file `please`."""

    def service_actions(self) -> None:
        super().service_actions()
        if os.path.exists("please"):
            os.unlink("please")
            self.reload()
