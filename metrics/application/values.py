"""The value class that keeps the user's prometheus_client metrics in this process's region, and how it gets there.

Runs in every process of a service and in any program that imports prefork: nothing here imports prometheus_client; a
hook on `sys.meta_path` sets the class when somebody else does. Owns where the values of this process are:

    at first            each in memory of its own, as prometheus_client has it
    adopt(region)       in the master's region, with what they have so far
    begin(region)       in a new child's region, from zero: what they had is counted in its parent's
    any other fork      in memory of their own, from zero: nobody writes another process's region
    release()           in memory of their own again, with what they have

After `begin()` a value goes over when it is first touched, so that a child that counts little pays little; the series
of one histogram or summary go together.
"""

import logging
import os
import threading
from array import array
from collections.abc import Sequence
from functools import lru_cache
from math import isfinite
from time import monotonic
from typing import TYPE_CHECKING, Any
from weakref import WeakSet, ref

from ..log_events import LogEvent, event
from .region import Writer
from .series import RULES, SUFFIXES, Rule, encode

if TYPE_CHECKING:
    Cells = array[float] | memoryview[float]

log = logging.getLogger("prefork.metrics")

VALUES = "prometheus_client.values"
OURS = "prefork_"  # how the names of our own metrics begin


class _Home:
    """Where the values of this process go; another object whenever that changes. `writer` None: each for itself."""

    def __init__(self, region: memoryview | None) -> None:
        self.writer = Writer(region) if region is not None else None
        self.said_full = False


_home = _Home(None)
_nowhere = _Home(None)
_groups: WeakSet["_Group"] = WeakSet()
_being_built: dict[tuple[object, ...], "_Group"] = {}  # histograms and summaries, whose values come one by one
_refused: set[str] = set()
SAID_EVERY, NEVER_S = 10.0, float("-inf")  # seconds
_not_finite_said: dict[str, float] = {}  # by metric
# Entered again by a signal handler or a destructor that counts; never held while something is logged.
_lock = threading.RLock()


def adopt(region: memoryview) -> bool:
    """Keep the values of this process in `region` from now on, with what they have. Before the first fork.

    False, and nothing changes, when they are in another service's region already.
    """
    global _home
    with _lock:
        if _home.writer is not None:
            return False
        home = _Home(region)
        homeless = [group for group in list(_groups) if not group.settle(home, carry=True)]
        _home = home
    if homeless:
        _say_full(home)
    return True


def begin(region: memoryview) -> None:
    """Keep the values of this process in `region` from now on, from zero. For a child of ours, right after the fork."""
    global _home
    _home = _Home(region)


def release() -> None:
    """Let go of the region, so that it can be unmapped; the values keep what they have."""
    global _home
    with _lock:
        writer, left, _home = _home.writer, _home, _Home(None)
        for group in list(_groups):
            group.settle(_home, carry=group.home is left)
        if writer is not None:
            writer.release()


def _leave() -> None:
    """In a new process, whoever forked it: the region is the parent's, and its locks may be held for ever."""
    global _home, _lock
    _lock = threading.RLock()
    _being_built.clear()
    if _home.writer is not None:
        _home = _Home(None)


os.register_at_fork(after_in_child=_leave)


class _Group:
    """The values of one series, or of one histogram or summary: they find room together or not at all."""

    def __init__(self, family: bytes) -> None:
        self.home = _home
        self._family = family
        self._keys: list[bytes] = []
        self._values: list[ref[Value]] = []
        _groups.add(self)

    def add(self, key: bytes, value: "Value") -> None:
        self._keys.append(key)
        self._values.append(ref(value))

    def settle(self, home: _Home, carry: bool) -> bool:
        """Bring the values there, with what they have or from zero. False: for want of room each counts for itself."""
        self.home = home
        writer = home.writer
        places = writer.place(self._family, self._keys) if writer is not None else None
        for index, reference in enumerate(self._values):
            value = reference()
            if value is None or value._home is home:
                continue
            if writer is None or places is None:
                value._move(home, array("d", (0.0, 0.0)), 0, carry)
            else:
                value._move(home, writer.cells, places[index], carry)
        return writer is None or places is not None


class Value:
    """One number of a metric: what `prometheus_client.values.ValueClass` is. Safe for threads.

    `inc` and `set` never fail for want of room: then the value counts where nobody sees it.
    """

    _multiprocess = True

    def __init__(
        self,
        typ: str,
        metric_name: str,
        name: str,
        labelnames: Sequence[str],
        labelvalues: Sequence[str],
        help_text: str,
        multiprocess_mode: str = "",
        **kwargs: Any,
    ) -> None:
        rule = RULES.get((typ, multiprocess_mode))
        suffix = name.removeprefix(metric_name)
        self._name = metric_name
        self._home = _home
        self._cells: Cells = array("d", (0.0, 0.0))
        self._at = 0
        self._grows = typ == "counter"
        self._offset = 0.0  # what a counter had when it was reset: still counted, not shown
        self._stamped = rule not in (None, Rule.SUM)
        self._exemplar: Any = None
        self._group: _Group | None = None
        if rule is None or suffix not in SUFFIXES[typ]:
            _refuse(metric_name, f"a {typ} of this kind is not supported")
        elif metric_name.startswith(OURS):
            _refuse(metric_name, f"names that begin with {OURS} are the service's own")
        else:
            self._join(_Place(typ, multiprocess_mode, metric_name, help_text, suffix, labelnames, labelvalues))

    def _join(self, place: "_Place") -> None:
        with _lock:
            group = _being_built.pop(place.group, None) or _Group(place.family)
            group.add(place.key, self)
            self._group = group
            if not place.last:
                _being_built[place.group] = group
            if _home.writer is not None:
                self._home = _nowhere
        if place.last:
            self._settle()

    def inc(self, amount: float) -> None:
        if self._home is not _home:
            self._settle()
        with _lock:
            total = self._cells[self._at] + amount
            if self._takes(total):
                self._cells[self._at] = total
                if self._stamped:
                    self._cells[self._at + 1] = 1.0

    def set(self, value: float, timestamp: float | None = None) -> None:
        """A counter that is set back, `Counter.reset()`, shows less from then on; its total over all does not fall."""
        if self._home is not _home:
            self._settle()
        with _lock:
            cells, at = self._cells, self._at
            if not self._takes(value):
                return
            if self._grows:
                if value < cells[at] - self._offset:
                    self._offset = cells[at] - value
                cells[at] = value + self._offset
            else:
                cells[at] = value
                if self._stamped:
                    cells[at + 1] = timestamp or 1.0  # last: killed in between, the new value counts as the old one's

    def _takes(self, total: float) -> bool:
        """Whether that may stand here: in what is summed over processes a NaN or an infinity would stay for ever."""
        if isfinite(total) or self._stamped:
            return True
        now = monotonic()
        if now - _not_finite_said.get(self._name, NEVER_S) >= SAID_EVERY:
            _not_finite_said[self._name] = now
            log.warning(
                "refused a value of the program's metric %s: %s cannot be summed; it stays as it was",
                self._name,
                total,
                extra=event(LogEvent.METRIC_VALUE_REFUSED, metric=self._name),
            )
        return False

    def get(self) -> float:
        """What this process has counted."""
        with _lock:
            return self._cells[self._at] - self._offset if self._home is _home else 0.0

    def set_exemplar(self, exemplar: Any) -> None:
        self._exemplar = exemplar

    def get_exemplar(self) -> Any:
        return self._exemplar

    def _settle(self) -> None:
        """Go to where the values of this process are now, from zero, with the group."""
        with _lock:
            home, fits = _home, True
            if self._group is None:
                self._home = home
            elif self._home is not home:
                fits = self._group.settle(home, carry=False)
        if not fits:
            _say_full(home)

    def _move(self, home: _Home, cells: "Cells", at: int, carry: bool) -> None:
        if carry and not self._stamped:
            cells[at] += self._cells[self._at]
            self._cells[self._at] = 0.0  # another of the same name may be in the same cell: it is carried once
        elif carry and self._cells[self._at + 1]:
            cells[at], cells[at + 1] = self._cells[self._at], self._cells[self._at + 1]
        elif not carry:
            self._offset = 0.0
        self._cells, self._at, self._home = cells, at, home


class _Place:
    """What a value is called in a region, and which values it goes with."""

    def __init__(
        self, kind: str, mode: str, name: str, help: str, suffix: str, names: Sequence[str], values: Sequence[str]
    ) -> None:
        bucket = values[len(values) - 1 :] if suffix == "_bucket" else ()
        labels = sorted(zip(names[: len(names) - len(bucket)], values, strict=False))
        self.family = _family(kind, mode, name, help, tuple(label for label, _ in labels))
        self.key = encode((suffix, *(value for _, value in labels), *bucket))
        self.group = (threading.get_ident(), self.family, tuple(labels))
        self.last = kind in ("counter", "gauge") or tuple(bucket) == ("+Inf",) or (kind, suffix) == ("summary", "_sum")


@lru_cache(maxsize=1024)
def _family(kind: str, mode: str, name: str, help: str, labelnames: tuple[str, ...]) -> bytes:
    return encode((kind, mode, name, help, *labelnames))


def _refuse(metric_name: str, reason: str) -> None:
    if metric_name not in _refused:
        _refused.add(metric_name)
        log.warning(
            "could not serve the program's metric %s: %s",
            metric_name,
            reason,
            extra=event(LogEvent.METRIC_REFUSED, metric=metric_name, reason=reason),
        )


def _say_full(home: _Home) -> None:
    if not home.said_full:
        home.said_full = True
        log.warning(
            "could not keep more of the program's metrics: this process has no room for new series; "
            "prefork_application_series_dropped_total counts them",
            extra=event(LogEvent.METRICS_FULL),
        )
