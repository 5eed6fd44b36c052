"""PreForkingMixIn: the pool. `serve_forever()` is the supervisor; requests run in workers that share the listener.

Owns the public interface; the pool's parts are in serving_pool.py. Runs in the master, which must not serve requests of
the pool; a worker runs the request hooks of the same object.
"""

import binascii  # noqa: F401  # this and the next one: what is imported late elsewhere, for plain servers
import json  # noqa: F401
import os
import socket
import sys
import threading
from collections.abc import Mapping
from typing import Any

from prefork.workers.definitions import definer, gives_way
from prefork.workers.identity import CLOSED_BY_PROGRAM
from prefork.workers.polling import patience

from .errors import ConfigError, PreforkError
from .inheritance.own import Computed, Own
from .inheritance.precedence import find_first, loop_not_called, shutdown_heard
from .keepalive import KeepAliveMixIn as KeepAliveMixIn  # what keeps connections is a pool
from .logs import say_no_effect
from .master.policy import Phase
from .mixins import SupervisedMixIn
from .pool_settings import PoolSettings
from .process import not_loading
from .reload.handover import NEEDED, handed
from .reload.rehearsal import rehearse
from .run_mode import RunMode, rehearsing, run_mode
from .server import TCPServer, UDPServer, UnixDatagramServer, UnixStreamServer
from .serving_pool import Preforked
from .settings.companions import CompanionFunction, Every
from .settings.effects import no_effect
from .settings.fields import validate
from .settings.handlers import check_handler
from .settings.in_force import InForce, value_of
from .sockets.listener import leave_descriptor
from .sockets.of_server import is_closed
from .sockets.shared import take_away_path
from .sockets.wildcard import prepare_answers
from .supervised import forked, threaded  # noqa: F401  # loaded with the class, as all that a pool needs
from .surroundings.room import check_kernel, check_room

CLOSE_SLACK_S = 2.0


def pool_of(server: "PreForkingMixIn") -> Preforked:
    """Return our state of this server's pool."""
    own: Preforked = server._prefork_
    return own


@gives_way
class PreForkingMixIn(PoolSettings, SupervisedMixIn):
    """Serve from a pool of pre-forked processes. Put it first in the bases, before other mix-ins and the server.

    Set the attributes (those of PoolSettings) on the class or the instance before `serve_forever()`. Bind,
    `service_actions` and `server_close` run in the master; `get_request`, `verify_request`, `process_request` and
    everything after it run in the workers. `handle_request()` serves in the calling process.
    """

    allow_reuse_address = True

    inherited_fd: int | None = None  # serve on this listener instead of binding one

    # Functions of the program's that run once for the service, by name: see settings/companions.py. Without a value,
    # so that a class behind this mix-in is not hidden.
    companions: Mapping[str, CompanionFunction | Every]

    _prefork_: Any = Own(lambda: Preforked)

    def __init_subclass__(cls, **kwargs: Any) -> None:
        """Turn `allow_reuse_address` off by default for datagrams: with it, a stranger could share the port."""
        super().__init_subclass__(**kwargs)
        find_first(cls, "socket", vars(PreForkingMixIn)["socket"])
        if (
            definer(cls, "allow_reuse_address") is PreForkingMixIn
            and getattr(cls, "socket_type", None) == socket.SOCK_DGRAM
        ):
            cls.allow_reuse_address = False

    # The listener.

    @property
    def socket(self) -> "socket.socket":
        """The listening socket, as the program has assigned it; see listening.py."""
        own: Preforked = self._prefork_
        if not own.assigned:
            raise AttributeError("this server has no socket yet")
        return own.listener  # type: ignore[no-any-return]

    @socket.setter
    def socket(self, sock: "socket.socket") -> None:
        if self._prefork_.listener is None:
            try:
                check_handler(self, getattr(sock, "type", 0))
            except ConfigError:
                if sock is not None:
                    sock.close()
                raise
        self._prefork_.listen_on(sock)

    # Hooks.

    def worker_started(self) -> None:
        """Called in a worker before its first request. Override it to open what workers must not share.

        If it raises, the worker counts as one that died at boot.
        """

    def worker_draining(self) -> None:
        """Called in a worker that starts to drain. Override it to end what the requests in hand wait for.

        It runs in its own thread, beside those requests. `worker_stopping()` follows when both are done.
        """

    def worker_stopping(self) -> None:
        """Called in a worker after its last request, but not if it is stopped or killed, or crashes. Override it."""

    def create_ssl_context(self) -> Any:
        """Return the ssl.SSLContext of this service, or None to serve without TLS. Override or extend it.

        Called in the master, before workers are forked, and for each `prefork ctl reload-tls`. It is made of the
        settings `tls_…`. Raises ConfigError.
        """
        if value_of(self, "tls_certificate") is None:
            return None
        from .sockets.tls import context_of

        return context_of(InForce(self))

    # Serving.

    def serve_also(self, other: "PreForkingMixIn") -> None:
        """Have the pool of this server serve another one as well, bound at its own address. Call it before
        `serve_forever()`, once for each.

        The other server keeps its class, its hooks and the settings of its listener; those of the pool are this one's.
        It is closed with this one. Raises ConfigError for what cannot be served together.
        """
        self._prefork_.serve_also(other)

    def serve_forever(self, poll_interval: float | None = 0.5) -> None:
        """Serve from a pool until told to end. Return when every worker is gone.

        In the main thread, handle the signals of the table in commands.py, except those that the program handles
        itself, and restore them at the end. In another thread `shutdown()` is the only way to end. `poll_interval`, in
        seconds, only matters if `service_actions()` is overridden.

        Raises ConfigError or BindError before anything is forked, ValueError if the server is closed, BootError if no
        worker ever got ready, and PreforkError on systems other than Linux.
        """
        own: Preforked = self._prefork_
        not_loading()
        if own.done is None:
            own.refuse_closed()
        for each in own.each:
            validate(each.server)
        own.refuse_another_pool()
        if sys.platform != "linux":
            raise PreforkError("could not start a pool: it needs Linux (pidfds, memfds, EPOLLEXCLUSIVE); use TCPServer")
        if run_mode() is not RunMode.SINGLE:  # there it is checked already, and has given up root
            own.check()
            check_kernel(counts_connections=own.counts_connections())
            lent = spares = 0
            if (given := handed()) is not None:
                given.require(*NEEDED)
                lent, spares = 2 * len(given.values.get("children", ())), given.spares
            check_room(value_of(self, "max_children"), len(own.companions()), lent, spares, rehearsing=rehearsing())
        for each in own.each:
            if each.closing and each is not own:
                name = type(each.server).__qualname__
                raise PreforkError(f"could not serve: {name}, which the pool is to serve as well, is closed")
            if each.descriptors.lost() and not own.closing:
                leave_descriptor(each.listener)
                raise PreforkError(f"could not serve: {CLOSED_BY_PROGRAM}")
            prepare_answers(each.listener, through_proxy=value_of(each.server, "proxy_trusted") is not None)
        if rehearsing():
            rehearse(own.rehearsal())
        if run_mode() is RunMode.SINGLE:
            super().serve_forever(poll_interval)
            return
        say_no_effect(own.in_vain(no_effect(self, PoolSettings, os.environ if own.launch is None else {})))
        say_no_effect(own.without_effect())
        say_no_effect(loop_not_called(type(self), PreForkingMixIn))
        with shutdown_heard(self, own, PreForkingMixIn):
            supervisor = own.serve_pool(patience(poll_interval))
        if own.closing:
            PreForkingMixIn.server_close(self)  # called in this thread earlier, which could not wait for itself
        supervisor.raise_if_hopeless()

    @Computed
    def draining(self) -> bool:
        """True if this process finishes its requests and accepts no new ones."""
        own: Preforked = self._prefork_
        if own.worker is not None:
            return own.worker.draining
        if own.first is not None:
            return bool(own.first.draining)
        if own.companion is not None:
            return own.companion.draining
        if run_mode() is RunMode.SINGLE:
            return own.shutdown_requested
        return own.supervisor is not None and own.supervisor.phase in (Phase.DRAINING, Phase.STOPPING)

    def wait_draining(self, timeout: float | None = None) -> bool:
        """Wait until this companion is told to end, at most `timeout` seconds; return whether it is.

        Call it in a companion, in any thread. Raises RuntimeError elsewhere.
        """
        companion = pool_of(self).companion
        if companion is None:
            raise RuntimeError("wait_draining() is answered in a companion; a worker has worker_draining()")
        return companion.wait_draining(timeout)

    def server_close(self) -> None:
        """Drain the pool if it is serving, as `shutdown()` does; close the listener and remove its Unix path.

        Call it from any thread, any number of times. In the serving thread it only asks for the end, and the server is
        closed when `serve_forever()` returns; in a worker it asks the master to drain. Otherwise it waits at most
        `drain_delay` plus `graceful_timeout` plus 2 seconds. A closed server does not serve again.
        """
        own: Preforked = self._prefork_
        if own.ask_to_drain():
            return
        if own.first is not None and pool_of(own.first).done is not None:  # its pool serves: it ends with that
            own.first.server_close()
            return
        own.closing = True
        done = own.done
        if done is not None:
            own.shutdown(wait=False)
            if own.serving_thread == threading.get_ident():
                return
            done.wait(value_of(self, "drain_delay") + value_of(self, "graceful_timeout") + CLOSE_SLACK_S)
        if own.origin is not None:
            take_away_path(own.origin)
        super().server_close()
        for other in own.others:
            if not is_closed(other):
                other.server_close()

    def reload(self) -> None:
        """Reload code and settings, as SIGHUP does: rehearse, then exec the program again in this process.

        Call it in the process that runs `serve_forever()`, from any thread. It returns at once; the log and the metrics
        tell the outcome. Raises PreforkError, with the reason, if a reload is not possible.
        """
        self._prefork_.reload()

    @Computed
    def rehearsing(self) -> bool:
        """True if this process only tries what a reload would put in service. See `prefork.rehearsing()`."""
        return rehearsing()


class PreForkingTCPServer(PreForkingMixIn, TCPServer):
    """TCPServer that serves from a pool of processes."""


class PreForkingUDPServer(PreForkingMixIn, UDPServer):
    """UDPServer that serves from a pool of processes."""


class PreForkingUnixStreamServer(PreForkingMixIn, UnixStreamServer):
    """UnixStreamServer that serves from a pool of processes."""


class PreForkingUnixDatagramServer(PreForkingMixIn, UnixDatagramServer):
    """UnixDatagramServer that serves from a pool of processes."""
