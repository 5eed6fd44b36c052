"""A target of `prefork run` whose periodic job counts on a metric of the program's.

Not for import into the process of the tests: a metric that one of them makes is there for all of them.
"""

from typing import Any

import prometheus_client

from prefork import PreForkingTCPServer, every

from .declaring import Silent

COUNTED = prometheus_client.Counter("companion_counted", "what a companion has counted")


def counts(server: Any) -> None:
    COUNTED.inc()


class Counting(PreForkingTCPServer):
    RequestHandlerClass = Silent
    max_children = 1
    companions = {"counts": every(0.05, counts)}
