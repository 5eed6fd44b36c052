"""What is measured, as the harness keeps and prints it: samples of rounds, their medians and quartiles, tables."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from statistics import quantiles


@dataclass(frozen=True)
class Spread:
    """Of the rounds: the median, the quartiles, and the lowest tenth, which what else the machine does leaves alone."""

    median: float
    low: float
    high: float
    least: float

    def __str__(self) -> str:
        return f"{self.median:.2f} ({self.low:.2f} – {self.high:.2f}) {self.least:.2f}"


def spread(samples: Sequence[float]) -> Spread:
    if len(samples) < 2:
        samples = [*samples] * 2
    low, middle, high = quantiles(samples, n=4, method="inclusive")
    return Spread(middle, low, high, quantiles(samples, n=10, method="inclusive")[0])


def ratio(samples: Sequence[float], others: Sequence[float]) -> Spread:
    """Of two contenders, round by round; `least` is the ratio of their lowest tenths, whichever rounds these are."""
    found = spread([one / other for one, other in zip(samples, others, strict=True)])
    return replace(found, least=spread(samples).least / spread(others).least)


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table as Markdown has it, aligned: what is printed can be pasted into a page."""
    widths = [max(len(row[column]) for row in (head, *rows)) for column in range(len(head))]

    def line(cells: Sequence[str]) -> str:
        first, *others = (
            cell.ljust(width) if not n else cell.rjust(width)
            for n, (cell, width) in enumerate(zip(cells, widths, strict=True))
        )
        return "| " + " | ".join((first, *others)) + " |"

    rule = "| " + " | ".join("-" * width if not n else "-" * (width - 1) + ":" for n, width in enumerate(widths)) + " |"
    return "\n".join((line(head), rule, *map(line, rows)))
