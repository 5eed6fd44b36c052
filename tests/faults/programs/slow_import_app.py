"""A program that takes until there is a file `go` to be imported. With the variable SWALLOWS it never gets there, and
lets nothing end it. Copied to where a test runs it, as `app`."""

import os
import sys
import time

from prefork import PreForkingTCPServer, StreamRequestHandler

if os.environ.get("SWALLOWS"):
    while True:
        try:
            print("importing", file=sys.stderr, flush=True)
            time.sleep(60)
        except:  # noqa: E722  # SystemExit as well, as such programs do
            pass
print("importing", file=sys.stderr, flush=True)
while not os.path.exists("go"):
    time.sleep(0.01)


class Server(PreForkingTCPServer):
    RequestHandlerClass = StreamRequestHandler
    max_children = 1
