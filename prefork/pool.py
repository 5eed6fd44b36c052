"""PreForkingMixIn: the pool. `serve_forever()` is the supervisor; requests run in workers that share the listener.

Runs in the master; a worker runs the request hooks of the same object. Owns what `serve_forever()` changes in the
master's process (signals, title, garbage collector, the listener's flags) and puts every bit of it back.
"""

import contextlib
import logging
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from functools import partial
from socket import SOCK_DGRAM
from typing import TYPE_CHECKING, Any

import setproctitle

from prefork.workers import access_log, loop, user_forks
from prefork.workers.bootstrap import Birth, Master
from prefork.workers.limits import WorkerLimits
from prefork.workers.signals import EVERY, Signals, blocked, set_mask
from prefork.workers.wakeup import Wakeup

from . import process
from .commands import BY_SIGNAL, Command
from .control import access, server
from .errors import PreforkError
from .master.mailbox import Mailbox
from .master.policy import Limits, Phase
from .master.service import Service
from .master.supervisor import Supervisor
from .pool_settings import PoolSettings
from .process import frozen, import_all, titled
from .reload.fixed import fixed_values, refuse_changes
from .reload.generations import Generations
from .reload.handover import Handed, Record, handed, pack_listener, pack_own, rehearsing
from .reload.rehearsal import Rehearsal, rehearse
from .reload.start_context import START
from .server import TCPServer, UDPServer, UnixDatagramServer, UnixStreamServer
from .settings.fields import validate
from .sockets.addresses import address_text
from .sockets.listener import Listener, asked_once_more, prepared, widen
from .sockets.ownership import Access
from .supervised import SupervisedMixIn
from .systemd import stored

if TYPE_CHECKING:
    import socket

log = logging.getLogger("prefork.supervisor")

CLOSE_SLACK_S = 2.0


class PreForkingMixIn(PoolSettings, SupervisedMixIn):
    """Serve from a pool of processes that are forked ahead. Mixed in first, before any other mix-in and the server.

    Set the attributes (those of PoolSettings) on the class or the instance before `serve_forever()`. Bind,
    `service_actions` and `server_close` run in the master; `get_request`, `verify_request`, `process_request` and all
    that follows run in the workers. `handle_request()` stays in the calling process.
    """

    allow_reuse_address = True

    _launch: object | None = None  # what the command line was told beside our settings
    _watched: tuple[str, ...] = ()  # files beside the modules' own that are watched then
    _closing = False  # server_close() has been called
    _mailbox: Mailbox | None = None  # while the pool serves

    inherited_fd: int | None = None  # serve on this descriptor instead of binding one
    _serves = True  # False: workers only boot, and leave (a rehearsal, a check)
    _control_listener: Listener | None = None
    _single = False  # no pool: requests run here, one after another (cli/single.py)
    _in_place = False  # requests run in this thread, whatever mix-in would have them elsewhere

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
        try:
            return self._listener
        except AttributeError:
            raise AttributeError("this server has no socket yet") from None

    @socket.setter
    def socket(self, sock: "socket.socket") -> None:
        self._closing = False
        if "_listener" not in vars(self):
            sock = self._first_socket(sock)
        self._listener = Listener.adopt(sock) if type(sock).__module__ == "socket" else sock
        if isinstance(self._listener, Listener):
            self._listener.access = Access(self.socket_mode, self.socket_owner)

    def _first_socket(self, sock: Any) -> Listener:
        """The one that a reload handed over or that was inherited, where there is one, instead of the new one."""
        fd = self.inherited_fd
        address = getattr(self, "server_address", None) if fd is None else f"fd://{fd}"
        asked = asked_once_more(address, sock.type)
        given = handed()
        listener = given.listener("listener", asked) if given is not None else None
        if listener is None and fd is not None:
            listener = Listener.inherit(fd)
        if listener is None and (kept := stored(asked)) is not None:
            listener = Listener.recover(kept)
        if listener is None:
            listener = Listener.adopt(sock)
        else:
            listener.settimeout(sock.gettimeout())
            sock.close()
        listener.asked = asked
        self._first = listener
        if listener.inherited:
            vars(self).update(address_family=listener.family, socket_type=listener.type)
        return listener

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
        self._control_terms()
        if rehearsing():
            rehearse(self._rehearsal())
        if self._single:
            super().serve_forever(poll_interval)
            return
        with self._serving() as wakeup, contextlib.ExitStack() as stack:
            if self._is_closed():  # looked at now: a server_close() that comes later finds us serving
                return
            stack.enter_context(process.inside(self.working_directory))
            mailbox = Mailbox(wakeup.wake)
            signals = stack.enter_context(self._signals_taken(wakeup, mailbox))
            given = self._given()
            stack.enter_context(prepared(self._listener, ours=lambda: given is None or given.taken))
            stack.callback(self._leave_what_is_lent)
            stack.enter_context(titled(self._service_name()))
            if self.metrics_address is not None or self.max_memory is not None:
                import psutil  # noqa: F401  # here, so that the workers share its memory
            import_all()
            if self.gc_freeze:
                stack.enter_context(frozen())
            supervisor = self._supervisor = self._pool(wakeup, signals, mailbox)
            try:
                self._export(supervisor)
                self._open_control(supervisor)
                user_forks.on_fork_by_user(self._forked_by_user)
                self._run(supervisor, poll_interval)
            finally:
                self._mailbox = None
                user_forks.on_fork_by_user(None)
                supervisor.close()
        if self._closing:
            PreForkingMixIn.server_close(self)  # it was asked for in this thread, which could not wait for itself
        supervisor.raise_if_hopeless()

    def handle_request(self) -> None:
        """As BaseServer.handle_request: one request, in this process. After a `serve_forever()` as well as before."""
        if self._done is None:
            widen(self.socket)
        super().handle_request()

    def _is_closed(self) -> bool:
        if self._closing:
            log.info("not serving: the server is closed")
        return self._closing

    def _run(self, supervisor: Supervisor, poll_interval: float | None) -> None:
        log.info("listening on %s", address_text(self.socket.getsockname()))
        self._mailbox = supervisor.mailbox  # from here on a shutdown() posts; one that came before is looked for now
        if self._shutdown_requested:
            supervisor.mailbox.post(Command.DRAIN)
        supervisor.run(self.service_actions, poll_interval if self._wants_polling() else None)

    def _tell_loop_to_end(self) -> None:
        super()._tell_loop_to_end()
        mailbox = self._mailbox
        if mailbox is not None:
            mailbox.post(Command.DRAIN)

    @property
    def draining(self) -> bool:
        """Whether this process is finishing what it has and takes nothing new."""
        if self._worker is not None:
            return self._worker.draining
        if self._single:
            return self._shutdown_requested
        return self._supervisor is not None and self._supervisor.phase in (Phase.DRAINING, Phase.KILLING)

    def server_close(self) -> None:
        """End the pool if it serves, as `shutdown()` does; close the listener and remove its Unix path.

        Call it from any thread, as often as you like. In the thread that serves it asks, and is done when
        `serve_forever()` returns; in a worker it asks as well. What is closed does not serve again.
        """
        if self._ask_to_drain():
            return
        self._closing = True
        done = self._done
        if done is not None:
            self.shutdown_nowait()
            if self._serving_thread == threading.get_ident():
                return
            done.wait(self.drain_delay + self.graceful_timeout + CLOSE_SLACK_S)
        listener = vars(self).get("_listener")
        if isinstance(listener, Listener):
            listener.unlink()
        super().server_close()

    def process_request(self, request: Any, client_address: Any) -> None:
        """In a worker under a ForkingMixIn: serve in this process, which was forked for it. Else the mix-in's way."""
        if self._in_place:
            self.finish_request(request, client_address)
            self.shutdown_request(request)
        else:
            super().process_request(request, client_address)

    def _wants_polling(self) -> bool:
        return self._single or super()._wants_polling()

    # The parts of serve_forever().

    def _pool(self, wakeup: Wakeup, signals: Signals, mailbox: Mailbox) -> Supervisor:
        threads = self.max_threads or 1 if self._threaded() else 1
        service = Service(
            self._service_name(), forget=lambda: self._forget_master(signals), work=self._work, lanes=threads,
            listener=self._listener, max_lifetime=self.max_lifetime, application_bytes=self._application_bytes(),
        )  # fmt: skip
        self._end_own_requests()
        given = self._given()
        self._given_control = None if given is None else given.values.get("control")
        if given is not None:
            self._board = given.board()
        self._bind_metrics()  # what is handed over is given only until the supervisor has taken it
        self._bind_control()
        limits = Limits(
            pool=True, max_children=self.max_children, min_children=self.min_children or self.max_children,
            min_spare_children=self.min_spare_children, max_spare_children=self.max_spare_children,
            request_timeout=self.request_timeout, slow_request_timeout=self.slow_request_timeout,
            boot_timeout=self.boot_timeout, graceful_timeout=self.graceful_timeout,
            max_restart_delay=self.max_restart_delay, drain_delay=self.drain_delay,
            hang_up=self.drain_connections == "eof",
        )  # fmt: skip
        self._generations = Generations(pack=self._pack, refusal=self._no_reload(), handed=given)
        supervisor = Supervisor(service, limits, self._scoreboard(), wakeup, self._generations, mailbox)
        if self.reload_on_change:
            from .reload.on_change import Changes

            reload = partial(mailbox.post, Command.RELOAD)
            before = None if given is None else given.values["seen"]
            supervisor.tasks.changes = Changes(reload, self._watched, before)
        return supervisor

    @staticmethod
    def _given() -> Handed | None:
        """What an earlier image of this process had, for the one server that serves in the main thread."""
        given = handed()
        in_main_thread = threading.current_thread() is threading.main_thread()
        return given if in_main_thread and given is not None and not given.rehearsal else None

    def _rehearsal(self) -> Rehearsal:
        """For a process that only tries this service: a worker of it boots, and leaves."""
        return Rehearsal(
            self.working_directory, self.boot_timeout, self._pool_on_trial, self._work, self._scoreboard,
            refuse=lambda fixed: refuse_changes(fixed, self, self._launch, same_listener=self._first.resumed),
            listeners=lambda: (self.socket, self._metrics_listener, self._control_listener),
        )  # fmt: skip

    def _pool_on_trial(self, wakeup: Wakeup, signals: Signals) -> Supervisor:
        self._serves = False
        self._supervisor = self._pool(wakeup, signals, Mailbox(wakeup.wake))
        return self._supervisor

    def _pack(self, record: Record) -> None:
        """What the next image needs of this server."""
        record.add("listener", pack_listener(self._first, self._listener.fileno()))
        if self._metrics_listener is not None:
            record.add("metrics", pack_listener(self._metrics_listener, self._metrics_listener.fileno()))
        record.add("own", pack_own(self._own))
        record.values["fixed"] = fixed_values(self, self._launch)
        record.values["control_path"] = None if self._control_listener is None else self._control_listener.path
        record.values["directory"] = self.working_directory or START.directory

    def _control_terms(self) -> access.ControlTerms | None:
        if self.control_socket is None:
            return None
        return access.ControlTerms.read(
            self.control_socket, self.control_mode, self.control_owner, self.control_allow, self.control_allow_read
        )

    def _bind_control(self) -> None:
        """Listen where `control_socket` says, or try whether that could be. Raises BindError."""
        terms, given = self._control_terms(), handed()
        if terms is None:
            self._control_listener = None
        elif given is not None and given.rehearsal:
            self._control_listener = access.try_out(terms, given.values["control_path"])
        else:
            self._control_listener = access.listen(terms, self._given_control)

    def _open_control(self, supervisor: Supervisor) -> None:
        terms = self._control_terms()
        server.open_control(supervisor, self._generations, terms, self._control_listener, self._given_control)

    def _leave_what_is_lent(self) -> None:
        """On the way out of an image that failed before its loop began: the old generation serves on."""
        given = self._given()
        if given is not None and not given.taken:
            given.detach()

    def _no_reload(self) -> str | None:
        if threading.current_thread() is not threading.main_thread():
            return "serve_forever() does not run in the main thread"
        return START.refusal()

    def reload(self) -> None:
        """Put new code and settings in service, as HUP does: rehearse, then run the program again in this process.

        Call it in the process that runs `serve_forever()`, from any thread; it returns at once, and what comes of it is
        in the log and in the metrics. Raises PreforkError where a reload cannot be, with the reason.
        """
        if self._worker is not None or self._supervisor is None:
            raise PreforkError("could not reload: only the process that runs serve_forever() can")
        if self._generations.refusal is not None:
            raise PreforkError(f"could not reload: {self._generations.refusal}")
        self._supervisor.mailbox.post(Command.RELOAD)

    @property
    def rehearsing(self) -> bool:
        """Whether this process only tries what a reload would put in service."""
        return rehearsing()

    def _work(self, birth: Birth, master: Master, number: int) -> int:
        """The body of a worker."""
        assert self._supervisor is not None
        self._leave_own_memory(birth)
        self._leave_metrics_listener()
        title = f"prefork: worker {number}"
        self._in_place = one_request = hasattr(self, "collect_children")
        if self.access_log:
            access_log.log_accesses(
                self, access_log.LogContext(address_text(self.socket.getsockname()), number, address_text)
            )
        terms = loop.WorkerTerms(
            WorkerLimits(self.max_requests, self.max_memory),
            graceful_timeout=self.graceful_timeout,
            elsewhere=self._threaded(),
            rehearsal=not self._serves,
            one_request=one_request,
            hang_up=self.drain_connections == "eof",
            queue_waits=self._counts_queue_waits(),
            metrics=self.metrics_address is not None,
            on_drain=self._on_drain(),
            set_title=lambda what: setproctitle.setproctitle(f"{title} {what}".rstrip()),
            nudge=self._supervisor.nudge,
        )
        return loop.work(self, terms, birth, master)

    def _on_drain(self) -> Callable[[], None] | None:
        """The hook for the beginning of a drain, where somebody overrides it: that takes a thread."""
        hook = self.worker_draining
        return None if getattr(hook, "__func__", hook) is PreForkingMixIn.worker_draining else hook

    def _forget_master(self, signals: Signals) -> None:
        signals.put_back()
        if self._supervisor is not None:
            self._supervisor.forget()

    def _forked_by_user(self) -> None:
        """In a process that user code forked from the master: it is none, and holds nothing of ours."""
        self._forget_master_signals()
        self._forget_supervisor()
        self._leave_metrics_listener()
        self._listener.close()

    @contextlib.contextmanager
    def _signals_taken(self, wakeup: Wakeup, mailbox: Mailbox) -> Iterator[Signals]:
        signals = Signals(wakeup, lambda signum: mailbox.post(BY_SIGNAL[signum]))
        self._forget_master_signals: Callable[[], None] = signals.put_back
        given = self._given()
        if threading.current_thread() is threading.main_thread():
            with blocked():  # between the two a signal would find its default action
                if given is not None and given.early is not None:
                    given.early.hand_over(signals)
                theirs = signals.take_unhandled(BY_SIGNAL)
                signals.reap_ourselves()
            for signum in theirs:
                log.info("the program handles %s itself", signal.Signals(signum).name)
        try:
            yield signals
        finally:
            if given is not None and not given.taken:
                set_mask(EVERY)  # the caretaker's to hear
            signals.put_back()


class PreForkingTCPServer(PreForkingMixIn, TCPServer):
    """A TCPServer over a pool of processes."""


class PreForkingUDPServer(PreForkingMixIn, UDPServer):
    """A UDPServer over a pool of processes."""


class PreForkingUnixStreamServer(PreForkingMixIn, UnixStreamServer):
    """A UnixStreamServer over a pool of processes."""


class PreForkingUnixDatagramServer(PreForkingMixIn, UnixDatagramServer):
    """A UnixDatagramServer over a pool of processes."""
