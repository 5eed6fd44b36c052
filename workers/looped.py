"""The requests of a connection that stays on one lane, in its handler's loop, as it cannot be kept: counted one by one.

    accepted+1, BUSY ─▶ request ─▶ completed+1, rests ─▶ bytes ─▶ accepted+1 ─▶ request ─▶ completed+1, rests ─▶ over

Runs in any process that serves, for handler classes with KeepAliveMixIn: over TLS, and where the program has wrapped
the connection. The handler finds what counts by its thread. While a connection rests its lane is BUSY, for it can take
no other; that it is alive is written now and then, so that `request_timeout` measures a request. At a drain one that
rests is over.
"""

from collections.abc import Callable
from threading import get_ident
from time import monotonic_ns
from typing import Any, NamedTuple

from prefork.metrics.facts import CloseReason
from prefork.metrics.scoreboard import ACCEPTED, CLOSED, COMPLETED, DURATION, FAILED, IN_HAND, OPENED, STARTED_NS

from . import strays
from .bootstrap import leave
from .contexts import Lane
from .definitions import evaluated, of_class

_loops: dict[int, "Looped"] = {}  # by the thread


class LoopTerms(NamedTuple):
    """The terms of the process for such connections."""

    draining: Callable[[], bool] = bool  # nothing new is to begin
    count_one_more: Callable[[], object] = bool  # called for each request but the first


class Looped:
    """One connection, for its handler."""

    def __init__(self, lanes: Any, lane: Lane, request: Any, client_address: Any) -> None:
        self.resting = False  # between two requests
        self.number = 1  # of the request on the connection
        self.reason = CloseReason.HANDLER  # for which it ends
        self._lanes = lanes
        self._lane = lane
        self._request = request
        self._client_address = client_address

    def rest(self) -> None:
        """Count the request that has ended."""
        if self._lanes.forked:
            strays.end()
        self.resting = True
        self.count(COMPLETED)

    def goes_on(self) -> bool:
        """Say that it is alive, while its client is silent; return False if it is over, as the process drains."""
        self._lane[STARTED_NS] = monotonic_ns()
        if self._lanes.loops.draining():
            self.reason = CloseReason.DRAINED
        return self.reason is not CloseReason.DRAINED

    def next_request(self) -> None:
        """Begin to count the next request."""
        self.resting = False
        self.number += 1
        self._lane[STARTED_NS] = monotonic_ns()
        self._lane[ACCEPTED] += 1
        if (access_log := self._lanes.access_log) is not None:
            access_log.begin(self._lane, self._request, self._client_address, self.number)
        self._lanes.loops.count_one_more()

    def count(self, outcome: int) -> None:
        self._lane[outcome] += 1
        DURATION.observe(self._lane, monotonic_ns() - self._lane[STARTED_NS])
        if (access_log := self._lanes.access_log) is not None:
            access_log.end(self._lane, outcome, self._request)


def of_this_thread() -> Looped | None:
    """Return what counts the connection that this thread's handler has; None where nobody does."""
    return _loops.get(get_ident())


def counting(lanes: Any, server: Any) -> Callable[..., Any]:
    """Return the `finish_request()` that does as that of `Lanes.counting()`, request by request.

    `lanes`: the Lanes, in a file that imports this one.
    """
    current, finish, cls = lanes.current, evaluated(server, "finish_request"), type(server)
    noted, own = cls.finish_request, "finish_request" in vars(server)

    def finish_request(request: Any, client_address: Any, *more: Any, **named: Any) -> Any:
        nonlocal finish, noted
        if cls.finish_request is not noted and not own:  # the program has put another one into its class since
            finish, noted = of_class(server, "finish_request"), cls.finish_request
        thread = get_ident()
        lane = current.pop(thread, None)
        if lane is None:
            return lanes.finish_in_its_own_way(finish_request, finish, request, client_address, *more, **named)
        loop = _loops[thread] = Looped(lanes, lane, request, client_address)
        if lanes.access_log is not None:
            lanes.access_log.number_first(lane)
        lane[OPENED] += 1
        lane[IN_HAND] = 1
        outcome = FAILED
        try:
            result = finish(request, client_address, *more, **named)
            outcome = COMPLETED
            return result
        except BaseException as exc:
            if lanes.forked:
                strays.end(exc)
            raise
        finally:
            _loops.pop(thread, None)
            if lanes.forked and outcome == COMPLETED:
                leave(0)
            if not loop.resting:
                loop.count(outcome)
            if lanes.limits is not None:
                lanes.limits.leave(lane)
            lane[CLOSED + loop.reason] += 1
            lane[IN_HAND] = 0

    return finish_request
