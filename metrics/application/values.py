"""The value class that stores the user's prometheus_client metrics in this process's region.

Runs in every process of a service and in any program that imports prefork, so it must not import prometheus_client; a
hook on `sys.meta_path` (hook.py) sets the class when the program does. Owns the place of this process's values:

    at first            each in its own memory, as with prometheus_client alone
    adopt(region)       in the master's region, with their values so far
    begin(region)       in a new child's region, from zero: their values so far are counted in the parent's
    any other fork      in their own memory, from zero: no process writes the region of another
    release()           in their own memory again, with their values

After `begin()` a value moves when it is first used, so that a child that counts little pays little; the series of one
histogram or summary move together.
"""

import logging
import os
import threading
from array import array
from collections.abc import Sequence
from functools import cache, lru_cache
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

OURS = "prefork_"  # prefix of our own metrics


class _Home:
    """The place of this process's values; a new object whenever it changes. `writer` None: each in its own memory."""

    def __init__(self, region: memoryview | None) -> None:
        self.writer = Writer(region) if region is not None else None
        self.said_full = False


_home = _Home(None)
_nowhere = _Home(None)
_groups: WeakSet["_Group"] = WeakSet()
_being_built: dict[tuple[object, ...], "_Group"] = {}  # histograms and summaries, whose values are created one by one
_refused: set[str] = set()
SAID_EVERY, NEVER_S = 10.0, float("-inf")  # seconds
_not_finite_said: dict[str, float] = {}  # by metric
# Reentrant, because a signal handler or a destructor may count. Never held while logging.
_lock = threading.RLock()


def adopt(region: memoryview) -> bool:
    """Store the values of this process in `region` from now on, with their values so far. Call before the first fork.

    Return False and change nothing if they are already in the region of another service.
    """
    global _home
    expect_forks()
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
    """Store the values of this process in `region` from now on, from zero. For a child of ours, after the fork."""
    global _home
    expect_forks()
    _home = _Home(region)


def release() -> None:
    """Let go of the region, so that it can be unmapped; the metrics keep their values."""
    global _home
    with _lock:
        writer, left, _home = _home.writer, _home, _Home(None)
        for group in list(_groups):
            group.settle(_home, carry=group.home is left)
        if writer is not None:
            writer.release()


def _leave() -> None:
    """Let go of the parent's region and replace the lock, which may be held for ever. Runs in every new process."""
    global _home, _lock
    _lock = threading.RLock()
    _being_built.clear()
    if _home.writer is not None:
        _home = _Home(None)


@cache
def expect_forks() -> None:
    """Have each new process do that, from now on: from when there may be something to leave. It costs a child 50 kB."""
    os.register_at_fork(after_in_child=_leave)


class _Group:
    """The values of one series, or of one histogram or summary: there is room for all of them or for none."""

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
        """Move the values to `home`; `carry`: with their values so far, otherwise from zero.

        Return False if there is no room; then each counts in its own memory.
        """
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
    """One number of a metric, used as `prometheus_client.values.ValueClass`. Thread-safe.

    `inc` and `set` never fail when there is no room: the value then counts where it is not seen.
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
        self._offset = 0.0  # value of a counter when it was reset: still in the total, but not shown
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
        """Set the value. A counter that is reset (`Counter.reset()`) shows less; the total over all does not fall."""
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
                    cells[at + 1] = timestamp or 1.0  # last: if killed in between, the new value has the old time

    def _takes(self, total: float) -> bool:
        """Return whether `total` may be stored: in a sum over processes a NaN or an infinity would stay for ever."""
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
        """Return the value of this process."""
        with _lock:
            return self._cells[self._at] - self._offset if self._home is _home else 0.0

    def set_exemplar(self, exemplar: Any) -> None:
        self._exemplar = exemplar

    def get_exemplar(self) -> Any:
        return self._exemplar

    def _settle(self) -> None:
        """Move, with the group and from zero, to where this process's values are now."""
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
            self._cells[self._at] = 0.0  # another value of the same name may share the cell: carry it only once
        elif carry and self._cells[self._at + 1]:
            cells[at], cells[at + 1] = self._cells[self._at], self._cells[self._at + 1]
        elif not carry:
            self._offset = 0.0
        self._cells, self._at, self._home = cells, at, home


class _Place:
    """The name of a value in a region, and the group of values with which it moves."""

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
