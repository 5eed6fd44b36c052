"""Which mutants are judged: all of some modules, or a sample that stays what it is while the code moves on.

Each mutant has a place in its module's draw, by a digest of the seed and of what the mistake is. Nothing else counts,
not its line and no other mutant: a change to the code takes away the mutants of what it changes, and leaves the rest
of a sample.
"""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from hashlib import sha256

from .mutate import Mutant

Chosen = dict[str, list[Mutant]]  # by module


def drawn(name: str, found: Sequence[Mutant], seed: int) -> list[tuple[str, Mutant]]:
    """The mutants of a module in the order of the draw, each with its lot."""
    seen = Counter[str]()

    def lots() -> Iterator[tuple[str, Mutant]]:
        for mutant in found:
            mistake = f"{seed} {name} {mutant.where} {mutant.kind} {mutant.before} {mutant.after}"
            seen[mistake] += 1  # the same mistake can be made twice in a function
            yield sha256(f"{mistake} {seen[mistake]}".encode()).hexdigest(), mutant

    return sorted(lots(), key=lambda lot: lot[0])


def so_many_of_each(found: Mapping[str, Sequence[Mutant]], count: int, seed: int) -> Chosen:
    """The same number of each module; all of those that have fewer."""
    return {name: _first(count, name, mutants, seed) for name, mutants in found.items()}


def so_many_of_all(found: Mapping[str, Sequence[Mutant]], count: int, seed: int) -> Chosen:
    """So many in all, as evenly over the modules as can be: the first of each is taken before the second of any."""
    lots = [
        (place, lot, name)
        for name, mutants in found.items()
        for place, (lot, _) in enumerate(drawn(name, mutants, seed))
    ]  # fmt: skip
    counts = Counter(name for _, _, name in sorted(lots)[:count])
    return {name: _first(counts[name], name, mutants, seed) for name, mutants in found.items()}


def _first(count: int, name: str, mutants: Sequence[Mutant], seed: int) -> list[Mutant]:
    """Those whose lots come first, in the order of their lines."""
    taken = {mutant for _, mutant in drawn(name, mutants, seed)[:count]}
    return [mutant for mutant in mutants if mutant in taken]
