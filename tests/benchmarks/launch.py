"""The root of one contender's processes: `python -m tests.benchmarks.launch …`, as `contenders.started()` calls it.

Imports nothing of prefork itself, for the contenders that are not ours must not have it in memory.
"""

import importlib
import json
import os
import sys
from pathlib import Path

from .traffic import Address


def main(what: str) -> None:
    """Enter the control group, then serve; each process that serves writes where, as one line, to `ready_fd`."""
    order = json.loads(what)
    if order["procs"]:
        Path(order["procs"]).write_text("0")  # this process, and so all that it forks

    def ready(address: Address) -> None:
        os.write(order["ready_fd"], json.dumps(address).encode() + b"\n")

    if order["checkout"]:
        sys.path.insert(0, order["checkout"])
        importlib.import_module("prefork")
        del sys.path[0]
    module, function = order["run"].split(".")
    run = getattr(importlib.import_module(f"tests.benchmarks.servers.{module}"), function)
    address = order["address"]
    run(
        order["traffic"],
        address if isinstance(address, str) else tuple(address),
        order["workers"],
        ready,
        *order["arguments"],
    )


if __name__ == "__main__":
    main(*sys.argv[1:])
