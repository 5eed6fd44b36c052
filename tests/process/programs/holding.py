"""Hooks of a service with files open and things to do at its end, of which nothing may happen at an exec."""

import atexit
import os
from typing import Any

from tests.support.programs.served import Told

held, kept, unflushed = open("held", "wb"), open("kept", "wb"), open("unflushed", "w")  # noqa: SIM115
os.set_inheritable(kept.fileno(), True)
unflushed.write("flushed")


@atexit.register
def left(how: str = "atexit") -> None:
    with open("left", "a") as file:
        print(how, os.getpid(), file=file)


class Hooks(Told):
    def serve_forever(self, *args: Any) -> None:
        try:
            super().serve_forever(*args)
        finally:
            left("finally")
