"""The cells of kept connections in the connection table: each connection is counted wherever it is, to its end.

A lane's cell would be free between two stays. So a kept connection has one of its own, whose number goes along with it,
and only who has the connection writes it: a worker, the holder, nobody while it is on a queue. Beside each cell stands
the process that has it, by which the master frees those that died with one. In all these processes; owns no memory.

    claim ─▶ has ─▶ on its way ─▶ has (another process) ─▶ … ─▶ free

There is no lock. Two processes may claim the same cell in the same microsecond; they try at random, so that happens
once in a long life, and costs a place in the account. So does a process that is killed between its note that
a connection is on its way and the sending.
"""

import os

CELLS_MOST = 1 << 17
CELLS_FEWEST = 1 << 10
KEPT_WORDS = 1 + 2 * CELLS_MOST  # how many cells are looked at; the cells; the processes
ON_ITS_WAY = 1  # in place of a process
TRIES = 16

_CELLS, _PROCESSES = 0, CELLS_MOST  # before the first of each, for a cell has a number from 1 on


class KeptCells:
    """The cells, in any process that has kept connections, or had. A number is 0 where nothing is counted."""

    def __init__(self, words: memoryview) -> None:
        """`words`: so many as KEPT_WORDS, of memory that all share."""
        self._words = words
        self._chance = 0
        self._chance_of = 0  # the process whose it is: another one must not try the same cells

    def claim(self, word: int) -> int:
        """Return the number of a cell with this word, which this process has; 0 if there is none free."""
        words = self._words
        if (pid := os.getpid()) != self._chance_of:
            self._chance, self._chance_of = int.from_bytes(os.urandom(8)), pid
        while True:
            among = max(CELLS_FEWEST, min(words[0], CELLS_MOST))
            words[0] = among
            for _ in range(TRIES):
                cell = 1 + self._next_chance() % among
                if not words[_CELLS + cell]:
                    words[_PROCESSES + cell] = pid  # first: whoever is killed in between leaves nothing that counts
                    words[_CELLS + cell] = word
                    return cell
            if among == CELLS_MOST:
                return 0
            words[0] = among * 2

    def _next_chance(self) -> int:
        """Return a number by chance; Knuth's generator, for a worker has no other loaded."""
        self._chance = (self._chance * 6364136223846793005 + 1442695040888963407) % (1 << 64)
        return self._chance >> 32

    def take(self, cell: int) -> None:
        """Note that this process has the connection now."""
        if 0 < cell <= CELLS_MOST:
            self._words[_PROCESSES + cell] = os.getpid()

    def park(self, cell: int) -> None:
        """Note that it is about to be sent; if that fails, `take()` it."""
        if 0 < cell <= CELLS_MOST:
            self._words[_PROCESSES + cell] = ON_ITS_WAY

    def drop(self, cell: int) -> None:
        """Free the cell, before the connection is closed: a client that sees the end and comes again must find room."""
        if 0 < cell <= CELLS_MOST:
            self._words[_CELLS + cell] = 0  # in one step, from which on it may be another connection's

    def drop_all_of(self, pid: int) -> None:
        """Called in the master: free the cells of a process that is reaped."""
        among = min(self._words[0], CELLS_MOST)
        processes = self._words[_PROCESSES + 1 : _PROCESSES + 1 + among].tolist()
        for index, process in enumerate(processes):
            if process == pid and self._words[_PROCESSES + 1 + index] == pid:  # free ones are claimed meanwhile
                self.drop(index + 1)

    def close(self) -> None:
        self._words.release()

    def read(self) -> bytes:
        """Return a copy of every cell that may be in use, as bytes."""
        return bytes(self._words[_CELLS + 1 : _CELLS + 1 + min(self._words[0], CELLS_MOST)])
