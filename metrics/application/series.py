"""The names of the user's metrics in shared memory, and the rules by which the values of several processes become one.

Pure; runs in every process. Holds no values, and must not import prometheus_client. A family and a series are written
as keys (`encode`) and interned when they are read: one object for each, so that adding up ten thousand of them compares
no strings.
"""

import threading
from collections.abc import Iterable, Sequence
from enum import Enum, auto
from math import fsum, inf, isfinite, nextafter
from weakref import WeakValueDictionary


class Rule(Enum):
    """The ways in which the values of one series in several processes become one."""

    SUM = auto()
    MIN = auto()
    MAX = auto()
    LATEST = auto()
    EACH = auto()  # they do not: each slot has a series of its own


_GAUGES = {"all": Rule.EACH, "sum": Rule.SUM, "min": Rule.MIN, "max": Rule.MAX, "mostrecent": Rule.LATEST}

# By kind and gauge mode. Combinations that are not listed are not supported.
RULES = {
    **{(kind, ""): Rule.SUM for kind in ("counter", "histogram", "summary")},
    **{("gauge", live + mode): rule for mode, rule in _GAUGES.items() for live in ("", "live")},
}

# The suffixes of sample names. Buckets are not cumulative here; the last label of a bucket is `le`.
SUFFIXES = {
    "counter": ("_total",),
    "gauge": ("",),
    "histogram": ("_sum", "_bucket"),
    "summary": ("_count", "_sum"),
}


def encode(parts: Iterable[str]) -> bytes:
    """Return the key of a family (kind, mode, name, help, label names) or of a series (suffix, label values)."""
    import json

    return json.dumps(list(parts), ensure_ascii=False, separators=(",", ":")).encode("utf-8", "replace")


class Family:
    """One metric of the user's. Its help text is the first one read. `mode` is that of a gauge."""

    __slots__ = ("__weakref__", "help", "key", "kind", "known", "labelnames", "mode", "name", "rule")

    def __init__(
        self, kind: str, mode: str, name: str, help: str, labelnames: tuple[str, ...], rule: Rule, key: bytes
    ) -> None:
        self.kind, self.mode, self.name, self.help = kind, mode, name, help
        self.labelnames, self.rule, self.key = labelnames, rule, key
        self.known: WeakValueDictionary[bytes, Series] = WeakValueDictionary()  # its series, by key

    @property
    def live(self) -> bool:
        """True if the values of dead processes are forgotten."""
        return self.mode.startswith("live")


class Series:
    """One time series, or one bucket of one."""

    __slots__ = ("__weakref__", "family", "key", "labelvalues", "suffix")

    def __init__(self, family: Family, suffix: str, labelvalues: tuple[str, ...], key: bytes) -> None:
        self.family, self.suffix, self.labelvalues, self.key = family, suffix, labelvalues, key

    @property
    def labels(self) -> tuple[str, ...]:
        """The label values without `le`, common to all series of one histogram."""
        return self.labelvalues[: len(self.family.labelnames)]

    def at_slot(self, slot: str) -> "Series":
        """Return the series of one slot, where each slot has its own: with the label `slot`."""
        family = self.family
        label = "prefork_slot" if "slot" in family.labelnames else "slot"
        apart = family_of(encode((family.kind, family.mode, family.name, family.help, *family.labelnames, label)))
        return series_of(apart, encode((self.suffix, *self.labelvalues, slot)))


_families: WeakValueDictionary[tuple[str, ...], Family] = WeakValueDictionary()
_interning = threading.Lock()


def family_of(key: bytes) -> Family:
    """Return the family with this key. Raises ValueError if it is not the key of a family."""
    kind, mode, name, help, *labelnames = _texts(key)
    if (kind, mode) not in RULES or not name:
        raise ValueError(f"no kind of metric that is supported: {kind} {mode}")
    family = Family(kind, mode, name, help, tuple(labelnames), RULES[kind, mode], key)
    with _interning:
        return _families.setdefault((kind, mode, name, *labelnames), family)


def series_of(family: Family, key: bytes) -> Series:
    """Return the series with this key. Raises ValueError if it is not the key of a series of this family."""
    known = family.known.get(key)
    if known is not None:
        return known
    suffix, *labelvalues = _texts(key)
    is_bucket = suffix == "_bucket"
    if suffix not in SUFFIXES[family.kind] or len(labelvalues) != len(family.labelnames) + is_bucket:
        raise ValueError(f"no series of {family.name}")
    if is_bucket and float(labelvalues[-1]) != float(labelvalues[-1]):
        raise ValueError(f"no bucket of {family.name}")
    with _interning:
        return family.known.setdefault(key, Series(family, suffix, tuple(labelvalues), key))


def _texts(key: bytes) -> list[str]:
    import json

    try:
        texts = json.loads(key)
    except RecursionError:
        raise ValueError("nested without end") from None
    if not isinstance(texts, list) or not texts or not all(isinstance(text, str) for text in texts):
        raise ValueError("no list of texts")
    "".join(texts).encode()  # a lone surrogate would break every scrape
    return texts


# Rounding must not make a total fall when a value moves from the live to the dead: Prometheus takes the slightest fall
# for a restart, and then counts the whole total as new. So sums are exact, and rounded once.


def total(parts: Sequence[float]) -> float:
    """Return the exact sum, rounded once, so that the order does not matter."""
    try:
        return fsum(parts)
    except (OverflowError, ValueError):  # past the largest float; infinities of both signs
        return sum(parts)


def added(*parts: float) -> tuple[float, float]:
    """Return the exact sum as two floats: the nearest one, and the rest.

    Where two floats cannot hold it the rest is rounded up; otherwise a total could fall by its last digit when its
    parts are folded.
    """
    nearest = total(parts)
    if not isfinite(nearest):
        return nearest, 0.0
    rest = total((*parts, -nearest))
    return nearest, nextafter(rest, inf) if total((*parts, -nearest, -rest)) > 0 else rest


def prevails(rule: Rule, value: float, written: float, other: float, other_written: float) -> bool:
    """Return whether the first value is shown instead of the other. A value that was never written does not count."""
    if not written or not other_written or rule is Rule.LATEST:
        return written > other_written
    if rule is Rule.EACH:
        return False
    return other != other or (value < other if rule is Rule.MIN else value > other)
