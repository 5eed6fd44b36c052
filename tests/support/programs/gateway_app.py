"""The service of the pictures: requests of some milliseconds, and some that fail. Copied to where it runs, as `app`."""

import random
import time

from prefork import StreamRequestHandler


class Gateway(StreamRequestHandler):
    def handle(self) -> None:
        for line in self.rfile:
            if line == b"bad":
                raise ValueError("not a message of ours")
            time.sleep(random.expovariate(1 / 0.008))
            self.wfile.write(line.upper())
