"""The pool behind `serve_forever()`: how it is built from its server, and the body of a worker.

Runs in the master, and in each worker as a copy. Owns the control socket's listener, and what
`serve_forever()` changes in the master's process (signals, title, garbage collector, the listener's flags). It must
restore all of that when it ends. Longer than most files: the parts of a pool are put together in one place.
"""

import contextlib
import gc
import logging
import os
import socket
import threading
from collections.abc import Callable, Iterator
from functools import partial, reduce
from operator import or_
from typing import Any

import setproctitle

from prefork.metrics.board import TLS_EXPIRES_AT_S, listener_word
from prefork.metrics.facts import ChildKind
from prefork.metrics.log_events import LogEvent, event
from prefork.workers import sinks, user_forks
from prefork.workers.admission import Terms
from prefork.workers.bootstrap import Birth, Master
from prefork.workers.connection_table import ConnectionTable
from prefork.workers.definitions import hook, is_the_programs
from prefork.workers.descriptor_limit import raised
from prefork.workers.limits import WorkerLimits
from prefork.workers.loop import Worker
from prefork.workers.open_lanes import lanes_of
from prefork.workers.signals import EVERY, Signals, set_mask
from prefork.workers.terms import WorkerTerms
from prefork.workers.wakeup import Wakeup

from . import process
from .commands import BY_SIGNAL, WORKERS_MAX, Command
from .control.access import ControlTerms, listen, try_out
from .control.server import open_control
from .errors import BindError, ConfigError, PreforkError
from .holder.child import HeldTerms, HolderChild, all_of
from .inheritance.standard_classes import process_in_place
from .listening import Joined
from .logs import say_if_root, say_no_effect
from .master.kept_queues import KeptQueues
from .master.mailbox import Mailbox
from .master.policy import Limits
from .master.service import Service
from .master.supervisor import Supervisor
from .reload.fixed import fixed_values, refuse_changes
from .reload.generations import Generations
from .reload.handover import Handed, Record, handed, pack_listener, pack_own
from .reload.rehearsal import Rehearsal
from .reload.start_context import START
from .run_mode import RunMode, rehearsing, run_mode
from .serving_loop import SERVER_CLOSED
from .settings.affinity import check_affinity
from .settings.handlers import check_handler, check_there_is_one
from .settings.in_force import InForce, value_of
from .settings.users import privileges_of
from .sockets.accepted import accept_for
from .sockets.addresses import over
from .sockets.affinity import Places, gather, give_room, spread
from .sockets.listener import SERVICE, Listener, beneath, names_of, number_of
from .sockets.networks import admission, counted
from .sockets.options import check_shared_port
from .sockets.receiving import shortest
from .sockets.shared import SharedDatagrams, check_shared, prepared, widen
from .sockets.wildcard import prepare_answers
from .surroundings import early_signals
from .surroundings.taken import keeping, signals_taken

log = logging.getLogger("prefork.supervisor")

WITHOUT_POOL = "handle_request() serves in the process that calls it; serve_forever() starts the workers"


class Preforked(Joined):
    """State of a server that serves from a pool."""

    def __init__(self, server: Any) -> None:
        super().__init__(server)
        self.launch: object | None = None  # command line values that are not settings of the server
        self.watched: tuple[str, ...] = ()  # for reload_on_change: files to watch besides the modules
        self.refusal: str | None = None  # why a reload is refused, if set from outside
        self._control_listener: Listener | None = None
        self._control_before: dict[str, Any] | None = None  # the previous image's control socket
        self._generations: Generations | None = None
        # Of every worker, made before the first fork: what a worker looks up is in its own memory, and how it does so.
        self._terms: WorkerTerms | None = None
        self._freezes = self._logs_access = False
        self._names: list[str] = []  # of the listeners, in logs
        self._mailbox: Mailbox | None = None  # while the pool serves
        self._signals: Signals | None = None  # while the pool serves
        self._places = Places()  # with `peer_affinity`
        self._by_hand = 0  # requests that the program has asked for one by one

    # Serving.

    def refuse_closed(self) -> None:
        if self.closing:  # a socket that the program itself has closed is said to be by a sentence
            raise ValueError(SERVER_CLOSED)

    def serve_pool(self, poll_interval: float | None) -> Supervisor:
        """Serve until every worker is gone. Return the supervisor."""
        server = self.server
        with process.unharmed(), self.serving() as wakeup, contextlib.ExitStack() as stack:
            self.refuse_closed()  # checked now: a later server_close() finds us serving
            stack.enter_context(process.alone(self.service_name()))
            stack.enter_context(process.inside(value_of(server, "working_directory")))
            stack.enter_context(raised())
            mailbox = Mailbox(wakeup.wake)
            stack.enter_context(self._signals_taken(wakeup, mailbox))
            given = self._given()
            for each in self.each:
                check_shared(each.listener, each.server)
                stack.enter_context(prepared(each.listener, lambda: given is None or given.taken))
            stack.enter_context(self._spread(given))
            stack.callback(self._leave_what_is_lent)
            stack.enter_context(process.titled(self.service_name()))
            process.import_psutil(server)
            process.import_all()
            if value_of(server, "gc_freeze"):
                stack.enter_context(process.frozen())
            supervisor = self.supervisor = self._pool(wakeup, mailbox)
            self._publish_expiry()
            self.counting.board.say_who_keeps(
                {number_of(each.listener) for each in self.each if each.keeps_connections}
            )
            try:
                self.export(supervisor)
                self._hold(supervisor)
                self._open_control(supervisor)
                user_forks.on_fork_by_user(self._forked_by_user)
                self._run(supervisor, mailbox, poll_interval)
            finally:
                self._mailbox = None
                user_forks.on_fork_by_user(None)
                supervisor.close()
        return supervisor

    @contextlib.contextmanager
    def _spread(self, given: Handed | None) -> Iterator[None]:
        """Have a socket for each worker, inside, with `peer_affinity`: those that the previous image handed over, or
        new ones. Raises BindError."""
        own, places = beneath(self.listener), self._places
        if given is not None and "places" in given.values:
            for fd in given.values["places"]["fds"]:
                if self.origin is not None and self.origin.resumed:
                    places.others.append(over(fd, socket.socket))
                    given.lend(places.others[-1])
                else:
                    os.close(fd)  # of an address that is given up: it is left to its workers
        if own is not None and places.others:
            give_room(own, places.others)
        elif own is not None and value_of(self.server, "peer_affinity"):
            places.others = spread(own, value_of(self.server, "max_children"))
        try:
            yield
        finally:
            if places.others and own is not None and (given is None or given.taken):
                gather(own, places.others)
            places.others = []

    def _run(self, supervisor: Supervisor, mailbox: Mailbox, poll_interval: float | None) -> None:
        for where in names_of(self.sockets()):
            log.info("listening on %s", where, extra=event(LogEvent.LISTENING, address=where))
        if handed() is None:  # else it was said at the start
            say_if_root(value_of(self.server, "user"))
        self._mailbox = mailbox  # from here on shutdown() posts; an earlier one is checked for next
        if self.shutdown_requested:
            mailbox.post(Command.DRAIN)
        acting = [each.server for each in self.each if each.wants_polling()]
        if acting:
            supervisor.run([keeping(self._signals, server.service_actions) for server in acting], poll_interval)
        else:
            supervisor.run()

    def handle_one(self) -> None:
        self.refuse_closed()
        self._by_hand += 1
        if self._by_hand == 2:  # one is a test's, or a program's that waits for its first client; two are a loop
            say_no_effect([(type(self.server).__qualname__ + "'s pool", WITHOUT_POOL)])
        if self.done is None and self.listener is not None:
            widen(self.listener)
            prepare_answers(self.listener, through_proxy=value_of(self.server, "proxy_trusted") is not None)
        super().handle_one()

    def tell_to_end(self) -> None:
        super().tell_to_end()
        if (mailbox := self._mailbox) is not None:
            mailbox.post(Command.DRAIN)

    def wants_polling(self) -> bool:
        return run_mode() is RunMode.SINGLE or super().wants_polling()

    def watch(self, fd: int) -> None:
        """Make the supervisor turn when this descriptor is readable, too."""
        assert self.supervisor is not None
        self.supervisor.watch(fd)

    def unwatch(self, fd: int) -> None:
        assert self.supervisor is not None
        self.supervisor.unwatch(fd)

    @contextlib.contextmanager
    def _signals_taken(self, wakeup: Wakeup, mailbox: Mailbox) -> Iterator[None]:
        signals = self._signals = Signals(wakeup, lambda signum: mailbox.post(BY_SIGNAL[signum]))
        given = self._given()
        with signals_taken(signals, early_signals.waiting() if given is None else given.early):
            try:
                yield
            finally:
                if given is not None and not given.taken:
                    set_mask(EVERY)  # so that the degraded master gets the signals

    # What the supervisor is made of.

    def _pool(self, wakeup: Wakeup, mailbox: Mailbox) -> Supervisor:
        server = self.server
        lanes, lanes_open = lanes_of(value_of(server, "max_threads") if self.threaded() else 1)
        service = Service(
            self.service_name(), forget=self._forget_master, work=self._work, lanes=lanes, lanes_open=lanes_open,
            listeners=self.sockets(), max_lifetime=value_of(server, "max_lifetime"), others=tuple(self._places.others),
            application_bytes=self.application_bytes(), companions=self.companions(),
            renew_tls=self._renew_tls if any(each.tls is not None for each in self.each) else None,
            privileges=privileges_of(server),
            counts_connections=self.counts_connections(), kept=self._kept_queues(),
        )  # fmt: skip
        for each in self.each:
            each.end_own_requests()
        given = self._given()
        self._control_before = None if given is None else given.values.get("control")
        if given is not None:
            self.counting.go_on_with(given.board())
        self.number_listeners(self.counting.board, {} if given is None else given.values)
        self.bind_metrics()  # before the supervisor takes what was handed over
        self._bind_control()
        self._generations = Generations(pack=self._pack, refusal=self._no_reload(), handed=given)
        supervisor = Supervisor(service, self._limits(), self.counting.board, wakeup, self._generations, mailbox)
        if value_of(server, "reload_on_change"):
            from .reload.on_change import Changes

            reload = partial(mailbox.post, Command.RELOAD)
            before = None if given is None else given.values["seen"]
            supervisor.tasks.changes = Changes(reload, self.watched, before)
        self._terms = self._worker_terms(supervisor)
        self._freezes, self._logs_access = value_of(server, "gc_freeze"), value_of(server, "access_log")
        self._names = names_of(self.sockets())
        return supervisor

    def _some_keep(self) -> bool:
        return any(each.keeps_connections for each in self.each)

    def _kept_queues(self) -> KeptQueues:
        """Return the queues of kept connections: those of the previous image, or new ones, but none in a rehearsal."""
        given = self._given()
        before = None if given is None else given.values.get("queues")
        kept = KeptQueues(self._some_keep() and not rehearsing(), before)
        if given is not None and before is not None and kept.queues is not None:
            for each in kept.queues:
                given.lend(each.sock)
        return kept

    def held_terms(self) -> HeldTerms:
        setting = InForce(self.server)
        return HeldTerms(
            setting.keepalive_timeout, setting.max_idle_connections, setting.incomplete_timeout,
            setting.graceful_timeout,
        )  # fmt: skip

    def _hold(self, supervisor: Supervisor) -> None:
        """Add a holder where connections are kept, or were before a reload."""
        if supervisor.kept.queues is not None:
            before = (child.slot.listeners for child in supervisor.table if child.kind is ChildKind.WORKER)
            listeners = reduce(or_, before, all_of(supervisor.service.numbers))
            supervisor.tasks.hold(HolderChild(
                self.held_terms(), supervisor.kept, listeners, self.counting.board,
                supervisor.fork, supervisor.nudge, supervisor.connections, wanted=self._some_keep(),
                leave=self._leave_listeners,
                in_use=supervisor.others_serve,
            ))  # fmt: skip

    def counts_connections(self) -> bool:
        return any(counted(InForce(each.server)) for each in self.each)

    def _table(self, server: Any) -> ConnectionTable | None:
        """Return where connections of this server are counted: at each listener, if their number is limited at any."""
        if self.supervisor is None or server.socket.type == socket.SOCK_DGRAM or not self.counts_connections():
            return None
        return self.supervisor.connections

    def _worker_terms(self, supervisor: Supervisor) -> WorkerTerms:
        """Return the terms of every worker."""
        server, setting = self.server, InForce(self.server)
        return WorkerTerms(
            WorkerLimits(setting.max_requests, setting.max_memory), graceful_timeout=setting.graceful_timeout,
            elsewhere=self.threaded(), rehearsal=rehearsing(),
            one_request=hasattr(server, "collect_children"), hang_up=setting.drain_connections == "eof",
            queue_waits=self.counts_queue_waits(), metrics=setting.metrics_address is not None,
            nudge=supervisor.nudge, on_drain=_on_drain(server), listener=number_of(self.listener),
            set_title=lambda what: setproctitle.setproctitle(f"prefork: worker {self.slot} {what}".rstrip()),
            access_log=None, get_request=partial(shortest, server), admission=None, queues=supervisor.kept.queues,
        )  # fmt: skip

    def _limits(self) -> Limits:
        server = InForce(self.server)
        return Limits(
            pool=True, max_children=server.max_children, min_children=server.min_children or server.max_children,
            min_spare_children=server.min_spare_children, max_spare_children=server.max_spare_children,
            request_timeout=server.request_timeout, slow_request_timeout=server.slow_request_timeout,
            boot_timeout=server.boot_timeout, graceful_timeout=server.graceful_timeout,
            max_restart_delay=server.max_restart_delay, drain_delay=server.drain_delay,
            stall_timeout=server.stall_timeout,
            hang_up=server.drain_connections == "eof", room=WORKERS_MAX - len(self.companions()),
            one_size=server.peer_affinity,
        )  # fmt: skip

    @staticmethod
    def _given() -> Handed | None:
        """Return what the previous image handed over. Only for the server that serves in the main thread."""
        given = handed()
        in_main_thread = threading.current_thread() is threading.main_thread()
        return given if in_main_thread and run_mode() is RunMode.SERVE else None

    def rehearsal(self) -> Rehearsal:
        """Return the rehearsal of this service, in which one worker boots and exits."""
        origins, setting = [each.origin for each in self.each], InForce(self.server)
        return Rehearsal(
            setting.working_directory, setting.boot_timeout, self._pool_in_rehearsal, self._work,
            lambda: self.counting.board,
            refuse=lambda fixed: refuse_changes(fixed, self._by_address(resumed=True), self.server, self.launch),
            listeners=lambda: (*origins, self.metrics_listener, self._control_listener),
        )  # fmt: skip

    def _by_address(self, *, resumed: bool = False) -> dict[str, Any]:
        """Return the server at each address, as it was asked for; `resumed`: of those handed over."""
        each = ((its.origin, its.server) for its in self.each)
        return {at.asked or "": server for at, server in each if at is not None and (at.resumed or not resumed)}

    def _pool_in_rehearsal(self, wakeup: Wakeup) -> Supervisor:
        process.import_psutil(self.server)
        self.supervisor = self._pool(wakeup, Mailbox(wakeup.wake))
        return self.supervisor

    def _pack(self, record: Record) -> None:
        """Add to the record what the next image needs of this server."""
        for number, each in enumerate(self.each, 1):
            assert each.origin is not None
            name = SERVICE if number == 1 else f"{SERVICE} {number}"
            record.add(name, pack_listener(each.origin, each.listener.fileno()))
        if self.metrics_listener is not None:
            record.add("metrics", pack_listener(self.metrics_listener, self.metrics_listener.fileno()))
        if fds := [each.fileno() for each in self._places.others]:
            record.add("places", ({"fds": fds}, fds))
        record.add("own", pack_own(self.counting.own))
        if (packed := sinks.pack()) is not None:
            record.add("log", packed)
        record.values["fixed"] = fixed_values(self._by_address(), self.server, self.launch)
        control = self._control_listener
        record.values["control_path"] = control.path if control is not None and control.stands else None
        record.values["holder"] = self.held_terms()
        assert self.supervisor is not None
        record.values["privileges"] = self.supervisor.service.privileges
        record.values["directory"] = value_of(self.server, "working_directory") or START.directory

    def check(self) -> None:
        """Refuse what cannot be served as it is set, each alone being valid. Raises ConfigError."""
        self.control_terms()
        self.check_companions()
        for each in self.each:
            inherited = each.origin is not None and each.origin.inherited
            check_affinity(each.server, inherited=inherited, alone=len(self.each) == 1)
            each.secure()
            check_handler(each.server, getattr(each.server, "socket_type", 0))
            check_there_is_one(each.server)
            check_shared_port(each.server)

    def _renew_tls(self) -> None:
        before = [(each, each.tls, each.tls_expires_at, each.asks) for each in self.each]
        try:
            for each, context, *_ in before:
                each.secure()
                if each.tls is None and context is not None:
                    raise ConfigError("create_ssl_context() returned None, and only a reload takes TLS away")
        except BaseException:  # of the program's method, too
            for each, context, expires_at, asks in before:
                each.tls, each.tls_expires_at, each.asks = context, expires_at, asks
            raise
        self._publish_expiry()

    def _publish_expiry(self) -> None:
        """Tell when the certificate of each listener expires."""
        with self.counting.board.change() as words:
            for each in self.each:
                expires_at = 0 if each.tls is None else int(each.tls_expires_at)
                words[listener_word(number_of(each.listener), TLS_EXPIRES_AT_S)] = expires_at

    def control_terms(self) -> ControlTerms | None:
        """Return the control socket's path, owner and permitted users; None without one. Raises ConfigError."""
        server = InForce(self.server)
        if server.control_socket is None:
            return None
        return ControlTerms.read(
            server.control_socket, server.control_mode, server.control_owner, server.control_allow,
            server.control_allow_read,
        )  # fmt: skip

    def _bind_control(self) -> None:
        """Listen on `control_socket`, or in a rehearsal try to. Raises BindError."""
        terms, given = self.control_terms(), handed()
        try:
            if terms is None:
                self._control_listener = None
            elif given is not None and run_mode() is RunMode.REHEARSE:
                self._control_listener = try_out(terms, given.values["control_path"])
            else:
                self._control_listener = listen(terms, self._control_before)
        except BindError as exc:
            raise exc.named(self.origin_of("control_socket")) from exc.__cause__

    def _open_control(self, supervisor: Supervisor) -> None:
        terms = self.control_terms()
        assert self._generations is not None
        open_control(supervisor, self._generations, terms, self._control_listener, self._control_before)

    def _leave_what_is_lent(self) -> None:
        """Detach what was handed over if this image failed before its loop began: the old generation serves on."""
        if (given := self._given()) is not None and not given.taken:
            given.detach()

    def reload(self) -> None:
        """Implement `reload()`. Raises PreforkError."""
        if self.worker is not None or self.birth is not None or self.supervisor is None or self._generations is None:
            raise PreforkError("could not reload: only the process that runs serve_forever() can")
        if self._generations.refusal is not None:
            raise PreforkError(f"could not reload: {self._generations.refusal}")
        self.supervisor.mailbox.post(Command.RELOAD)

    def _no_reload(self) -> str | None:
        if self.refusal is not None:
            return self.refusal
        if threading.current_thread() is not threading.main_thread():
            return "serve_forever() does not run in the main thread"
        return START.refusal()

    # In children.

    def _work(self, birth: Birth, master: Master, number: int) -> int:
        """Run a worker in its new process. Return its exit status."""
        assert self._terms is not None
        if self._freezes:
            gc.freeze()
        self.counting.leave(birth)
        self.leave_metrics_listener()
        self._places.take(number, beneath(self.listener))
        named = zip(self.each, self._names, strict=True)
        served = [(each.server, self._terms_of(each, self._terms, number, name)) for each, name in named]
        worker = Worker(*served[0], birth, master, served[1:])
        for each in self.each:
            each.worker = worker
        served_by = zip(self.each, worker.every, strict=True)
        if shared := [lanes for each, lanes in served_by if isinstance(each.listener, SharedDatagrams)]:
            SharedDatagrams.receive_on(*shared)
        return worker.run()

    def _terms_of(self, each: Joined, terms: WorkerTerms, number: int, name: str) -> WorkerTerms:
        """Return the terms by which a worker serves one of the servers, and prepare that for it."""
        server = each.server
        each.take_slot(number)
        if terms.one_request:
            process_in_place(server)
        accept_for(server.socket, server.RequestHandlerClass)
        if each is not self:
            terms = terms._replace(
                queue_waits=terms.metrics and each.takes_tcp(), get_request=partial(shortest, server),
                on_drain=_on_drain(server), listener=number_of(each.listener),
            )  # fmt: skip
        own: dict[str, Any] = {}
        if self._logs_access:
            own["access_log"] = each.access_log(wanted=True, where=name)
        table = self._table(server)
        if each.asks is not None or table is not None:
            counts_clients = any(value_of(one.server, "max_connections_per_client") is not None for one in self.each)
            own["admission"] = admission(each.asks or Terms(), table, number, counts_clients=counts_clients)
        if terms.queues is not None and not each.keeps_connections:
            own["queues"] = None
        return terms._replace(**own) if own else terms

    def _leave_listeners(self) -> None:
        self.leave_metrics_listener()
        self._places.leave()
        for sock in self.sockets():
            sock.close()

    def _accompany(self, *arguments: Any) -> int:
        self._places.leave()
        return super()._accompany(*arguments)

    def _forget_master(self) -> None:
        if self._signals is not None:
            self._signals.forget()
        self.forget_supervisor()

    def _forked_by_user(self) -> None:
        """Release everything of ours in a process that user code forked from the master, which is no master itself."""
        self._forget_master()
        if self.supervisor is not None:
            self.supervisor.kept.keep_ends_of(ChildKind.SERVER)
        self._leave_listeners()


def _on_drain(server: Any) -> Callable[[], None] | None:
    return hook(server, "worker_draining") if is_the_programs(server, "worker_draining") else None
