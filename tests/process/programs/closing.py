"""Hooks of a service that is closed from another thread as soon as there is a file `now`."""

import os
import threading
import time

from tests.support.programs.served import Told, tell


class Hooks(Told):
    def service_actions(self) -> None:
        super().service_actions()
        if os.path.exists("now"):
            os.unlink("now")
            threading.Thread(target=self.close_it).start()

    def close_it(self) -> None:
        began = time.monotonic()
        self.server_close()
        tell("closed", took=time.monotonic() - began)
