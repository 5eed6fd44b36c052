"""The service that faults are injected into. What `release` in its folder says is its code: `broken` fails in the
rehearsal, `late` fails after it, in the new image."""

import os
from pathlib import Path

import prefork

RELEASE = Path("release").read_text()
if RELEASE == "broken" or (RELEASE == "late" and not prefork.rehearsing()):
    raise RuntimeError(f"release {RELEASE}")


class Handler(prefork.StreamRequestHandler):
    def handle(self) -> None:
        for _ in self.rfile:
            self.wfile.write(f"{RELEASE} {os.getpid()}\n".encode())
