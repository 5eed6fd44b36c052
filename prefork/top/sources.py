"""The sources of `prefork top`: a control socket, which has all data and takes commands, or a read-only metrics URL.

Runs in `prefork top`. Every look must have a deadline, so that a hanging service is seen to hang.
"""

import time
from collections.abc import Callable
from typing import Protocol

from ..commands import BY_VERB
from ..control.client import Client
from ..errors import PreforkError
from .http import Endpoint, Response, get
from .rates import Look

__all__ = ["ControlSource", "MetricsSource", "Source"]

ASK_WITHIN_S = 5.0
OK, UNAVAILABLE = 200, 503
READY, HEALTHY = "/-/ready", "/-/healthy"


class Source(Protocol):
    """A source of looks. Its methods raise PreforkError if the service does not answer or refuses."""

    def look(self) -> Look:
        """Return the state of the service now."""

    def replace(self, slot: int, say: Callable[[str], None]) -> None:
        """Replace a worker, and return when it is done. `say` gets the progress."""


class ControlSource:
    """The control socket of a service."""

    def __init__(self, path: str) -> None:
        self._path = path

    def look(self) -> Look:
        with Client(self._path, ASK_WITHIN_S) as client:
            status_of, found = client.result(BY_VERB["status"]), client.result(BY_VERB["workers"])
            status_of["companions"] = found.get("companions", [])  # with what only the processes themselves show
            status_of["holders"] = found.get("holders")
            return Look(time.monotonic(), status_of, found["workers"])

    def replace(self, slot: int, say: Callable[[str], None]) -> None:
        say(f"worker {slot}: its replacement starts")
        with Client(self._path) as client:
            client.result(BY_VERB["restart"], slot)
        say(f"worker {slot} is replaced: it drains, and another is ready")


class MetricsSource:
    """The metrics of a service, read-only."""

    def __init__(self, place: Endpoint) -> None:
        self._place = place

    def look(self) -> Look:
        from .scrape import NotOurs, status_of  # imports prometheus_client, which takes 80 ms

        until = time.monotonic() + ASK_WITHIN_S
        answer = get(self._place, until)
        at = time.monotonic()
        if answer.status != OK:
            raise PreforkError(f"could not read {self._place.text}: it answers {answer.status} {answer.reason}")
        try:
            found = status_of(answer.text, answer.date)
        except NotOurs as exc:
            raise PreforkError(f"could not read {self._place.text}: {exc}") from None
        ready, healthy = self._beside(READY, until), self._beside(HEALTHY, until)
        if ready is not None:
            found["phase"] = "ready" if ready.status == OK else "not ready"
        found["hangs"] = healthy is not None and healthy.status == UNAVAILABLE
        return Look(at, found, None)

    def replace(self, slot: int, say: Callable[[str], None]) -> None:
        raise PreforkError("could not replace a worker: metrics can only be read; it needs the control socket")

    def _beside(self, path: str, until: float) -> Response | None:
        """Return the exporter's answer for this path; None if it cannot be had in time."""
        place = self._place.beside(path)
        if place is None:
            return None
        try:
            answer = get(place, until)
        except PreforkError:
            return None  # the metrics are shown without it
        return answer if answer.status in (OK, UNAVAILABLE) else None
