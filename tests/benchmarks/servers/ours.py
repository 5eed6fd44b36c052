"""Our classes: the pool, as it is and with what one may add, and the drop-ins without a pool."""

import http.server
import json
import os
from typing import Any

import prefork
from prefork import logs

from ..traffic import LOOPBACK, Address, Ready
from .answers import handler, kept_handler

BASES: dict[str, Any] = {
    "unix": prefork.UnixStreamServer,
    "udp": prefork.UDPServer,
    "unixgram": prefork.UnixDatagramServer,
    "http": http.server.HTTPServer,  # as programs have it: the mix-in over another library's class
}
MODELS: dict[str, tuple[type, ...]] = {
    "": (),
    "threading": (prefork.ThreadingMixIn,),
    "forking": (prefork.ForkingMixIn,),
}


def made(traffic: str, model: str, *before: type) -> Any:
    base = BASES.get(traffic, prefork.TCPServer)
    return type("Server", (*before, *MODELS[model], base), {"request_queue_size": 1024})


def plain(traffic: str, address: Address, workers: int, ready: Ready, model: str = "") -> None:
    with made(traffic, model)(address, handler(prefork, traffic)) as server:
        ready(server.server_address)
        server.serve_forever()


def pool(
    traffic: str, address: Address, workers: int, ready: Ready, model: str = "", made_by: Any = handler, **settings: Any
) -> None:
    with made(traffic, model, prefork.PreForkingMixIn)(address, made_by(prefork, traffic)) as server:
        vars(server).update(settings)
        server.max_children = workers
        server.worker_started = lambda: ready(server.server_address)
        server.serve_forever()


def measured(traffic: str, address: Address, workers: int, ready: Ready) -> None:
    """With metrics served."""
    pool(traffic, address, workers, ready, metrics_address=LOOPBACK)


def edge(traffic: str, address: Address, workers: int, ready: Ready, settings: str) -> None:
    """With settings of the edge, as JSON."""
    pool(traffic, address, workers, ready, **json.loads(settings))


def logged(traffic: str, address: Address, workers: int, ready: Ready, format: str) -> None:
    """With an access log, as `prefork run` sets it up, to a file that lies in memory."""
    file = os.memfd_create("access-log")
    logs.set_up("warning", format, f"/proc/{os.getpid()}/fd/{file}")
    pool(traffic, address, workers, ready, access_log=True)


def kept(traffic: str, address: Address, workers: int, ready: Ready, model: str = "") -> None:
    """With connections that are kept."""
    pool(traffic, address, workers, ready, model, kept_handler)
