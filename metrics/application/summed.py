"""A metric of the program's that is summed over all processes, as a Prometheus family.

Runs in the exporter. From one scrape to the next only its numbers change: what the text around them is, the encoder of
prometheus_client says once; it is kept, and filled with the numbers, as long as the metric has the same series.
"""

import threading
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

from prometheus_client import Metric
from prometheus_client.samples import Sample
from prometheus_client.utils import floatToGoString

from .series import Family, Series

FORMS_KEPT = 4  # of the text, for which it is kept: each asks for an encoder of its own

Labels = dict[str, str]
LabelledSample = tuple[str, Labels, float]  # suffix, labels, value
Cells = Mapping[Series, float]
Encoder = Callable[[Any], bytes]
_Row = tuple[str, Series]  # a sample: its suffix, and the series whose labels it has


class Registry:
    """A family, as an encoder asks a registry for all of them."""

    def __init__(self, *families: Metric) -> None:
        self._families = families

    def collect(self) -> tuple[Metric, ...]:
        return self._families


class Summed(Metric):
    """A family at one scrape. Its samples are made when somebody asks for them, which its text seldom does."""

    def __init__(self, shape: "_Shape", cells: Cells) -> None:
        """Raises ValueError for a name that this version of prometheus_client cannot write."""
        super().__init__(shape.family.name, shape.family.help, shape.family.kind)
        self._shape = shape
        self._values = list(_values(shape, cells))

    @property
    def samples(self) -> list[Sample]:
        return [Sample(self.name + suffix, labels, value) for suffix, labels, value in self.labelled()]

    @samples.setter
    def samples(self, samples: list[Sample]) -> None:
        """Take none: every family begins with that."""

    def labelled(self) -> list[LabelledSample]:
        rows = zip(self._shape.rows, self._values, strict=True)
        return [(suffix, _labels(suffix, series), value) for (suffix, series), value in rows]

    def text(self, encoder: Encoder, form: str) -> bytes:
        """Return what this encoder makes of it, whose texts are of this form."""
        numbers = tuple(map(_number, self._values))
        templates = self._shape.templates
        if (template := templates.get(form)) is not None:
            return (template % numbers).encode()
        text = encoder(Registry(self))
        if (template := _template(text.decode(), numbers)) is not None:
            for oldest in list(templates)[: 1 - FORMS_KEPT]:
                templates.pop(oldest, None)
            templates[form] = template
        return text


class _Shape:
    """The parts that stay: whose numbers they are, in the order of their samples, and the text around them, by form."""

    def __init__(self, family: Family, cells: Cells) -> None:
        self.family = family
        self.series = list(cells)
        self.rows = list(_histogram(cells) if family.kind == "histogram" else _plain(cells))
        self.templates: dict[str, str] = {}


class Shapes:
    """The shapes of the last scrape. Threads may share them."""

    def __init__(self) -> None:
        self._of: dict[str, _Shape] = {}
        self._lock = threading.Lock()

    def of(self, found: Iterable[tuple[Family, Cells]]) -> "list[tuple[_Shape, Cells]]":
        """Return the shape of each family, beside its values."""
        with self._lock:
            before, self._of = self._of, {}
            shapes = []
            for family, cells in found:
                shape = before.get(family.name)
                if shape is None or shape.family is not family or shape.series != list(cells):
                    shape = _Shape(family, cells)
                self._of[family.name] = shape
                shapes.append((shape, cells))
            return shapes


def _plain(cells: Cells) -> Iterator[_Row]:
    for series in sorted(cells, key=lambda series: (series.labels, series.suffix)):
        yield series.suffix, series


def _histogram(cells: Cells) -> Iterator[_Row]:
    """Yield the samples of a histogram, with a count that no series has, as Prometheus expects.

    There is no sum if observations may be negative.
    """
    together: dict[tuple[tuple[str, ...], ...], list[Series]] = defaultdict(list)
    for series in cells:
        together[series.family.labelnames, series.labels].append(series)
    for _, group in sorted(together.items()):
        buckets = {series.labelvalues[-1]: series for series in group if series.suffix == "_bucket"}
        for le in sorted(buckets, key=float):
            yield "_bucket", buckets[le]
        yield "_count", group[0]
        if buckets and min(map(float, buckets)) >= 0:
            yield from (("_sum", series) for series in group if series.suffix == "_sum")


def _labels(suffix: str, series: Series) -> Labels:
    labels = dict(zip(series.family.labelnames, series.labels, strict=True))
    return {**labels, "le": series.labelvalues[-1]} if suffix == "_bucket" else labels


def _values(shape: _Shape, cells: Cells) -> Iterator[float]:
    """Yield the value of each sample. Buckets of a histogram are cumulative, and its count is that of all of them."""
    is_histogram, count = shape.family.kind == "histogram", 0.0
    for suffix, series in shape.rows:
        if not is_histogram or suffix == "_sum":
            yield cells[series]
            continue
        if suffix == "_bucket":
            count += cells[series]
        yield count
        if suffix == "_count":
            count = 0.0


def _number(value: float) -> str:
    # What it makes of these takes a third of the time.
    return repr(value) if 0.0 <= value < 1e6 else str(floatToGoString(value))  # type: ignore[no-untyped-call]


def _template(text: str, numbers: tuple[str, ...]) -> str | None:
    """Return the text with a place for each number; None unless each of its samples is a line with one at the end."""
    parts: list[str] = []
    ahead = iter(numbers)
    for line in text.removesuffix("\n").split("\n"):
        number = "" if line.startswith("#") else next(ahead, "none is left")
        if not line.endswith(f" {number}" if number else ""):
            return None
        parts.append(line.removesuffix(number).replace("%", "%%") + "%s" * bool(number) + "\n")
    return None if next(ahead, None) is not None else "".join(parts)
