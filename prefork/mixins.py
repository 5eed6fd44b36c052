"""Mix-ins that choose where a request is processed, and the ready-made classes. Mix in *before* a server class.

    SupervisedMixIn                     child table, scoreboard, statistics, metrics, server_close (supervised.py)
      ├─ PreForkingMixIn                serve_forever = the supervisor; requests run in a pool of workers (pool.py)
      ├─ ForkingMixIn                   process_request = one supervised child per request
      └─ ThreadingMixIn                 process_request = one thread per request, each on a lane

Own the threads and the children that requests run in; must not accept, which is the loop's task. Run in the serving
process; a worker runs `process_request` of the same object.
"""

import os
import threading
from collections.abc import Callable
from typing import Annotated, Any, NoReturn

from prefork.metrics.application.values import begin
from prefork.metrics.facts import ChildKind
from prefork.metrics.scoreboard import Slot, SlotReader, Stacks
from prefork.workers import sinks
from prefork.workers.bootstrap import Birth, Master, enter_briefly
from prefork.workers.contexts import Lane
from prefork.workers.definitions import gives_way, ships
from prefork.workers.flushing import leave_nothing
from prefork.workers.lanes import Lanes
from prefork.workers.last_words import LastWords
from prefork.workers.left_listener import leave
from prefork.workers.signals import HEARD, set_mask
from prefork.workers.straight import ServeOne, way_to_threads
from prefork.workers.threads import RequestThread, Threads

from .inheritance.own import Own
from .master.children import Exit, SharedSlot
from .server import BaseServer, TCPServer, UDPServer, UnixDatagramServer, UnixStreamServer
from .settings.fields import Setting
from .settings.in_force import value_of
from .sockets.of_server import is_closed, is_stream, socket_of
from .supervised import LANES_AT_ONCE, Supervised, SupervisedMixIn


class ForkedRequests(Supervised):
    """State of a server that forks a child per request."""

    def __init__(self, server: Any) -> None:
        super().__init__(server)
        self._spare: tuple[int, Slot] | None = (
            None  # the next child's slot, entered before the fork so that its request counts from the accept on
        )
        # Where nobody measures, children have no slots of their own, but lanes of this one.
        self._shared: SharedSlot | None = None
        self._shared_birth: Birth | None = None
        self._last_words: LastWords | None = None

    def wait_for_requests(self) -> None:
        self.server.collect_children(blocking=self.server.block_on_close)

    def collect(self, *, blocking: bool) -> None:
        """Implement `collect_children()`."""
        if self.done is not None and self.serving_thread != threading.get_ident():
            return  # the loop reaps; if the server is closed by then, it waits for the rest when it ends
        if self.supervisor is not None and len(self.supervisor.table):
            self.supervisor.turn()
            if blocking:
                self.supervisor.wait_for_children(ChildKind.REQUEST)
            if is_closed(self.server):  # server_close() has not waited for them
                self.end_counting()

    def first_slot(self) -> Slot:
        self._shared = None
        if self.application_bytes() or sinks.installed() is not None:
            return Slot(0)  # each request is counted in the slot of the child that serves it
        slot = Slot(min(max(value_of(self.server, "max_children"), 1), LANES_AT_ONCE))
        self._shared = SharedSlot(slot, Stacks(slot), SlotReader(slot))
        self._shared_birth = Birth(slot, self._shared.stacks, os.getpid(), False, self.forget_supervisor, set())
        self._last_words = LastWords(self._shared.stacks)
        return slot

    def next_lane(self) -> Lane | None:
        lanes = self.lanes()
        if self._shared is not None and self.supervisor is not None:
            most = self.server.max_children
            if type(most) is not int:
                most = value_of(self.server, "max_children")
            return None if len(self.supervisor.table) >= most else lanes.take()
        return lanes.take()

    def more_lanes(self) -> Slot | None:
        if self.supervise().table.count(ChildKind.REQUEST) >= value_of(self.server, "max_children"):
            return None
        if self._shared is not None:
            slot = Slot(LANES_AT_ONCE)
            self.counting.enter(slot, ChildKind.SERVER)
            return slot
        slot = Slot(1, self.application_bytes())
        self._spare = self.counting.enter(slot, ChildKind.REQUEST), slot
        return slot

    def fork_for(self, request: Any, client_address: Any) -> None:
        """Fork the child for this request. Raises OSError if the kernel refuses."""
        if self._shared is not None:
            self._fork_briefly(self._shared, request, client_address)
            return
        supervisor = self.supervise()
        serial, slot = self._spare or (None, Slot(1, self.application_bytes()))

        def body(birth: Birth, master: Master, number: int) -> int:
            return self._serve_in_child(request, client_address, birth)

        supervisor.fork(ChildKind.REQUEST, slot, body, serial)
        self.counting.give_away(slot)
        self._spare = None
        if self.counting.lanes is not None:
            self.counting.lanes.pass_on()

    def _fork_briefly(self, shared: SharedSlot, request: Any, client_address: Any) -> None:
        """Fork a child that has the lane of this request, until it is reaped."""
        lanes, words, birth, supervisor = self.lanes(), self._last_words, self._shared_birth, self.supervise()
        assert words is not None
        lane: Lane | None = None
        disowned = leave_nothing()

        def enter(mask: set[int]) -> NoReturn:
            enter_briefly(lambda: body(mask - HEARD), words.write, disowned=disowned)

        def body(mask: set[int]) -> int:
            self.birth = birth
            supervisor.leave()
            lanes.leave_to_siblings()
            lanes.take_over()
            return self._finish_in_child(request, client_address, mask)

        def settle(exit: Exit) -> tuple[bool, str]:
            text = words.of(exit.child.pid)  # first: the last lane that comes back may end the counting, and the slot
            lost = lane is not None and lanes.take_back(lane, ended_well=exit.status == 0)
            return lost, text

        supervisor.fork_briefly(shared, enter, settle)
        lane = lanes.hand_on()

    def _serve_in_child(self, request: Any, client_address: Any, birth: Birth) -> int:
        self.birth = birth
        self.counting.leave(birth)
        if self.counting.lanes is not None:
            self.counting.lanes.take_over()
        self.leave_metrics_listener()
        if birth.slot.application:
            begin(birth.slot.application)
        return self._finish_in_child(request, client_address, birth.mask)

    def _finish_in_child(self, request: Any, client_address: Any, mask: set[int]) -> int:
        server = self.server
        listener = socket_of(server)
        if listener is not None and is_stream(listener):  # on a datagram socket the handler needs it to reply
            leave(listener)  # a long request must not hold the port after the server has ended
        set_mask(mask)
        try:
            server.finish_request(request, client_address)
            return 0
        except Exception:
            server.handle_error(request, client_address)
            return 1
        finally:
            server.shutdown_request(request)


class ThreadedRequests(Supervised):
    """State of a server that starts a thread per request."""

    def __init__(self, server: Any) -> None:
        super().__init__(server)
        self.threads = Threads()

    def way(self, lanes: Lanes) -> ServeOne:
        return lanes.serve_one if self.in_place else way_to_threads(lanes, self.server, self.start)

    def start(self, server: Any, function: Callable[..., None], arguments: tuple[Any, ...]) -> None:
        """Start a thread for a request. Raises RuntimeError if the system cannot start one."""
        thread = RequestThread(self.threads, function, arguments, daemon=server.daemon_threads)
        if server.block_on_close:
            self.threads.append(thread)
        try:
            thread.start()
        except BaseException:
            self.threads.forget(thread)
            raise

    def wait_for_requests(self) -> None:
        self.threads.join()


class StandardThreads:
    """`_threads`, the private name of the standard library, whose tests read it. A program's own `_threads` wins."""

    def __get__(self, server: Any, owner: type) -> Any:
        return self if server is None else server._prefork_.threads


class ActiveChildren:
    """The pids of the children that serve a request; None before the first fork. A program's own value wins."""

    def __get__(self, server: Any, owner: type) -> set[int] | None:
        supervisor = None if server is None else server._prefork_.supervisor
        if supervisor is None or not supervisor.forked:
            return None
        return {child.pid for child in supervisor.table if child.kind is ChildKind.REQUEST}


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

    _prefork_: Any = Own(ForkedRequests)

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

    _prefork_: Any = Own(ThreadedRequests)
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
