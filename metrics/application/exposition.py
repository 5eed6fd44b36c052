"""The user's own metrics as Prometheus families: summed over all processes, or evaluated in the exporter only.

Runs in the exporter, and in the master only if the program itself has imported prometheus_client. Info, Enum, functions
(`Gauge.set_function`) and the program's own collectors have no values that could be added up: the exporter evaluates
them at each scrape, with the state that the master had when it forked the exporter. prometheus_client's default
collectors must not be served: they would describe the exporter.
"""

import logging
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

from prometheus_client import (
    GC_COLLECTOR,
    PLATFORM_COLLECTOR,
    PROCESS_COLLECTOR,
    REGISTRY,
    Counter,
    Gauge,
    Histogram,
    Metric,
    Summary,
    values,
)

from ..log_events import LogEvent, event
from .series import Family, Series
from .summed import Cells, Encoder, LabelledSample, Labels, Registry, Shapes, Summed
from .sums import Merged
from .values import OURS, Value

log = logging.getLogger("prefork.metrics")

_failed: set[str] = set()


def application_families(merged: Merged, shapes: Shapes | None = None) -> Iterator[Metric]:
    """Yield every metric of the program: those with values in the regions, then those that are evaluated here.

    `shapes`: what was kept of those with values since the last scrape.
    """
    ours = values.ValueClass is Value  # otherwise the user chose another way for all of them
    functions = _functions() if ours else {}
    served = set()
    found = sorted(_by_name(merged.values).items(), key=lambda item: item[0].name)
    for shape, cells in (shapes or Shapes()).of(found):
        served.add(shape.family.name)
        try:
            summed = Summed(shape, cells)
        except ValueError:
            continue  # a name that this version of prometheus_client cannot write
        if evaluated := functions.pop(shape.family.name, None):
            samples = [*(each for each in summed.labelled() if each[1] not in evaluated.labels), *evaluated.samples]
            yield from _metric(summed.type, summed.name, summed.documentation, samples)
        elif shape.rows:
            yield summed
    for name, evaluated in functions.items():
        served.add(name)
        yield from _metric("gauge", name, evaluated.help, evaluated.samples)
    for collector in _collectors() if ours else ():
        if not _has_values(collector):
            yield from _evaluated(collector, served)


def _metric(kind: str, name: str, help: str, samples: Iterable[LabelledSample]) -> Iterator[Metric]:
    try:
        metric = Metric(name, help, kind)
    except ValueError:
        return  # a name that this version of prometheus_client cannot write
    for suffix, labels, value in samples:
        metric.add_sample(name + suffix, labels, value)
    if metric.samples:
        yield metric


# Metrics with values.


def _by_name(cells: Cells) -> dict[Family, dict[Series, float]]:
    """Group the values by metric.

    The first family of a name prevails: others of the same kind join it, whatever their labels; those of another kind
    are left out.
    """
    first: dict[str, Family] = {}
    found: dict[Family, dict[Series, float]] = defaultdict(dict)
    for series, value in cells.items():
        theirs = series.family
        family = first.setdefault(theirs.name, theirs)
        if (family.kind, family.mode) == (theirs.kind, theirs.mode):
            found[family][series] = value
    return found


# Metrics without values.


def _collectors() -> list[Any]:
    """Return the collectors that the program has registered."""
    default = (PROCESS_COLLECTOR, PLATFORM_COLLECTOR, GC_COLLECTOR)
    return [collector for collector in list(REGISTRY._collector_to_names) if collector not in default]


def _has_values(collector: Any) -> bool:
    return isinstance(collector, (Counter, Gauge, Histogram, Summary))


def _members(metric: Any) -> list[Any]:
    """Return the children of a metric, one for each combination of labels, or the metric itself if it has none."""
    return list(vars(metric).get("_metrics", {}).values()) or [metric]


def _is_function(member: Any) -> bool:
    """Return whether `Gauge.set_function` was called: it sets a method on the instance."""
    return "_child_samples" in vars(member)


@dataclass(slots=True)
class _Functions:
    """The children of one gauge that are functions."""

    help: str
    labels: list[Labels] = field(default_factory=list)  # including functions that raised
    samples: list[LabelledSample] = field(default_factory=list)


def _functions() -> dict[str, _Functions]:
    """Evaluate the functions of all gauges, by the gauge's name."""
    found: dict[str, _Functions] = {}
    for gauge in _collectors():
        for member in _members(gauge) if isinstance(gauge, Gauge) else ():
            if _is_function(member):
                labels = dict(zip(member._labelnames, member._labelvalues, strict=True))
                evaluated = found.setdefault(gauge._name, _Functions(gauge._documentation))
                evaluated.labels.append(labels)
                evaluated.samples.extend(("", labels, s[2]) for s in _tried(gauge, member._child_samples))
    return found


def _evaluated(collector: Any, served: set[str]) -> Iterator[Metric]:
    """Yield a collector's metrics, except those whose name is taken: a duplicate would break the whole scrape."""
    for metric in _tried(collector, lambda: _named(collector.collect())):
        if metric.samples and metric.name not in served and not metric.name.startswith(OURS):
            served.add(metric.name)
            yield metric


def _named(found: Iterable[Any]) -> Iterator[Metric]:
    """Yield the metrics that a collector has made. Raises TypeError for what is none."""
    for metric in found:
        if not (isinstance(getattr(metric, "name", None), str) and isinstance(getattr(metric, "samples", None), list)):
            raise TypeError(f"no metric: {metric!r:.80}")
        yield metric


def _tried(collector: Any, evaluate: Callable[[], Iterable[Any]]) -> list[Any]:
    try:
        return list(evaluate())
    except (Exception, SystemExit):
        _say_left_out(_name(collector))
        return []


def _say_left_out(name: str) -> None:
    """Log, once for each name, why it is not served: the exception that is being handled."""
    if name not in _failed:
        _failed.add(name)
        log.warning("could not collect %s", name, exc_info=True, extra=event(LogEvent.METRIC_FAILED, metric=name))


def encoded(families: Iterable[Metric], encoder: Encoder, form: str) -> bytes:
    """Return the text of a scrape, of the form that this encoder writes.

    A family that cannot be written, since the program made it so (a label that is no text, a lone surrogate), is left
    out, and the log says so once.
    """
    end = encoder(Registry())
    texts = []
    for family in families:
        try:
            whole = family.text(encoder, form) if isinstance(family, Summed) else encoder(Registry(family))
            texts.append(whole.removesuffix(end))
        except Exception:
            _say_left_out(family.name)
    return b"".join((*texts, end))


def _name(collector: Any) -> str:
    return str(getattr(collector, "_name", None) or type(collector).__qualname__)


def say_what_is_not_served() -> None:
    """Log which metrics were created too early to be counted, and which are evaluated in one process only."""
    if values.ValueClass is not Value:
        log.info(
            "the program's own metrics are not served here: prometheus_client keeps them in a way of its own",
            extra=event(LogEvent.METRICS_ELSEWHERE),
        )
        return
    early = [_name(metric) for metric in _collectors() if _has_values(metric) and _is_early(metric)]
    if early:
        log.warning(
            "could not count %s over all processes: built before prefork was imported; import prefork first",
            ", ".join(early),
            extra=event(LogEvent.METRICS_EARLY, metrics=early),
        )
    once = [_name(collector) for collector in _collectors() if _is_evaluated(collector)]
    if once:
        log.info(
            "evaluated in the exporter only, with the state of its start: %s",
            ", ".join(once),
            extra=event(LogEvent.METRICS_OF_EXPORTER, metrics=once),
        )


def _is_early(metric: Any) -> bool:
    for member in _members(metric):
        attributes = vars(member)
        numbers = [attributes.get(name) for name in ("_value", "_sum", "_count")] + attributes.get("_buckets", [])
        if any(hasattr(number, "inc") and not isinstance(number, Value) for number in numbers):
            return True
    return False


def _is_evaluated(collector: Any) -> bool:
    if _has_values(collector):
        return isinstance(collector, Gauge) and any(map(_is_function, _members(collector)))
    return True
