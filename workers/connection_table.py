"""The connection table: which client each lane of the whole pool serves, so that their number can be limited.

    lane's cell:  free ─▶ asks ─▶ held ─▶ asks for its client ─▶ counted ─▶ free
                            │ the pool is full   │ its client has enough
                            └────▶ free          └────▶ free

One memfd, made by the master before the first fork of a pool that has such a limit, mapped by all its workers, and
handed on over the exec, so that a new generation sees the connections of the old. A cell is a word of eight bytes with
one writer, the worker whose lane it is; the master writes those of a worker that is reaped. There is no lock: who is
killed or stopped holds up nobody. A worker that scribbles here spoils who is admitted, until all are replaced, and
nothing else: no word is used as an address, a pid or an index.

A connection asks before it looks, and looks at every cell after. Of several that ask, the last to begin sees all the
others, so never are there too many. Where some may still have to leave, the one whose cell is first stays and looks
again, and the others let it go before. Who is refused has seen a full pool, or others that asked for as long as
PATIENCE_S: that is a worker that was stopped or killed within some microseconds.

A connection that is kept (KeepAliveMixIn) has no lane between two stays, so it has a cell of its own, which goes along
with it (kept_cells.py) and is looked at with all the others.

Clients are known by 56 bits of a keyed hash, an IPv6 address by its /64, which is what one client has. The table is
66 MiB of addresses; memory is what is written of it: a page for 16 lanes of 30 workers.
"""

import os
import sys
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from itertools import count
from threading import Lock
from time import monotonic, sleep
from typing import Any

from prefork.metrics.scoreboard import mapped, sealed_memory

from .contexts import Lane
from .kept_cells import KEPT_WORDS, KeptCells
from .open_lanes import MOST_LANES

TABLE_VERSION = 2
WORKER_ROWS = 2048  # workers and those that drain; the first row is the header
BLOCK = 16  # lanes; a worker's lanes stand in blocks, so that the first of all workers are read at once
BLOCKS = MOST_LANES // BLOCK
REGION = WORKER_ROWS * BLOCK  # cells: a block of each row
BLOCKS_OPENED = BLOCKS * REGION  # for each row how many blocks of it have been in use
KEPT = BLOCKS_OPENED + WORKER_ROWS  # the cells of kept connections
MEMORY_BYTES = (KEPT + KEPT_WORDS) * 8

# Words of the header.
IS_VERSION, TOP, KEY = 0, 1, slice(2, 6)

# The first byte of a cell; the others are the client's.
FREE, ASKS, HELD, ASKS_FOR_CLIENT, COUNTED = range(5)
ANYBODY = bytes(7)

PRIME = (1 << 89) - 1
TIE_S = 0.0002  # between two looks
PATIENCE_S = 0.02
CLIENTS_REMEMBERED = 1024  # clients

ClientOf = Callable[[Any], int | None]  # the number of an address's client; None: it is nobody's


class ConnectionTable:
    """The memory of the table."""

    def __init__(self, fd: int | None = None) -> None:
        """Make a table, or with `fd` adopt one. Raises ValueError when that is of another version, OSError when
        descriptors or memory are short."""
        # By the worker's number: its lanes with a cell, of all its servers.
        self.lanes: defaultdict[int, Iterator[int]] = defaultdict(count)
        if fd is None:
            self.fd, self._memory = sealed_memory("prefork-connections", MEMORY_BYTES)
            self.words = memoryview(self._memory).cast("Q")
            self.words[IS_VERSION] = TABLE_VERSION
            self.words[KEY] = memoryview(os.urandom(32)).cast("Q")
            self.kept = KeptCells(self.words[KEPT:])
            return
        if os.fstat(fd).st_size != MEMORY_BYTES:
            raise ValueError("this memory is no table of connections of this version")
        self.fd, self._memory = fd, mapped(fd, MEMORY_BYTES)
        self.words = memoryview(self._memory).cast("Q")
        if self.words[IS_VERSION] != TABLE_VERSION:
            self._unmap()
            raise ValueError("this table of connections is of another version")
        self.kept = KeptCells(self.words[KEPT:])

    def expect(self, living: set[int]) -> None:
        """Called in the master before a fork: have the rows of these workers be read, and of one more. Others are free,
        whatever a worker has written there."""
        top = min(max(len(living) + 1, *living, 0), WORKER_ROWS - 1)
        self.words[TOP] = top
        for number in set(range(1, top + 1)) - living:
            self.clear(number)

    def clear(self, number: int) -> None:
        """Called in the master: free the cells of the worker of this number, which is reaped."""
        words = self.words
        for block in range(max(1, min(words[BLOCKS_OPENED + number], BLOCKS))):
            start = block * REGION + number * BLOCK
            words[start : start + BLOCK] = memoryview(bytes(BLOCK * 8)).cast("Q")
        words[BLOCKS_OPENED + number] = 0

    def clear_process(self, pid: int) -> None:
        """Called in the master: free the cells of the kept connections that a process had, which is reaped."""
        self.kept.drop_all_of(pid)

    def keep_memory(self) -> None:
        """Called in a worker, which needs nothing else."""
        os.close(self.fd)
        self.fd = -1

    def close(self) -> None:
        self.kept.close()
        self._unmap()
        if self.fd != -1:
            os.close(self.fd)

    def _unmap(self) -> None:
        self.words.release()
        self._memory.close()


class ConnectionLimits:
    """The limits, in a worker, for all its threads. `most` connections at once, and of one client `most_of_client`;
    None: no limit. `counts_clients`: without one as well, for another listener of the pool has such a limit."""

    def __init__(
        self, table: ConnectionTable, number: int, client_of: ClientOf, *, most: int | None = None,
        most_of_client: int | None = None, counts_clients: bool = False,
    ) -> None:  # fmt: skip
        self._words = table.words
        self.kept = table.kept
        self._row = number
        self._client_of = client_of
        self._most, self._most_of_client = most, most_of_client
        self._counts_clients = counts_clients or most_of_client is not None
        words = table.words[KEY].tolist()
        self._factor, self._summand = words[0] << 64 | words[1] | 1, words[2] << 64 | words[3]
        self._known: dict[str, bytes | None] = {}
        self._lock = Lock()
        self._lanes = table.lanes[number]
        self._cells: dict[int, int] = {}  # by a lane's id(): it is ours, and lives as long as we do
        self._taken: dict[int, int] = {}  # the same, of those that are not free

    def admits(self, lane: Lane) -> bool:
        """Return True if there is room for this connection in the pool, and count it from then on, until `leave()`."""
        cell = self._cell_of(lane)
        self._taken[id(lane)] = cell
        if self._most is None:
            self._words[cell] = _word(HELD, ANYBODY)
            return True
        return self._claim(cell, self._most, _in_the_pool, ASKS, HELD, ANYBODY, FREE)

    def admits_client(self, lane: Lane, client_address: Any) -> bool:
        """The same for its client, once the pool has admitted it."""
        if not self._counts_clients or (client := self._client(client_address)) is None:
            return True
        if (most := self._most_of_client) is None:
            self._words[self._taken[id(lane)]] = _word(COUNTED, client)
            return True
        counted, asking = bytes((COUNTED,)) + client, bytes((ASKS_FOR_CLIENT,)) + client

        def of_client(cells: bytes) -> tuple[int, int]:
            return cells.count(counted), cells.count(asking)

        return self._claim(self._taken[id(lane)], most, of_client, ASKS_FOR_CLIENT, COUNTED, client, HELD)

    def leave(self, lane: Lane) -> None:
        """Free the lane's cell, at the end of its request and before its connection is closed: a client that sees the
        end and comes again at once must find room. It may be free already."""
        cell = self._taken.pop(id(lane), None)
        if cell is not None:
            self._words[cell] = 0

    def keep(self, lane: Lane) -> int:
        """Free the lane's cell, but go on counting its connection, which is kept. Return the number that goes along
        with it, for `kept`; 0 if it is not counted."""
        cell = self._taken.pop(id(lane), None)
        if cell is None:
            return 0
        with self._lock:
            number = self.kept.claim(self._words[cell])
        self._words[cell] = 0
        return number

    def forget(self) -> None:
        """Leave all to the parent, in a process that user code has forked."""
        self._taken.clear()

    def _claim(
        self, cell: int, most: int, look: Callable[[bytes], tuple[int, int]], asks: int, counted: int, client: bytes,
        before: int,
    ) -> bool:  # fmt: skip
        """Take one of `most` places; `look` returns how many cells have one, and how many ask."""
        words = self._words
        until = 0.0
        while True:
            with self._lock:
                words[cell] = _word(asks, client)
            # Taking a lock after giving one back keeps the processor from reading before others see what is written.
            with self._lock:
                cells, place = self._all(cell)
            have, ask = look(cells)
            if have + ask <= most:
                words[cell] = _word(counted, client)
                return True
            now = monotonic()
            until = until or now + PATIENCE_S
            if have >= most or now >= until:
                break
            if look(cells[: place * 8])[1]:
                words[cell] = _word(before, ANYBODY)
            sleep(TIE_S)
        words[cell] = _word(before, ANYBODY)
        return False

    def _all(self, cell: int) -> tuple[bytes, int]:
        """Return a copy of every cell that may be in use, and the place of this one in it."""
        words = self._words
        top = max(min(words[TOP], WORKER_ROWS - 1), self._row)
        blocks = min(max(words[BLOCKS_OPENED + 1 : BLOCKS_OPENED + top + 1]), BLOCKS)
        cells = [
            bytes(words[start + BLOCK : start + BLOCK + top * BLOCK]) for start in range(0, blocks * REGION, REGION)
        ]
        block, within = divmod(cell, REGION)
        return b"".join((*cells, self.kept.read())), block * top * BLOCK + within - BLOCK

    def _cell_of(self, lane: Lane) -> int:
        cell = self._cells.get(id(lane))
        if cell is None:
            with self._lock:
                block, within = divmod(next(self._lanes), BLOCK)
                cell = self._cells[id(lane)] = block * REGION + self._row * BLOCK + within
                self._words[BLOCKS_OPENED + self._row] = block + 1
        return cell

    def _client(self, client_address: Any) -> bytes | None:
        """Return the hash of a client; None for a Unix socket's, which have no address."""
        if not isinstance(client_address, tuple):
            return None
        host = client_address[0]
        if host not in self._known:
            if len(self._known) >= CLIENTS_REMEMBERED:
                self._known.clear()
            number = self._client_of(host)
            hashed = None if number is None else (self._factor * number + self._summand) % PRIME & ((1 << 56) - 1)
            self._known[host] = None if hashed is None else hashed.to_bytes(7, "little")
        return self._known[host]


def _word(state: int, client: bytes) -> int:
    return int.from_bytes(bytes((state,)) + client, sys.byteorder)


def _in_the_pool(cells: bytes) -> tuple[int, int]:
    states = cells[::8]
    asking = states.count(ASKS)
    return len(states) - states.count(FREE) - asking, asking


def table_of_connections(wanted: bool, before: Mapping[str, int] | None) -> ConnectionTable | None:
    """Return the table of the previous image, wanted or not, for that one's workers count in it; else a new one, if it
    is wanted. Raises OSError."""
    if before is not None:
        try:
            return ConnectionTable(before["fd"])
        except ValueError:
            pass  # its descriptor stays open: it is one, and closes with this image
    return ConnectionTable() if wanted else None


def pack_connections(table: ConnectionTable | None) -> tuple[dict[str, int] | None, list[int]]:
    return (None, []) if table is None else ({"fd": table.fd}, [table.fd])
