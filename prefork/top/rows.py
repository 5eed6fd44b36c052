"""Fit the table of workers to the terminal: choose columns and shorten peers. Pure; runs in `prefork top`."""

from collections.abc import Mapping, Sequence
from typing import Any

from ..control.render import COLUMNS, table, worker_cells

__all__ = ["fitted", "shortened"]

WorkerRow = dict[str, Any]
PEER = COLUMNS.index("peer")
STATE, CPU = COLUMNS.index("state"), COLUMNS.index("cpu")
GIVEN_UP = ("gen", "busy", "pid")  # dropped in this order for want of room; the other columns matter most
PEER_LEAST = len("255.255.255.255:65535")


def fitted(workers: Sequence[WorkerRow], cpu: Mapping[tuple[int, int], float], width: int) -> list[str]:
    """Return the heading and a line per worker. `cpu` has known shares of one CPU; others show CPU seconds."""
    rows = [list(COLUMNS), *(_cells(worker, cpu) for worker in workers)]
    columns = list(range(len(COLUMNS)))
    for name in GIVEN_UP:
        if _width(rows, columns, 2) <= width:
            break
        if not _matters(name, workers):
            columns.remove(COLUMNS.index(name))
    for name in GIVEN_UP:
        if _width(rows, columns, 1) <= width:
            break
        if COLUMNS.index(name) in columns:
            columns.remove(COLUMNS.index(name))
    gap = 2 if _width(rows, columns, 2) <= width else 1
    left = width - _width(rows, columns[:-1], gap) - gap
    for row, worker in zip(rows[1:], workers, strict=True):
        row[PEER] = _peer(worker, row[PEER], max(PEER_LEAST, left))
    shown = [[row[column] for column in columns] for row in rows]
    return table(shown, left=frozenset({columns.index(STATE), len(columns) - 1}), gap=gap)


def _cells(worker: WorkerRow, cpu: Mapping[tuple[int, int], float]) -> list[str]:
    cells = worker_cells(worker)
    share = cpu.get((worker["slot"], worker["pid"]))
    if share is not None:
        cells[CPU] = f"{100 * share:.0f}%"
    return cells


def _matters(name: str, workers: Sequence[WorkerRow]) -> bool:
    """Return True if this column differs between workers, or has information that no other has."""
    if name == "gen":
        return len({worker["generation"] for worker in workers}) > 1
    return name == "pid" or any(worker["lanes"] > 1 for worker in workers)


def _width(rows: Sequence[Sequence[str]], columns: Sequence[int], gap: int) -> int:
    """Return the width of the table, with peers at their minimum."""
    widths = [max(len(row[column]) for row in rows) for column in columns]
    if PEER in columns:
        widths[-1] = min(widths[-1], PEER_LEAST)
    return sum(widths) + gap * (len(columns) - 1)


def _peer(worker: WorkerRow, cell: str, width: int) -> str:
    """Return the peer: complete, or without the number of further peers, or without its middle."""
    return cell if len(cell) <= width else shortened(cell.partition(" +")[0], width)


def shortened(peer: str, width: int) -> str:
    """Shorten a peer to its beginning and its end, which has the port."""
    if len(peer) <= width:
        return peer
    end = max(width - 2 - width // 3, 0)
    return f"{peer[: width - 2 - end]}..{peer[len(peer) - end :]}"
