"""Datagrams that are longer than `max_packet_size`: counted on the lane of their request, and told in the log.

Runs where a worker receives them. The kernel has cut them by then, and does not keep the rest (recv(2)); a request goes
on with what there is, as in the standard library.
"""

import logging
from collections.abc import Callable
from time import monotonic
from typing import Any

from prefork.metrics.log_events import LogEvent, event
from prefork.metrics.scoreboard import TRUNCATED

from .contexts import Lane

log = logging.getLogger("prefork.server")

CUT_SAID_EVERY_S = 10.0


class CutDatagrams:
    """Counts them on the lane that `lane` returns, which is the one of the thread that receives."""

    def __init__(self, lane: Callable[[], Lane | None], address_text: Callable[[Any], str]) -> None:
        self._lane = lane
        self._address_text = address_text
        self._said_at = float("-inf")

    def note(self, most: int, client_address: Any) -> None:
        """Count one, of which the first `most` bytes were taken."""
        lane, now = self._lane(), monotonic()
        if lane is not None:
            lane[TRUNCATED] += 1
        if now - self._said_at >= CUT_SAID_EVERY_S:
            self._said_at = now
            peer = self._address_text(client_address or "an unnamed client")
            log.warning("a datagram from %s is longer than max_packet_size, and cut to its first %d bytes", peer, most,
                        extra=event(LogEvent.DATAGRAM_CUT, peer=peer, taken=most))  # fmt: skip
