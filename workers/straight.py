"""The straight way of a request: from its accept to its handler, where the program has nothing of its own in between.

    get_request ─▶ handler ─▶ shutdown_request          as Lanes.serve_one(), with the same counts in the same order

Runs in a worker that serves one request at a time, or in one of its threads that stay; and in a plain server, up to the
thread that is started for the request, or the child that is forked, and in that. What it leaves out are the calls of
`verify_request()`, `process_request()` and `finish_request()` of BaseServer, or `process_request_thread()` of
ThreadingMixIn, which would lead to the handler, and the search for this thread's lane on the way: a microsecond or two,
a twentieth of a short connection; and where a child is forked, a tenth, for each function that runs in it costs pages.
All other hooks are called.
"""

from collections.abc import Callable
from time import monotonic_ns
from typing import Any

from prefork.metrics.scoreboard import ACCEPTED, ACCEPTING, BUSY, COMPLETED, DURATION, FAILED, IDLE, STARTED_NS, STATE

from . import strays
from .accepting import NOT_BEGUN, REQUEST, Accepted, is_shortage
from .contexts import Lane
from .definitions import definer, is_base_servers, is_forking_mixins, is_ours, is_threading_mixins
from .keeps import keeps
from .lanes import Lanes
from .thread_body import THREAD_BODY

PASSED_BY = ("verify_request", "process_request", "finish_request")

ServeOne = Callable[[Any, Lane, int], Accepted]
Start = Callable[[Any, Callable[..., None], tuple[Any, ...]], None]
Fork = Callable[[Any, Any, list[Lane]], None]


def way_of(lanes: Lanes, server: Any) -> ServeOne:
    """Return what serves one request of this server: the straight way, or `lanes.serve_one`. Call it with bound lanes.

    A program that changes a hook while it serves, on the object or in its class, has it called from the next request
    on: that is asked each time, for a tenth of what is saved.
    """
    counted = lanes.bound
    if lanes.elsewhere or lanes.admission is not None or lanes.found is not None or keeps(server):
        return lanes.serve_one
    if not all(is_base_servers(server, name) for name in PASSED_BY):
        return lanes.serve_one
    cls, own, get_request = type(server), vars(server), lanes.get_request
    verify, process, finish = (getattr(cls, name) for name in PASSED_BY)
    observe, log, begin = DURATION.observe, lanes.access_log, lanes.begin
    failed = False  # the last get_request()

    def serve_one(server: Any, lane: Lane, now_ns: int) -> Accepted:
        nonlocal failed
        now = type(server)
        if (
            server.finish_request is not counted or "verify_request" in own or "process_request" in own
            or now.verify_request is not verify or now.process_request is not process
            or now.finish_request is not finish
        ):  # fmt: skip
            return lanes.serve_one(server, lane, now_ns)
        lane[STARTED_NS] = now_ns
        lane[STATE] = ACCEPTING
        try:
            request, client_address = server.get_request() if get_request is None else get_request()
        except BaseException as exc:
            failed = True
            return lanes.got_none(lane, exc)
        lane[ACCEPTED] += 1
        lane[STATE] = BUSY
        if failed or now_ns >= lanes.next_queue_wait_ns:
            failed = False
            begin(lane, request, client_address, now_ns)
        elif log is not None:
            log.begin(lane, request, client_address)
        try:
            try:
                server.RequestHandlerClass(request, client_address, server)
            except BaseException as exc:
                lanes.fail(lane, request, exc)
                raise
            if lanes.forked:
                strays.end()
            lane[COMPLETED] += 1
            observe(lane, monotonic_ns() - now_ns)
            if log is not None:
                log.end(lane, COMPLETED, request)
            server.shutdown_request(request)
        except Exception:
            server.handle_error(request, client_address)
            server.shutdown_request(request)
        except BaseException:
            server.shutdown_request(request)
            raise
        finally:
            lane[STATE] = IDLE
        return REQUEST

    return serve_one


def way_in_threads(lanes: Lanes, server: Any) -> ServeOne:
    """Return what serves one request in the thread that accepts it, as `way_of()` does; see there.

    The same steps are written out once more: a call for them would cost a tenth of what this way saves.
    """
    counted, accepted = lanes.bound, lanes.accepted
    if (
        accepted is None or lanes.admission is not None or lanes.found is not None or keeps(server)
        or not all(is_base_servers(server, name) for name in ("verify_request", "finish_request"))
        or not all(is_threading_mixins(server, name) for name in ("process_request", THREAD_BODY))
    ):  # fmt: skip
        return lanes.serve_one
    cls, own, get_request = type(server), vars(server), lanes.get_request
    verify, process, finish, body = (getattr(cls, name) for name in (*PASSED_BY, THREAD_BODY))
    observe, log, begin = DURATION.observe, lanes.access_log, lanes.begin
    failed = True  # some thread's last get_request()

    def serve_one(server: Any, lane: Lane, now_ns: int) -> Accepted:
        nonlocal failed
        now = type(server)
        if (
            server.finish_request is not counted or "verify_request" in own or "process_request" in own
            or THREAD_BODY in own or now.verify_request is not verify or now.process_request is not process
            or now.finish_request is not finish or now.process_request_thread is not body
        ):  # fmt: skip
            return lanes.serve_one(server, lane, now_ns)
        lane[STARTED_NS] = now_ns
        lane[STATE] = ACCEPTING
        try:
            request, client_address = server.get_request() if get_request is None else get_request()
        except BaseException as exc:
            failed = True
            return lanes.got_none(lane, exc)
        lane[ACCEPTED] += 1
        lane[STATE] = BUSY
        if failed or now_ns >= lanes.next_queue_wait_ns:
            failed = False
            begin(lane, request, client_address, now_ns)
        elif log is not None:
            log.begin(lane, request, client_address)
        accepted()
        try:
            try:
                server.RequestHandlerClass(request, client_address, server)
            except BaseException as exc:
                lanes.fail(lane, request, exc)
                raise
            if lanes.forked:
                strays.end()
            lane[COMPLETED] += 1
            observe(lane, monotonic_ns() - now_ns)
            if log is not None:
                log.end(lane, COMPLETED, request)
        except Exception:
            server.handle_error(request, client_address)
        finally:
            try:
                server.shutdown_request(request)
            finally:
                lane[STATE] = IDLE
        return REQUEST

    return serve_one


def way_to_threads(lanes: Lanes, server: Any, start: Start) -> ServeOne:
    """Return what accepts one request and starts a thread for it, as `way_of()` does; see there.

    `start(server, function, arguments)` starts a thread of ThreadingMixIn's. The lane goes along as an argument: nobody
    else could begin this request, so that a place in `lanes.contexts` is not needed.
    """
    counted, body = lanes.bound, lanes.thread_body
    if (
        lanes.admission is not None or lanes.access_log is not None or lanes.found is not None or keeps(server)
        or not all(is_base_servers(server, name) for name in ("verify_request", "finish_request"))
        or not all(_is_our_threading_mixins(server, name) for name in ("process_request", THREAD_BODY))
    ):  # fmt: skip
        return lanes.serve_one
    cls = type(server)
    verify, process, finish, in_thread = (getattr(cls, name) for name in (*PASSED_BY, THREAD_BODY))
    begin, process_request_thread = lanes.begin, _thread_body(lanes)

    def serve_one(server: Any, lane: Lane, now_ns: int) -> Accepted:
        now, own = type(server), vars(server)
        if (
            server.finish_request is not counted or "verify_request" in own or "process_request" in own
            or own.get(THREAD_BODY) is not body or now.process_request_thread is not in_thread
            or now.verify_request is not verify or now.process_request is not process
            or now.finish_request is not finish
        ):  # fmt: skip
            return lanes.serve_one(server, lane, now_ns)
        lane[STARTED_NS] = now_ns
        lane[STATE] = ACCEPTING
        try:
            request, client_address = server.get_request()
        except BaseException as exc:
            return lanes.got_none(lane, exc)
        lane[ACCEPTED] += 1
        lane[STATE] = BUSY
        if now_ns >= lanes.next_queue_wait_ns:
            begin(lane, request, client_address, now_ns)
        passed = {"lane": lane}  # whoever takes it out has it to give back
        try:
            start(server, process_request_thread, (server, request, client_address, passed))
        except BaseException as exc:
            if passed.pop("lane", None) is not None:
                lanes.end(lane, FAILED)
                lanes.give_back(lane)
            if not isinstance(exc, Exception):
                server.shutdown_request(request)
                raise
            server.handle_error(request, client_address)
            server.shutdown_request(request)
            if is_shortage(exc):
                return NOT_BEGUN
        return REQUEST

    return serve_one


def _thread_body(lanes: Lanes) -> Callable[..., None]:
    """Return what such a thread runs: it has the name of the method that it stands for, and so has the thread."""
    observe = DURATION.observe

    def process_request_thread(server: Any, request: Any, client_address: Any, passed: dict[str, Lane]) -> None:
        if (lane := passed.pop("lane", None)) is None:  # what has started this thread was interrupted, and counted
            server.process_request_thread(request, client_address)
            return
        try:
            try:
                server.RequestHandlerClass(request, client_address, server)
            except BaseException as exc:
                lanes.fail(lane, request, exc)
                raise
            lane[COMPLETED] += 1
            observe(lane, monotonic_ns() - lane[STARTED_NS])
        except Exception:
            server.handle_error(request, client_address)
        finally:
            try:
                server.shutdown_request(request)
            finally:
                lanes.give_back(lane)

    return process_request_thread


def _is_our_threading_mixins(server: Any, name: str) -> bool:
    return is_threading_mixins(server, name) and is_ours(definer(type(server), name) or object)


def way_to_children(lanes: Lanes, server: Any, fork: Fork) -> ServeOne:
    """Return what accepts one request and forks a child for it, as `way_of()` does; see there.

    `fork(request, client_address, passed)` forks a child of ForkingMixIn's that ends with `finish_in_child()`, on the
    lane in `passed`: it takes that out once the child has it, until the child is reaped.
    """
    counted, begin = lanes.bound, lanes.begin
    if (
        lanes.admission is not None or lanes.access_log is not None or lanes.found is not None or keeps(server)
        or not all(is_base_servers(server, name) for name in ("verify_request", "finish_request"))
        or not is_forking_mixins(server, "process_request")
        or not is_ours(definer(type(server), "process_request") or object)
    ):  # fmt: skip
        return lanes.serve_one
    verify, process, finish = (getattr(type(server), name) for name in PASSED_BY)
    failed = False  # the last get_request()

    def serve_one(server: Any, lane: Lane, now_ns: int) -> Accepted:
        nonlocal failed
        now, own = type(server), vars(server)
        if (
            server.finish_request is not counted or "verify_request" in own or "process_request" in own
            or now.verify_request is not verify or now.process_request is not process
            or now.finish_request is not finish
        ):  # fmt: skip
            return lanes.serve_one(server, lane, now_ns)
        lane[STARTED_NS] = now_ns
        lane[STATE] = ACCEPTING
        try:
            request, client_address = server.get_request()
        except BaseException as exc:
            failed = True
            return lanes.got_none(lane, exc)
        lane[ACCEPTED] += 1
        lane[STATE] = BUSY
        if failed or now_ns >= lanes.next_queue_wait_ns:
            failed = False
            begin(lane, request, client_address, now_ns)
        passed = [lane]
        try:
            fork(request, client_address, passed)
            server.close_request(request)
        except BaseException as exc:
            if passed:
                lanes.fail_unless_ended(lane)
                lanes.give_back(lane)
            if not isinstance(exc, Exception):
                server.shutdown_request(request)
                raise
            server.handle_error(request, client_address)
            server.shutdown_request(request)
            if is_shortage(exc):
                return NOT_BEGUN
        return REQUEST

    return serve_one


def finish_in_child(lanes: Lanes, server: Any, lane: Lane, request: Any, client_address: Any) -> int:
    """Finish a request in the child that was forked for it by `way_to_children()`; return the child's exit status."""
    try:
        try:
            server.RequestHandlerClass(request, client_address, server)
        except BaseException as exc:
            lanes.fail(lane, request, exc)
            raise
        if lanes.forked:
            strays.end()
        lane[COMPLETED] += 1
        DURATION.observe(lane, monotonic_ns() - lane[STARTED_NS])
        return 0
    except Exception:
        server.handle_error(request, client_address)
        return 1
    finally:
        server.shutdown_request(request)
