"""How the cost of a request grows with the number of workers: as ratios.py has it, once for each number."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from . import ratios
from .contenders import Contender
from .figures import table

WORKERS = (1, 2, 4, 8, 16, 32, 64)


@dataclass(frozen=True)
class Grown:
    """µs of CPU time per request, of the rounds that nothing disturbed."""

    contender: str
    workers: int
    load: str
    us: float


def measure(contenders: Sequence[Contender], plan: ratios.Plan, numbers: Sequence[int] = WORKERS) -> list[Grown]:
    found = []
    for workers in numbers:
        part = replace(plan, workers=workers, seconds=plan.seconds / len(numbers))
        for row in ratios.rows(ratios.measure(contenders, ["recv"], part), contenders):
            found.append(Grown(row.contender, workers, row.load, row.us.least))
    return found


def report(found: Sequence[Grown]) -> Iterator[str]:
    numbers = sorted({one.workers for one in found})
    yield "µs of CPU per request by the number of workers (recv, the lowest tenth of the rounds)"
    rows = []
    for contender, load in dict.fromkeys((one.contender, one.load) for one in found):
        us = {one.workers: one.us for one in found if (one.contender, one.load) == (contender, load)}
        rows.append([f"{contender}, {load}", *(f"{us[number]:.1f}" for number in numbers)])
    yield table(["workers", *map(str, numbers)], rows)
