"""Mix-ins that choose where a request is processed, and the ready-made classes. Mix in *before* a server class.

    SupervisedMixIn                     child table, scoreboard, statistics, metrics, server_close
      ├─ PreForkingMixIn                serve_forever = the supervisor; requests run in a pool of workers (pool.py)
      ├─ ForkingMixIn                   process_request = one supervised child per request
      └─ ThreadingMixIn                 process_request = one thread per request, each on a lane

Own what programs call, set and override; what it does is in supervised/, which is loaded when a server is made. Must
not accept, which is the loop's task. Run in the serving process; a worker runs `process_request` of the same object.
"""

from typing import TYPE_CHECKING, Annotated, Any

import prefork.metrics  # whoever asks for type hints finds by `prefork` what is loaded late
from prefork.workers.definitions import gives_way, ships

from .inheritance.own import Computed, Own
from .inheritance.precedence import hides, resolve_aliases, take_back
from .server import BaseServer, ServingMixIn, TCPServer, UDPServer, UnixDatagramServer, UnixStreamServer
from .settings.fields import Setting
from .settings.handlers import check_handler
from .sockets.of_server import is_closed

if TYPE_CHECKING:
    from .supervised.forked import ForkedRequests
    from .supervised.state import Supervised
    from .supervised.threaded import ThreadedRequests

    _AnyServer = BaseServer  # the class that a mix-in is mixed into; at run time, ours or the standard library's
else:
    _AnyServer = ServingMixIn


# What serves is imported when a server is made: see inheritance/own.py.


def _supervised() -> "type[Supervised]":
    from .supervised.state import Supervised

    return Supervised


def _forked_requests() -> "type[ForkedRequests]":
    from .supervised.forked import ForkedRequests

    return ForkedRequests


def _threaded_requests() -> "type[ThreadedRequests]":
    from .supervised.threaded import ThreadedRequests

    return ThreadedRequests


@gives_way
class SupervisedMixIn(_AnyServer):
    """Base of every mix-in: one table of children, requests counted on lanes, one way to end.

    Call `statistics()`; extend `server_close()` and `service_actions()`. Mixed into a plain server, it counts that
    server's requests.
    """

    service_name: str | None = None  # in process titles and `ctl`; default: the target, or module:Class
    metrics_address: Annotated[
        tuple[str, int] | str | None,
        Setting("serve Prometheus metrics there, by a process of its own", name="metrics", group="Watching",
                unit="address", kinds=("tcp", "unix")),
    ] = None  # fmt: skip

    _prefork_: Any = Own(_supervised)

    def __init_subclass__(cls, **kwargs: Any) -> None:
        """Raise TypeError for a class in which a server class would hide the mix-in.

        One does if its own or BaseServer's `serve_forever()` comes first in the MRO. Hooks that come first are fine,
        since they are meant to be overridden; a mix-in's `serve_forever()` calls the next one.
        """
        super().__init_subclass__(**kwargs)
        before = cls.__mro__[: cls.__mro__.index(SupervisedMixIn)]
        others = [base for base in before if not issubclass(base, SupervisedMixIn)]
        for hiding in filter(hides, others):
            if not take_back(cls, hiding, SupervisedMixIn):
                first = next(base for base in others if issubclass(base, hiding))
                raise TypeError(
                    f"could not define {cls.__name__}: {first.__name__} comes before the mix-in and would hide it; "
                    f"write the mix-in first"
                )
        resolve_aliases(cls)

    def statistics(self) -> "prefork.Statistics":
        """Return the counts and the current state of this service, over all its processes, as an immutable record.

        Call it in the serving process, from any thread, also after `serve_forever()` has returned. Raises RuntimeError
        in a child, which does not know its siblings.
        """
        own: Supervised = self._prefork_
        if own.worker is not None or own.birth is not None:
            raise RuntimeError("statistics() is answered in the process that runs serve_forever(), not in its children")
        return own.statistics()

    @Computed
    def slot(self) -> int | None:
        """The number of this worker, from 1, which no other that lives has; 1 with `--single`, and None elsewhere."""
        own: Supervised = self._prefork_
        return own.slot

    @Computed
    def metrics_server_address(self) -> Any:
        """The address at which metrics are served: `metrics_address`, with the port that the kernel chose for 0.

        None before `serve_forever()`. Workers have it too.
        """
        return self._prefork_.metrics_bound

    @Computed
    def draining(self) -> bool:
        """True if this process finishes its requests and accepts no new ones."""
        own: Supervised = self._prefork_
        return own.is_to_end()

    def service_actions(self) -> None:
        """Run one turn of the supervisor: reap, count, cut. Extend it; one that omits `super()` leaks nothing."""
        own: Supervised = self._prefork_
        if own.collects:
            self.collect_children()  # type: ignore[attr-defined]  # of a ForkingMixIn
        elif own.turn_owed and own.supervisor is not None:
            own.supervisor.turn()
        super().service_actions()

    def serve_forever(self, poll_interval: float | None = 0.5) -> None:
        """Serve as BaseServer.serve_forever, with an exporter process if `metrics_address` is set.

        Raises BindError if that address cannot be bound, ConfigError if there are companions.
        """
        own: Supervised = self._prefork_
        own.check_companions()
        check_handler(self, getattr(self, "socket_type", 0))
        try:
            super().serve_forever(poll_interval)  # type: ignore[arg-type]
        finally:
            if is_closed(self):  # closed before it was shut down
                own.end_counting()
                own.close_metrics()

    def server_close(self) -> None:
        """Close the listener, wait for requests if `block_on_close` is set, and free the counters. Extend it."""
        super().server_close()
        own: Supervised = self._prefork_
        own.wait_for_requests()
        own.end_counting()
        own.close_metrics()


class StandardThreads:
    """`_threads`, the private name of the standard library, whose tests read it. A program's own `_threads` wins."""

    def __get__(self, server: Any, owner: type) -> Any:
        return self if server is None else server._prefork_.threads


class ActiveChildren:
    """The pids of the children that serve a request; None before the first fork. A program's own value wins."""

    def __get__(self, server: Any, owner: type) -> set[int] | None:
        children: set[int] | None = None if server is None else server._prefork_.children()
        return children


@gives_way
@ships("max_children")
class ForkingMixIn(SupervisedMixIn):
    """Process each request in its own child, forked after the accept.

    With `max_children` children running, nothing is accepted until one ends. Only children forked here are reaped,
    never the program's own. Under PreForkingMixIn the child is forked ahead of its request: a worker that serves one
    request and exits. `timeout` is in seconds. See socketserver.ForkingMixIn.
    """

    timeout: float | None = 300
    max_children: Annotated[int, Setting("most processes at once", group="Pool", at_least=1)] = 40
    block_on_close = True  # server_close() waits for the children to end

    _prefork_: Any = Own(_forked_requests)

    active_children: set[int] | None = ActiveChildren()  # type: ignore[assignment]

    def collect_children(self, *, blocking: bool = False) -> None:
        """Reap the children that have ended. With `blocking`, wait until all have."""
        self._prefork_.collect(blocking=blocking)

    def handle_timeout(self) -> None:
        """Reap children. Called when `handle_request()` got no request within `timeout` seconds. Extend it."""
        self.collect_children()

    def process_request(self, request: Any, client_address: Any) -> None:
        """Fork a child for this request. Raises OSError if the kernel refuses."""
        own: ForkedRequests = self._prefork_
        if own.in_place:
            BaseServer.process_request(self, request, client_address)
            return
        own.fork_for(request, client_address)
        self.close_request(request)


@gives_way
@ships("max_threads")
class ThreadingMixIn(SupervisedMixIn):
    """Process each request in its own thread, at most `max_threads` at once if set. See socketserver.ThreadingMixIn."""

    daemon_threads = False
    block_on_close = True  # server_close() joins the non-daemonic threads
    max_threads: Annotated[
        int | None, Setting("most requests at once in one process; more wait in the kernel", group="Pool", at_least=1)
    ] = None

    _prefork_: Any = Own(_threaded_requests)
    _threads = StandardThreads()

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        """Finish and shut down one request, in its thread. Errors go to `handle_error()`. Extend it."""
        try:
            self.finish_request(request, client_address)
        except Exception:
            self.handle_error(request, client_address)
        finally:
            self.shutdown_request(request)

    def process_request(self, request: Any, client_address: Any) -> None:
        """Start a thread for this request. Raises RuntimeError if the system cannot start one."""
        if self._prefork_.in_place:
            self.process_request_thread(request, client_address)
        else:
            self._prefork_.start(self, self.process_request_thread, (request, client_address))


class ForkingUDPServer(ForkingMixIn, UDPServer):
    """UDPServer that forks a child per datagram."""


class ForkingTCPServer(ForkingMixIn, TCPServer):
    """TCPServer that forks a child per connection."""


class ForkingUnixStreamServer(ForkingMixIn, UnixStreamServer):
    """UnixStreamServer that forks a child per connection."""


class ForkingUnixDatagramServer(ForkingMixIn, UnixDatagramServer):
    """UnixDatagramServer that forks a child per datagram."""


class ThreadingUDPServer(ThreadingMixIn, UDPServer):
    """UDPServer that starts a thread per datagram."""


class ThreadingTCPServer(ThreadingMixIn, TCPServer):
    """TCPServer that starts a thread per connection."""


class ThreadingUnixStreamServer(ThreadingMixIn, UnixStreamServer):
    """UnixStreamServer that starts a thread per connection."""


class ThreadingUnixDatagramServer(ThreadingMixIn, UnixDatagramServer):
    """UnixDatagramServer that starts a thread per datagram."""
