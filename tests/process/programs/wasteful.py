"""A service that uses much: memory and descriptors where there is a file `heavy`, CPU when it is told to."""

import os

from tests.support.programs.served import Told, Who


class Hooks(Told):
    def worker_started(self) -> None:
        if os.path.exists("heavy"):
            self.heap = bytearray(os.urandom(1 << 20) * 20)
            self.kept = [os.dup(2) for _ in range(200)]
        super().worker_started()


class Handler(Who):
    def do_burn(self) -> None:
        while sum(os.times()[:2]) < 0.3:
            os.times()
        os._exit(0)
