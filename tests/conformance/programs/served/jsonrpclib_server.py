"""jsonrpclib-pelix, its plain server and the one with a pool of threads, from a pool; asked by its own client."""

from typing import Any

import jsonrpclib
from jsonrpclib.SimpleJSONRPCServer import PooledJSONRPCServer, SimpleJSONRPCServer
from jsonrpclib.threadpool import ThreadPool

from prefork import PreForkingMixIn


class Plain(PreForkingMixIn, SimpleJSONRPCServer):
    pass


class Pooled(PreForkingMixIn, PooledJSONRPCServer):
    """Its threads are of the worker, which is the advice of FIT.md."""

    def worker_started(self) -> None:
        super().worker_started()
        self.threads.start()

    def worker_stopping(self) -> None:
        self.threads.stop()
        super().worker_stopping()


def plain(address: tuple[str, int]) -> Any:
    return _with_functions(Plain(address, logRequests=False))


def pooled(address: tuple[str, int]) -> Any:
    threads = ThreadPool(4)
    made = Pooled(address, logRequests=False, thread_pool=threads)
    made.threads = threads
    return _with_functions(made)


def _with_functions(server: Any) -> Any:
    server.register_function(lambda a, b: a + b, "add")
    return server


def ask(host: str, port: int) -> None:
    with jsonrpclib.ServerProxy(f"http://{host}:{port}") as proxy:
        assert proxy.add(2, 3) == 5
