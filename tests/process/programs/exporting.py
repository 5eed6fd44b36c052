"""A service that sends what it records by an exporter: `exporter` is a module with `begin()` and `record()`."""

import importlib
from typing import Any

from tests.support.programs.served import Told, Who


class Handler(Who):
    def do_record(self, name: str) -> None:
        self.server.exporting.record(name)


class Hooks(Told):
    exporter = ""
    in_master = False

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.exporting = importlib.import_module(self.exporter)
        if self.in_master:
            self.exporting.begin()

    def worker_started(self) -> None:
        super().worker_started()
        if not self.in_master:
            self.exporting.begin()
