"""pyzord, with its threads, from a pool; asked by pyzor's own client.

`pyzor.server` takes TERM and USR1 for itself when it is made: TERM still ends the pool, by its `shutdown()`.
"""

from typing import Any

import pyzor.client
import pyzor.server

from prefork import PreForkingMixIn

DIGEST = "0" * 40


class Server(PreForkingMixIn, pyzor.server.BoundedThreadingServer):
    pass


def server(address: tuple[str, int]) -> Any:
    records: dict[str, Any] = {}
    return Server(address, records, "pyzord.passwd", "pyzord.access", max_threads=4)


def ask(host: str, port: int) -> None:
    answer = pyzor.client.Client().check(DIGEST, (host, port))
    assert (answer["Code"], answer["Count"]) == ("200", "0"), answer
