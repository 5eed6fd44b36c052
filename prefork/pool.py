"""PreForkingMixIn: the pool. `serve_forever()` is the supervisor; requests run in workers that share the listener.

Runs in the master; a worker runs the request hooks of the same object. What the pool is made of stands in
serving_pool.py.
"""

import sys
import threading
from socket import SOCK_DGRAM
from typing import TYPE_CHECKING, Any

from .errors import PreforkError
from .master.policy import Phase
from .pool_settings import PoolSettings
from .process import RunMode, rehearsing, run_mode
from .reload.rehearsal import rehearse
from .server import TCPServer, UDPServer, UnixDatagramServer, UnixStreamServer
from .serving_loop import Own
from .serving_pool import Preforked
from .settings.fields import validate
from .sockets.listener import Listener, widen
from .supervised import SupervisedMixIn

if TYPE_CHECKING:
    import socket

CLOSE_SLACK_S = 2.0


def pool_of(server: "PreForkingMixIn") -> Preforked:
    """All that we keep of a server's pool."""
    own: Preforked = server._prefork_
    return own


class PreForkingMixIn(PoolSettings, SupervisedMixIn):
    """Serve from a pool of processes that are forked ahead. Mixed in first, before any other mix-in and the server.

    Set the attributes (those of PoolSettings) on the class or the instance before `serve_forever()`. Bind,
    `service_actions` and `server_close` run in the master; `get_request`, `verify_request`, `process_request` and all
    that follows run in the workers. `handle_request()` stays in the calling process.
    """

    allow_reuse_address = True

    inherited_fd: int | None = None  # serve on this descriptor instead of binding one

    _prefork_: Any = Own(Preforked)

    def __init_subclass__(cls, **kwargs: Any) -> None:
        """A datagram port reused is a port shared with a stranger: there the default is off."""
        super().__init_subclass__(**kwargs)
        chosen_by = next(base for base in cls.__mro__ if "allow_reuse_address" in vars(base))
        if chosen_by is PreForkingMixIn and getattr(cls, "socket_type", None) == SOCK_DGRAM:
            cls.allow_reuse_address = False

    # The listener.

    @property
    def socket(self) -> "socket.socket":
        """The listening socket. What is assigned first becomes a Listener: see sockets/listener.py."""
        listener: Listener | None = self._prefork_.listener
        if listener is None:
            raise AttributeError("this server has no socket yet")
        return listener

    @socket.setter
    def socket(self, sock: "socket.socket") -> None:
        self._prefork_.listen_on(sock)

    # Hooks.

    def worker_started(self) -> None:
        """Called in a worker before its first request: open what must not be shared. Override it; raising here, the
        worker counts as one that died at boot."""

    def worker_draining(self) -> None:
        """Called in a worker when it begins to drain, requests in hand: tell what they wait for. Override it.

        It runs in a thread of its own, beside them; `worker_stopping()` comes when both are done.
        """

    def worker_stopping(self) -> None:
        """Called in a worker after its last request, unless it is stopped or killed. Override it."""

    # Serving.

    def serve_forever(self, poll_interval: float | None = 0.5) -> None:
        """Serve from a pool until told to end. Returns when every worker is gone.

        In the main thread the signals of the table in commands.py are taken, except those that the program handles
        itself, and put back at the end; in another thread `shutdown()` is the only way to end. Raises ConfigError
        before anything is forked, BootError when no worker ever got ready.
        """
        validate(self)
        if sys.platform != "linux":
            raise PreforkError("could not start a pool: it needs Linux (pidfds, memfds, EPOLLEXCLUSIVE); use TCPServer")
        own: Preforked = self._prefork_
        own.control_terms()
        if rehearsing():
            rehearse(own.rehearsal())
        if run_mode() is RunMode.SINGLE:
            super().serve_forever(poll_interval)
            return
        supervisor = own.serve_pool(poll_interval)
        if supervisor is None:
            return
        if own.closing:
            PreForkingMixIn.server_close(self)  # it was asked for in this thread, which could not wait for itself
        supervisor.raise_if_hopeless()

    def handle_request(self) -> None:
        """As BaseServer.handle_request: one request, in this process. After a `serve_forever()` as well as before."""
        if self._prefork_.done is None:
            widen(self.socket)
        super().handle_request()

    @property
    def draining(self) -> bool:
        """Whether this process is finishing what it has and takes nothing new."""
        own: Preforked = self._prefork_
        if own.worker is not None:
            return own.worker.draining
        if run_mode() is RunMode.SINGLE:
            return own.shutdown_requested
        return own.supervisor is not None and own.supervisor.phase in (Phase.DRAINING, Phase.KILLING)

    def server_close(self) -> None:
        """End the pool if it serves, as `shutdown()` does; close the listener and remove its Unix path.

        Call it from any thread, as often as you like. In the thread that serves it asks, and is done when
        `serve_forever()` returns; in a worker it asks as well. What is closed does not serve again.
        """
        own: Preforked = self._prefork_
        if own.ask_to_drain():
            return
        own.closing = True
        done = own.done
        if done is not None:
            self.shutdown_nowait()
            if own.serving_thread == threading.get_ident():
                return
            done.wait(self.drain_delay + self.graceful_timeout + CLOSE_SLACK_S)
        if isinstance(own.listener, Listener):
            own.listener.unlink()
        super().server_close()

    def process_request(self, request: Any, client_address: Any) -> None:
        """In a worker under a ForkingMixIn: serve in this process, which was forked for it. Else the mix-in's way."""
        if self._prefork_.in_place or run_mode() is RunMode.SINGLE:
            self.finish_request(request, client_address)
            self.shutdown_request(request)
        else:
            super().process_request(request, client_address)

    def reload(self) -> None:
        """Put new code and settings in service, as HUP does: rehearse, then run the program again in this process.

        Call it in the process that runs `serve_forever()`, from any thread; it returns at once, and what comes of it is
        in the log and in the metrics. Raises PreforkError where a reload cannot be, with the reason.
        """
        self._prefork_.reload()

    @property
    def rehearsing(self) -> bool:
        """Whether this process only tries what a reload would put in service."""
        return rehearsing()


class PreForkingTCPServer(PreForkingMixIn, TCPServer):
    """A TCPServer over a pool of processes."""


class PreForkingUDPServer(PreForkingMixIn, UDPServer):
    """A UDPServer over a pool of processes."""


class PreForkingUnixStreamServer(PreForkingMixIn, UnixStreamServer):
    """A UnixStreamServer over a pool of processes."""


class PreForkingUnixDatagramServer(PreForkingMixIn, UnixDatagramServer):
    """A UnixDatagramServer over a pool of processes."""
